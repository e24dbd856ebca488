"""Projections of large matrices: by Gram matrices and in pieces, with the result of the plain way."""

import pytest
import torch

from onematrix.structures import STRUCTURES, block_kronecker, block_projection, low_rank
from onematrix.structures.block_kronecker import fit_family
from onematrix.structures.block_projection import discarded, project, truncate
from onematrix.structures.family_product import Factors, random_family
from structure_cases import normal

# alpha, beta, gamma, delta, epsilon, phi, rank; every side at least twice the rank
SIZES = [
    Factors(6, 1, 2, 1, 6, 3, 2),
    Factors(6, 2, 1, 2, 3, 1, 2),
    Factors(3, 2, 2, 5, 4, 3, 1),
    Factors(20, 1, 1, 1, 24, 1, 5),
    Factors(3, 4, 1, 2, 5, 2, 2),
    Factors(40, 1, 1, 4, 2, 1, 1),
]


@pytest.fixture
def in_pieces(monkeypatch):
    monkeypatch.setattr(block_projection, "GRAM_TOTAL", 0)
    for module in (block_projection, block_kronecker, low_rank):
        monkeypatch.setattr(module, "CHUNK", 8)


@pytest.mark.parametrize("f", SIZES, ids=str)
@pytest.mark.usefixtures("in_pieces")
def test_pieces_and_gram_matrices_leave_the_error_of_the_singular_values(f):
    dense = normal(*f.shape)
    expected = 0.0
    for i in range(f.phi):
        for j in range(f.gamma):
            block = dense.reshape(f.phi, f.epsilon * f.delta, f.gamma, -1)[i, :, j]
            table = (
                block.reshape(f.epsilon, f.delta, f.beta, f.alpha).transpose(1, 2).flatten(2).flatten(0, 1)
            )
            expected += float(torch.linalg.svdvals(table)[f.rank :].square().sum())
    left, right, rest = project(dense, f)
    assert rest == pytest.approx(expected, rel=1e-9)
    assert discarded(dense, f) == pytest.approx(expected, rel=1e-9)
    found = fit_family(dense, None, [f], STRUCTURES["block_kronecker"])
    direct = dense - block_kronecker.BlockKronecker(left, right).to_dense()
    assert float(direct.norm()) == pytest.approx(expected**0.5, rel=1e-9)
    assert found.error == pytest.approx(float(direct.norm() / dense.norm()), rel=1e-9)
    assert found.predicted == pytest.approx(found.error, rel=1e-9)


@pytest.mark.usefixtures("in_pieces")
def test_members_come_back_to_rounding():
    for f in SIZES:
        cores = (core.double() for core in random_family(f, torch.Generator().manual_seed(0)))
        dense = block_kronecker.BlockKronecker(*cores).to_dense()
        assert fit_family(dense, None, [f], STRUCTURES["block_kronecker"]).error < 1e-12


@pytest.mark.usefixtures("in_pieces")
def test_low_rank_in_pieces_is_the_truncated_singular_value_decomposition():
    dense = normal(24, 18)
    left, values, right = torch.linalg.svd(dense, full_matrices=False)
    found = STRUCTURES["low_rank"].fit(dense, rank=4)
    torch.testing.assert_close(found.structure.to_dense(), left[:, :4] * values[:4] @ right[:4])
    assert found.error == pytest.approx(float(values[4:].norm() / values.norm()), rel=1e-9)
    assert found.predicted == pytest.approx(found.error, rel=1e-9)
    gram = normal(30, 18, seed=3)
    gram = gram.mT @ gram
    weighted = STRUCTURES["low_rank"].fit(dense, rank=4, gram=gram)
    root = torch.linalg.cholesky(gram)
    values = torch.linalg.svdvals(dense @ root)
    assert weighted.error == pytest.approx(float(values[4:].norm() / values.norm()), rel=1e-8)


def test_float32_blocks_are_truncated_in_float64():
    blocks = normal(2, 9, 14).float()
    for rank in (2, 9):
        for mine, wanted in zip(truncate(blocks, rank), truncate(blocks.double(), rank), strict=True):
            assert mine.dtype == torch.float64
            torch.testing.assert_close(mine, wanted)


def test_zero_is_fitted_by_zero():
    for name in ("low_rank", "monarch", "kronecker"):
        found = STRUCTURES[name].fit(torch.zeros(16, 16), 0.5)
        assert found.error == found.predicted == 0.0
        assert not found.structure.to_dense().any()
