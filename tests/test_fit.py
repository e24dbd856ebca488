"""om.fit: the best member within a budget, and what it refuses."""

import pytest
import torch
from torch.testing import assert_close

import onematrix as om
from onematrix.errors import BudgetError, FitError, OneMatrixError, ShapeError
from onematrix.structures import STRUCTURES
from onematrix.structures.sizes import evaluate_size, multiply_sizes
from onematrix.structures.tree import effective_weight


@pytest.fixture
def dense():
    return torch.randn(10, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_low_rank_is_the_truncated_singular_value_decomposition(dense):
    found = STRUCTURES["low_rank"].fit(dense, rank=3)
    left, values, right = torch.linalg.svd(dense, full_matrices=False)
    assert_close(found.structure.to_dense(), left[:, :3] * values[:3] @ right[:3])
    assert found.error == pytest.approx(float(values[3:].norm() / values.norm()))
    assert om.fit(dense, "low_rank", budget=0.4).rank == 2  # floor(0.4 · 120 ÷ 22)


@pytest.mark.parametrize("name", ["csr", "csc", "masked"])
def test_sparse_fits_keep_the_largest_entries(name, dense):
    fitted = om.fit(dense, name, budget=0.25)
    kept = fitted.to_dense()
    assert int((kept != 0).sum()) == 30
    assert dense.abs()[kept != 0].min() >= dense.abs()[kept == 0].max()
    assert_close(kept[kept != 0], dense[kept != 0])
    weighted = om.fit(dense, name, nonzeros=10, gram=torch.diag(torch.tensor([1e6] + [1.0] * 11).double()))
    assert int((weighted.to_dense()[:, 0] != 0).sum()) == 10


def test_block_sparse_keeps_the_largest_tiles(dense):
    fitted = om.fit(dense, "block_sparse", budget=0.4, tile=(5, 3))
    norms = dense.reshape(2, 5, 4, 3).pow(2).sum((1, 3))
    kept = fitted.to_dense().reshape(2, 5, 4, 3).abs().sum((1, 3)) != 0
    assert int(kept.sum()) == 3
    assert norms[kept].min() >= norms[~kept].max()


def test_diagonal_is_the_diagonal(dense):
    square = dense[:, :10].contiguous()
    assert_close(om.fit(square, "diagonal", budget=0.1).vector, square.diagonal())


@pytest.mark.parametrize("budget", [0, -0.1, 1.0001, float("nan"), True, "0.2"])
def test_budgets_outside_are_refused(budget, dense):
    for name in ("low_rank", "csr", "block_sparse"):
        with pytest.raises(BudgetError, match=rf"{name}: budget must lie in \(0, 1\].*got {budget!r}"):
            om.fit(dense, name, budget=budget)


@pytest.mark.parametrize(
    ("name", "budget", "smallest"),
    [("low_rank", 0.1, 0.1834), ("csr", 0.001, 0.008334), ("block_sparse", 0.01, 0.05), ("dense", 0.9, 1.0)],
)
def test_a_budget_below_the_minimum_names_it_and_the_remedy_works(name, budget, smallest, dense):
    with pytest.raises(BudgetError, match=rf"ask for budget={smallest} or more") as caught:
        om.fit(dense, name, budget=budget)
    assert caught.value.smallest == smallest
    assert effective_weight(om.fit(dense, name, budget=caught.value.smallest)) <= smallest


def test_matrices_that_cannot_be_fitted_are_named(dense):
    broken = dense.clone()
    broken[0, 0], broken[1, 1] = float("nan"), float("inf")
    with pytest.raises(FitError, match="low_rank: 2 of 120 entries are nan or infinite") as caught:
        om.fit(broken, "low_rank", budget=0.5)
    assert caught.value.bad == 2
    with pytest.raises(FitError, match=r"a non-empty matrix was needed, got shape \(0, 3\)"):
        om.fit(torch.zeros(0, 3), "csr", budget=0.5)
    with pytest.raises(FitError, match=r"got shape \(3,\)"):
        om.fit(torch.zeros(3), "csr", budget=0.5)
    with pytest.raises(FitError, match=r"a real matrix was needed, got torch\.int64"):
        om.fit(torch.ones(3, 3, dtype=torch.int64), "csr", budget=0.5)
    with pytest.raises(FitError, match=r"gram must be 12×12 .* got \(10, 10\)"):
        om.fit(dense, "low_rank", budget=0.5, gram=torch.eye(10))
    with pytest.raises(FitError, match="diagonal is square, the matrix is 10×12"):
        om.fit(dense, "diagonal", budget=0.5)


def test_sizes_out_of_range_are_named(dense):
    with pytest.raises(FitError, match="rank must be at least 1, got 0"):
        om.fit(dense, "low_rank", rank=0)
    for count in (0, 121):
        with pytest.raises(BudgetError, match=rf"nonzeros must lie in 1\.\.120, got {count}"):
            om.fit(dense, "csr", nonzeros=count)
    with pytest.raises(FitError, match="tile 3×5 does not divide it; the tile taken by itself is 2×3"):
        om.fit(dense, "block_sparse", budget=0.5, tile=(3, 5))
    with pytest.raises(BudgetError, match=r"blocks must lie in 1\.\.4, got 5"):
        om.fit(dense, "block_sparse", blocks=5, tile=(5, 6))
    with pytest.raises(FitError, match="rank 1 stores 3 numbers, more than the 2 of dense"):
        om.fit(dense[:1, :2], "low_rank", budget=1.0)


def test_unknown_structures_and_those_without_a_fit_are_named(dense):
    with pytest.raises(FitError, match=r"no structure is called 'lowrank'; there are: .*block_diagonal"):
        om.fit(dense, "lowrank", budget=0.5)
    with pytest.raises(
        FitError, match=r"permutation cannot be fitted to a matrix; structures that can: .*block_sparse"
    ):
        om.fit(dense, "permutation", budget=0.5)


def test_without_a_name_the_table_holds_every_structure_within_the_budget(dense):
    table = om.fit(dense, budget=0.4)
    assert [row.error for row in table] == sorted(row.error for row in table)
    names = {row.name for row in table}
    assert {"low_rank", "csr", "csc", "masked", "block_sparse", "kronecker", "monarch", "blast"} <= names
    assert not {"dense", "diagonal", "butterfly", "canonical"} & names, (
        "none of these fits the budget or shape"
    )
    assert all(row.stored_numbers <= 48 for row in table)
    with pytest.raises(BudgetError):
        om.fit(dense, budget=2.0)


def test_structures_without_a_fast_solve_say_so_and_others_solve():
    g = torch.Generator().manual_seed(0)
    y = torch.randn(2, 5, generator=g)
    for name in ("diagonal", "permutation", "identity"):
        a = STRUCTURES[name](5) if name == "identity" else STRUCTURES[name].random(5, 5, generator=g)
        assert_close(a.matmul(a.solve(y)), y)
        assert_close(a.logdet(), torch.linalg.slogdet(a.to_dense())[1], atol=1e-6, rtol=1e-5)
    for call in (lambda a: a.solve(y), lambda a: a.logdet()):
        with pytest.raises(OneMatrixError, match="dense has no fast"):
            call(STRUCTURES["dense"](torch.eye(5)))


def test_named_sizes_are_fixed_by_at():
    a = STRUCTURES["identity"]("4 * time")
    assert a.shape == ("4 * time", "4 * time")
    assert a.at(time=3).shape == (12, 12)
    with pytest.raises(ShapeError, match=r"fix the named sizes first, as in a\.at\(time=128\)"):
        a.matmul(torch.ones(2, 12))
    with pytest.raises(ShapeError, match="'time' is not given"):
        a.at(width=3)
    assert evaluate_size("2 * (time - 1) // 3", {"time": 7}) == 4
    assert multiply_sizes("time", 2, "4 * heads") == "8 * heads * time"
    for bad in ("time **", "f(3)", "2 ** time", "time.real"):
        with pytest.raises(ShapeError):
            evaluate_size(bad, {"time": 2})


def test_fields_of_other_kinds_are_refused():
    with pytest.raises(ShapeError, match=r"diagonal\.vector: a contiguous tensor of at least one dimension"):
        STRUCTURES["diagonal"](torch.tensor(1.0))
    with pytest.raises(ShapeError, match=r"dense\.weight: a contiguous tensor.*call \.contiguous\(\)"):
        STRUCTURES["dense"](torch.ones(2, 3).mT)
    with pytest.raises(ShapeError, match="a tuple of one or more structures was needed"):
        STRUCTURES["sum"](())
    with pytest.raises(ShapeError, match=r"each of 0\.\.2 once was needed, 1 are missing"):
        STRUCTURES["permutation"](torch.tensor([0, 0, 2]))
    with pytest.raises(ShapeError, match="inner sizes differ: dense 2×3, dense 2×3"):
        STRUCTURES["product"](*[STRUCTURES["dense"](torch.ones(2, 3))] * 2)
    with pytest.raises(ShapeError, match="a size of at least 1 was needed, got 0"):
        STRUCTURES["identity"](0)
