"""Canonical matrices: rows as sums of products over the modes of the input."""

import itertools

import pytest
import torch

from onematrix.errors import BudgetError, FitError, ShapeError
from onematrix.structures import canonical_fit
from onematrix.structures.base import relative_error
from onematrix.structures.canonical import Canonical
from onematrix.structures.canonical_fit import fit_rows
from onematrix.structures.dense import Dense
from onematrix.structures.multilinear_fit import Search
from onematrix.structures.tree import stored_numbers
from structure_cases import generator, normal


def draw(m, modes, rank, seed=0):
    weights = [normal(m * rank, size, seed=seed + d) for d, size in enumerate(modes)]
    return Canonical(tuple(Dense(w) for w in weights), rank)


@pytest.mark.parametrize(
    "modes", [(4,), (3, 4), (4, 3), (4, 5, 6), (6, 2, 3), (2, 5, 3), (2, 3, 2, 2)], ids=str
)
def test_an_output_is_the_inner_product_with_a_sum_of_outer_products(modes):
    m, rank = 7, 3
    a = draw(m, modes, rank)
    x = normal(2, *modes)
    factors = [mode.weight.reshape(m, rank, -1) for mode in a.modes]
    for b, q in itertools.product(range(2), range(m)):
        tensor = torch.zeros(modes, dtype=torch.float64)
        for r in range(rank):
            term = torch.ones((), dtype=torch.float64)
            for f in factors:
                term = torch.tensordot(term, f[q, r], dims=0)
            tensor = tensor + term
        torch.testing.assert_close(a.matmul(x.flatten(1))[b, q], (tensor * x[b]).sum())
        torch.testing.assert_close(a.to_dense()[q], tensor.flatten())
    y = normal(3, m)
    torch.testing.assert_close(a.rmatmul(y), y @ a.to_dense())
    assert stored_numbers(a) == m * rank * sum(modes)


def test_the_published_count():
    assert stored_numbers(draw(7, (4, 5, 6), 3)) == 315  # dense: 840


def test_two_modes_are_fitted_by_the_singular_values_of_every_row():
    target = normal(5, 12)
    found = Canonical.fit(target, modes=(3, 4), rank=2)
    tails = torch.linalg.svdvals(target.reshape(5, 3, 4))[:, 2:]
    expected = float(tails.norm() / target.norm())
    assert found.error == pytest.approx(expected, abs=1e-13)
    assert found.predicted == pytest.approx(expected, abs=1e-13)
    assert Canonical.fit(target, modes=(3, 4), rank=3).error < 1e-14
    one = Canonical.fit(target, modes=(12,), rank=1)
    assert one.error < 1e-15


@pytest.mark.parametrize(
    ("modes", "rank"),
    [((4, 3, 2), 1), ((4, 3, 2), 2), ((3, 3, 3), 3), ((2, 3, 2, 2), 2), ((2, 2, 2, 2), 1)],
    ids=str,
)
def test_planted_members_of_more_modes_come_back(modes, rank):
    for seed in range(3):
        a = draw(6, modes, rank, seed)
        found = Canonical.fit(a.to_dense(), modes=modes, rank=rank)
        assert found.error < 1e-9
        assert found.predicted is None


