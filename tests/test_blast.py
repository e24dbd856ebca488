"""BLAST: the definition block by block, its special cases, sizes, rates and what it keeps for a gradient."""

import pytest
import torch

import onematrix as om
from onematrix.errors import BudgetError, FitError, ShapeError
from onematrix.structures.blast import Blast
from onematrix.training.parameter_groups import rate_scales
from structure_cases import generator, near, normal


def member(m: int, b1: int, n: int, b2: int, rank: int, seed: int = 0) -> Blast:
    shapes = ((b1, m // b1, rank), (rank, b1, b2), (b2, rank, n // b2))
    return Blast(*(normal(*shape, seed=seed + k) for k, shape in enumerate(shapes)))


def by_blocks(a: Blast) -> torch.Tensor:
    """A_ij = U_i diag(s_ij) V_j, one block at a time."""
    b1, b2 = a.blocks
    rows = [
        torch.cat([a.left[i] @ torch.diag(a.coupling[:, i, j]) @ a.right[j] for j in range(b2)], dim=1)
        for i in range(b1)
    ]
    return torch.cat(rows, dim=0)


@pytest.mark.parametrize("size", [(6, 2, 12, 3, 2), (12, 4, 6, 1, 5), (5, 5, 4, 2, 3), (8, 1, 9, 3, 4)])
def test_the_matrix_is_the_definition_block_by_block(size):
    a, x = member(*size), normal(7, size[2], seed=9)
    near(a.to_dense(), by_blocks(a))
    near(a.matmul(x), x @ by_blocks(a).mT)
    near(a.rmatmul(x @ by_blocks(a).mT), x @ by_blocks(a).mT @ by_blocks(a))
    m, b1, n, b2, r = size
    assert a.multiply_adds() == r * (m + n + b1 * b2)
    assert int(torch.linalg.matrix_rank(a.to_dense())) == a.generic_rank()


def test_equal_couplings_are_low_rank_and_one_hot_ones_block_low_rank():
    a = member(6, 2, 8, 2, 3)
    flat = Blast(a.left, torch.ones(3, 2, 2, dtype=torch.float64), a.right)
    near(flat.to_dense(), a.left.flatten(0, 1) @ a.right.transpose(0, 1).flatten(1))
    latin = torch.zeros(2, 2, 2, dtype=torch.float64)
    for i in range(2):
        for j in range(2):
            latin[(i + j) % 2, i, j] = 1
    b = Blast(normal(2, 3, 2), latin, normal(2, 2, 4, seed=2))
    dense = b.to_dense()
    for i in range(2):
        for j in range(2):
            k = (i + j) % 2
            near(dense[3 * i : 3 * i + 3, 4 * j : 4 * j + 4], torch.outer(b.left[i, :, k], b.right[j, k]))


def test_the_gradient_keeps_no_product_over_blocks_and_blocks():
    """Beyond input and factors: z (b2, r, B) and z' (r, b1, B), never (b1, b2, r, B)."""
    a, batch = member(12, 3, 16, 4, 5), 11
    tensors = [t.clone().requires_grad_() for t in (a.left, a.coupling, a.right)]
    x, kept = normal(batch, 16).requires_grad_(), []

    def keep(t):
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        Blast(*tensors).matmul(x)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // 8 for t in kept}
    given = sum(t.numel() for t in (*tensors, x))
    assert sum(storages.values()) <= given + batch * 5 * (3 + 4)


def test_no_copy_is_made_of_what_lies_between_the_products():
    a, x = member(12, 3, 16, 4, 5), normal(11, 16)
    with torch.profiler.profile() as profile:
        a.matmul(x)
    names = {event.key for event in profile.key_averages()}
    assert "aten::bmm" in names
    assert not names & {"aten::copy_", "aten::clone", "aten::contiguous"}


def test_random_members_have_the_fan_in_of_every_sum():
    a = Blast.random(256, 512, rank=64, blocks=(4, 8), generator=generator())
    shared = (64 * 8 * 64) ** (-2 / 3)  # deviations κ √fan, so that one rate of Adam suits all three
    for tensor, fan in ((a.left, 64), (a.coupling, 8), (a.right, 64)):
        assert float(tensor.var()) == pytest.approx(shared * fan, rel=0.1)
    scale = a.learning_rate_scale()
    assert scale == {"left": 512 / (3 * 64), "coupling": 512 / (3 * 8), "right": 8 / 3}


def test_one_sign_step_changes_outputs_alike_at_every_width():
    changes = []
    for n in (128, 512, 2048):
        a = Blast.random(n, n, rank=n // 8, blocks=(4, 4), generator=generator())
        layer, x = om.Linear(a), torch.randn(16, n, generator=generator(1))
        before = layer(x)
        direction = torch.randn(16, n, generator=generator(2))
        grads = torch.autograd.grad((before * direction).sum(), list(layer.parameters()))
        with torch.no_grad():
            for (name, p), g in zip(layer.named_parameters(), grads, strict=True):
                p -= 0.1 / n * rate_scales(a)[name] * g.sign()
        changes.append(float((layer(x) - before).detach().square().mean().sqrt()))
    assert max(changes) < 1.35 * min(changes)


def test_sizes_come_from_the_budget_and_the_grid():
    a = Blast.random(64, 64, 0.5)
    assert (a.blocks, a.rank) == ((8, 8), int(0.5 * 64 * 64 // (128 + 64)))
    assert Blast.random(64, 96, rank=3, blocks=(2, 3)).blocks == (2, 3)
    assert Blast.fit(normal(4, 4), rank=4, blocks=(2, 2)).error < 1e-13  # above the blocks' size of 2


REFUSED = [
    (lambda: Blast.random(7, 12), FitError, "blast 7×12: no grid of 2 to 16 blocks a side divides it"),
    (lambda: Blast.random(8, 12, blocks=(3, 2)), FitError, r"blocks=\(3, 2\) does not divide it; 1, 2, 4, 8"),
    (lambda: Blast.random(8, 8, rank=0), FitError, "rank must be at least 1, got 0"),
    (lambda: Blast.random(8, 8, 0.1), BudgetError, r"rank 1 on 2 × 4 blocks: 24 numbers.*budget=0\.375 or"),
    (lambda: Blast.random(2, 2, blocks=(2, 2)), FitError, "stores 8 numbers, more than the 4 of dense"),
    (
        lambda: Blast(torch.ones(2, 3, 5), torch.ones(5, 2, 4), torch.ones(4, 6, 2)),
        ShapeError,
        r"right \(b2, r, q\) were needed, got \(2, 3, 5\), \(5, 2, 4\), \(4, 6, 2\)",
    ),
    (lambda: Blast(torch.ones(2, 3), torch.ones(3, 2, 2), torch.ones(2, 3, 2)), ShapeError, r"got \(2, 3\),"),
    (
        lambda: Blast(torch.ones(2, 3, 5), torch.ones(5, 4, 2), torch.ones(4, 5, 2)),
        ShapeError,
        r"\(5, 4, 2\)",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED)
def test_impossible_sizes_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