def test_a_rank_above_two_of_the_sizes_is_found_by_sweeps_alone():
    target = normal(4, 12)
    errors = [Canonical.fit(target, modes=(2, 3, 2), rank=r).error for r in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.15


def test_sweeps_reach_a_stationary_point_no_worse_than_leading_vectors():
    tensors = normal(5, 3, 4, 2)
    factors = [f.requires_grad_() for f in fit_rows(tensors, 1, sweeps=300)]
    whole = torch.einsum("kra,krb,krc->kabc", *factors)
    loss = (tensors - whole).square().sum((1, 2, 3))
    assert all(float(g.norm()) < 1e-4 for g in torch.autograd.grad(loss.sum(), factors))
    for k in range(5):
        vectors = [
            torch.linalg.svd(tensors[k].movedim(d, 0).flatten(1), full_matrices=False).U[:, 0]
            for d in range(3)
        ]
        start = tensors[k].square().sum() - torch.einsum("abc,a,b,c->", tensors[k], *vectors) ** 2
        assert loss[k] <= start + 1e-12


@pytest.mark.parametrize("modes", [(4, 4, 8), (8, 4, 4), (4, 8, 4), (2, 4, 4, 4)], ids=str)
def test_targets_of_no_structure_are_fitted_alike_in_any_order_of_the_modes(modes):
    """Noise has no least rank: terms that grow against one another must not spoil the sweeps."""
    target = normal(6, 128)
    first = Canonical.fit(target, modes=tuple(sorted(modes)), rank=4, seconds=None)
    found = Canonical.fit(target, modes=modes, rank=4, seconds=None)
    assert found.error == pytest.approx(first.error, rel=0.03)
    largest = max(float(mode.weight.abs().max()) for mode in found.structure.modes)
    assert largest < 100
    again = Canonical.fit(target, modes=modes, rank=4, seconds=None)
    assert torch.equal(found.structure.to_dense(), again.structure.to_dense())


def test_more_starts_and_more_rows_at_once_change_no_row_for_the_worse(monkeypatch):
    tensors = normal(9, 3, 4, 5)

    def rests(starts):
        whole = torch.einsum("kra,krb,krc->kabc", *fit_rows(tensors, 3, Search(None, starts, 0)))
        return (tensors - whole).square().sum((1, 2, 3))

    few, many = rests(0), rests(6)
    assert bool((many <= few + 1e-12).all())
    assert float(many.sum()) < float(few.sum()) - 1e-3
    monkeypatch.setattr(canonical_fit, "ROWS", 60)  # one tensor at a time
    torch.testing.assert_close(rests(0), few, rtol=0.02, atol=0)


def test_rows_of_zeros_and_of_tiny_numbers_are_fitted_beside_others():
    target = normal(4, 24)
    target[1], target[2] = 0, 1e-150 * target[2]
    found = Canonical.fit(target, modes=(2, 3, 4), rank=2).structure.to_dense()
    assert torch.equal(found[1], torch.zeros(24).double())
    assert bool(torch.isfinite(found).all())
    alone = Canonical.fit(1e150 * target[2:3], modes=(2, 3, 4), rank=2)
    assert float((1e150 * (found[2] - target[2])).norm() / (1e150 * target[2]).norm()) < 1.05 * alone.error


def test_a_budget_takes_the_modes_of_least_error():
    three = draw(8, (4, 4, 4), 4)  # 8 · 4 · 12 numbers of 8 · 64
    found = Canonical.fit(three.to_dense(), 0.75)
    assert found.structure.sizes == (4, 4, 4)
    assert found.error < 1e-6
    assert found.predicted is None
    two = draw(8, (8, 8), 3)
    exact = Canonical.fit(two.to_dense(), 0.75)
    assert exact.structure.sizes == (8, 8)
    assert exact.predicted < 1e-12
    near_two = Canonical.fit(two.to_dense() + 1e-3 * normal(8, 64), 0.75)
    assert near_two.structure.sizes == (8, 8)
    assert near_two.predicted == pytest.approx(near_two.error)
    noise = normal(8, 64)
    best = Canonical.fit(noise, modes=(8, 8), budget=0.75).error
    assert Canonical.fit(noise, 0.75, seconds=0.01).error <= best
    with pytest.raises(BudgetError, match=r"rank 1 over modes \(4, 4, 4\): 96 numbers"):
        Canonical.fit(noise, 0.18)


def test_a_gram_lowers_the_weighted_error():
    target, x = normal(4, 12), normal(40, 12, seed=5) @ normal(12, 12, seed=6)
    for modes in ((3, 4), (3, 2, 2)):
        plain = relative_error(Canonical.fit(target, modes=modes, rank=1).structure, target, x.mT @ x)
        found = Canonical.fit(target, modes=modes, rank=1, gram=x.mT @ x)
        assert found.predicted is None
        assert found.error < plain - 1e-2


def test_the_largest_mode_is_contracted_first():
    assert draw(2, (2, 5, 3), 1).multiply_adds() == 2 * (30 + 6 + 2)
    rates = draw(2, (2, 5, 3), 4).learning_rate_scale()
    assert rates == {
        "modes.0.weight": 30 / (3 * 2 * 4),
        "modes.1.weight": 30 / (3 * 5),
        "modes.2.weight": 30 / 9,
    }


def test_a_small_budget_takes_more_modes():
    assert Canonical.random(64, 96, 0.3, generator()).sizes == (8, 12)
    assert Canonical.random(64, 96, 0.15, generator()).sizes == (4, 4, 6)
    variance = []
    for seed in range(40):
        a = Canonical.random(64, 96, 0.15, generator(seed))
        variance.append(float(a.matmul(torch.randn(200, 96, generator=generator(seed))).var()))
    assert 0.8 < sum(variance) / 40 < 1.2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Canonical((Dense(normal(4, 2)),), 0), r"got rows \[4\] and rank 0"),
        (lambda: Canonical((Dense(normal(4, 2)),), 3), r"got rows \[4\] and rank 3"),
        (lambda: Canonical((Dense(normal(4, 2)), Dense(normal(6, 2))), 2), r"got rows \[4, 6\] and rank 2"),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(ShapeError, match=message):
        make()


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((3, 12), {"modes": (3, 5)}, r"modes=\(3, 5\) multiply to 15, the size is 12"),
        ((3, 12), {"rank": 0}, "canonical: rank must be at least 1, got 0"),
        ((3, 13), {"rank": 1}, "columns 13 is prime .*accept a factor of 1 with modes="),
        (
            (3, 4),
            {"modes": (4, 1)},
            r"rank 1 over modes \(4, 1\) stores 15 numbers, more than the 12 of dense",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(shape, size, message):
    with pytest.raises(FitError, match=message):
        Canonical.fit(normal(*shape), **size)


def test_a_budget_below_rank_one_names_it_and_the_remedy_works():
    with pytest.raises(
        BudgetError, match=r"rank 1 over modes \(3, 4\): 35 numbers.*ask for budget=0.5834"
    ) as caught:
        Canonical.fit(normal(5, 12), 0.4)
    assert stored_numbers(Canonical.fit(normal(5, 12), caught.value.smallest).structure) == 35
