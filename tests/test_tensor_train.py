"""Trains of cores, plain and in blocks: definitions by loops, the error of the fits, refusals."""

import itertools
import math

import pytest
import torch

from onematrix.errors import BudgetError, FitError, ShapeError
from onematrix.structures.base import relative_error
from onematrix.structures.block_kronecker import as_block_kronecker
from onematrix.structures.block_tensor_train import BlockTensorTrain
from onematrix.structures.dense import Dense
from onematrix.structures.factor_sizes import split_evenly
from onematrix.structures.monarch import Monarch
from onematrix.structures.tensor_train import TensorTrain
from onematrix.structures.tree import leaves, map_tensors, stored_numbers
from structure_cases import generator, normal

BOTH = pytest.mark.parametrize("cls", [TensorTrain, BlockTensorTrain], ids=lambda c: c.name)


def dense(*shape: int) -> Dense:
    return Dense(normal(*shape))


def test_an_entry_of_a_train_is_a_product_of_small_matrices():
    rows, columns, ranks = (2, 3, 2), (3, 2, 2), (1, 2, 3, 1)
    a = TensorTrain.random(12, 12, rows=rows, columns=columns, rank=ranks[1:-1], generator=generator())
    assert a.ranks == ranks
    whole = a.to_dense()
    cores = [
        core.weight.reshape(before, m, n, after)
        for core, m, n, before, after in zip(a.cores, rows, columns, ranks, ranks[1:], strict=False)
    ]
    for i, j in itertools.product(
        itertools.product(*map(range, rows)), itertools.product(*map(range, columns))
    ):
        value = torch.ones(1, 1)
        for core, it, jt in zip(cores, i, j, strict=True):
            value = value @ core[:, it, jt]
        flat = [sum(d * math.prod(s[t + 1 :]) for t, d in enumerate(x)) for x, s in ((i, rows), (j, columns))]
        torch.testing.assert_close(whole[flat[0], flat[1]], value[0, 0], rtol=1e-5, atol=1e-6)
    assert stored_numbers(a) == 2 * 3 * 2 + 2 * 3 * 2 * 3 + 3 * 2 * 2


def test_an_entry_of_a_block_train_is_a_product_along_its_blocks():
    rows, columns, ranks = (2, 3, 2), (3, 2, 2), (1, 2, 2, 1)
    a = BlockTensorTrain.random(12, 12, rows=rows, columns=columns, rank=ranks[1:-1], generator=generator())
    assert a.ranks == ranks
    whole = a.to_dense()
    w1 = a.cores[0].weight.reshape(2, 2, 2, 2, 1, 3)  # j3, j2, i1, r1, r0, j1
    w2 = a.cores[1].weight.reshape(2, 2, 3, 2, 2, 2)  # i1, j3, i2, r2, r1, j2
    w3 = a.cores[2].weight.reshape(2, 3, 2, 1, 2, 2)  # i1, i2, i3, r3, r2, j3
    for (i1, i2, i3), (j1, j2, j3) in itertools.product(
        itertools.product(*map(range, rows)), itertools.product(*map(range, columns))
    ):
        value = w3[i1, i2, i3, :, :, j3] @ w2[i1, j3, i2, :, :, j2] @ w1[j3, j2, i1, :, :, j1]
        entry = whole[(i1 * 3 + i2) * 2 + i3, (j3 * 2 + j2) * 3 + j1]
        torch.testing.assert_close(entry, value[0, 0], rtol=1e-5, atol=1e-6)
    assert stored_numbers(a) == a.multiply_adds() == 4 * 4 * 3 + 4 * 6 * 4 + 6 * 2 * 4


@BOTH
def test_cores_of_size_one_and_many_cores(cls):
    for count in (1, 3, 4):
        rows, columns = split_evenly(24, count), split_evenly(36, count)
        ranks = (2,) * (count - 1)
        a = cls.random(24, 36, rows=rows, columns=columns, rank=ranks, generator=generator())
        x, y = normal(3, 36).float(), normal(3, 24).float()
        torch.testing.assert_close(a.matmul(x), x @ a.to_dense().mT, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(a.rmatmul(y), y @ a.to_dense(), rtol=1e-4, atol=1e-4)


def unfoldings(target, rows, columns):
    """The matrices whose singular values bound a tensor train from below, one per cut."""
    count = len(rows)
    order = [axis for t in range(count) for axis in (t, count + t)]
    tensor = target.reshape(*rows, *columns).permute(order)
    sizes = [m * n for m, n in zip(rows, columns, strict=True)]
    return [tensor.reshape(math.prod(sizes[:t]), -1) for t in range(1, count)]


def test_successive_singular_values_stay_within_their_bound_of_the_best():
    rows, columns, ranks = (2, 3, 2), (3, 2, 3), (2, 3)
    target = normal(12, 18)
    found = TensorTrain.fit(target, rows=rows, columns=columns, rank=ranks)
    cuts = unfoldings(target, rows, columns)
    tails = [
        float(torch.linalg.svdvals(c)[r:].norm() / target.norm()) for c, r in zip(cuts, ranks, strict=True)
    ]
    assert max(tails) <= found.error <= math.sqrt(sum(t**2 for t in tails)) + 1e-12
    assert found.predicted == pytest.approx(relative_error(found.structure, target), abs=1e-13)


def test_successive_block_fits_stay_within_their_bound_of_the_best():
    """A train of three block cores is also one of two, whichever neighbours are taken as one."""
    target = normal(12, 18)
    found = BlockTensorTrain.fit(target, rows=(2, 3, 2), columns=(3, 2, 3), rank=1)
    first = BlockTensorTrain.fit(target, rows=(2, 6), columns=(3, 6), rank=1).error
    second = BlockTensorTrain.fit(target, rows=(6, 2), columns=(6, 3), rank=1).error
    assert max(first, second) <= found.error <= math.hypot(first, second) + 1e-12
    assert found.predicted == pytest.approx(relative_error(found.structure, target), abs=1e-13)


@BOTH
@pytest.mark.parametrize("count", [2, 3, 4])
def test_members_come_back_and_their_cores_are_balanced(cls, count):
    rows, columns = (2, 3, 2, 2)[:count], (3, 2, 2, 2)[:count]
    a = cls.random(math.prod(rows), math.prod(columns), rows=rows, columns=columns, rank=2)
    a = map_tensors(a, lambda t: t.double())
    found = cls.fit(a.to_dense(), rows=rows, columns=columns, rank=a.ranks[1:-1])
    assert max(found.error, found.predicted) < 1e-13
    if count > 2:
        sizes = [float(t.square().mean()) for _, t in leaves(found.structure)]
        assert max(sizes) == pytest.approx(min(sizes))


@BOTH
def test_more_rank_is_no_worse_and_full_rank_is_exact(cls):
    target = normal(8, 12)
    ranks = [1, 2, 3, 4] if cls is TensorTrain else [1, 2]
    errors = [cls.fit(target, rows=(2, 2, 2), columns=(2, 3, 2), rank=r).error for r in ranks]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-13


@BOTH
def test_a_budget_holds_for_any_number_of_cores(cls):
    target = normal(64, 64)
    for cores in (2, 3):
        for budget in (0.4, 0.8):
            found = cls.fit(target, budget, cores=cores).structure
            assert len(found.cores) == cores
            assert stored_numbers(found) <= budget * 64 * 64
            drawn = cls.random(64, 64, budget, generator(), cores=cores)
            assert 0.4 * budget * 64 * 64 < stored_numbers(drawn) <= budget * 64 * 64
            assert len(drawn.cores) == cores


def test_two_block_cores_are_the_best_grid_of_blocks():
    target = normal(12, 10)
    train = BlockTensorTrain.fit(target, rows=(3, 4), columns=(5, 2), rank=2)
    grid = Monarch.fit(target, blocks=(3, 2), rank=2)
    assert train.error == grid.error
    torch.testing.assert_close(train.structure.to_dense(), grid.structure.to_dense())


@BOTH
def test_the_output_keeps_the_variance_with_three_cores(cls):
    variance = []
    for seed in range(40):
        a = cls.random(64, 64, cores=3, rank=3, generator=generator(seed))
        variance.append(float(a.matmul(torch.randn(200, 64, generator=generator(seed))).var()))
    assert 0.8 < sum(variance) / 40 < 1.2


@BOTH
def test_a_gram_with_three_cores_lowers_the_weighted_error(cls):
    target, x = normal(8, 12), normal(40, 12, seed=5) @ normal(12, 12, seed=6)
    size = {"rows": (2, 2, 2), "columns": (3, 2, 2), "rank": 1}
    plain = relative_error(cls.fit(target, **size).structure, target, x.mT @ x)
    found = cls.fit(target, gram=x.mT @ x, **size)
    assert found.predicted is None
    assert found.error == pytest.approx(relative_error(found.structure, target, x.mT @ x))
    assert found.error < plain - 1e-2


def test_learning_rates_count_the_inputs_of_every_sum():
    a = BlockTensorTrain.random(64, 64, cores=3, rank=2, generator=generator())
    assert a.learning_rate_scale() == {
        "cores.0.weight": 64 / (3 * 4),
        "cores.1.weight": 64 / (3 * 8),
        "cores.2.weight": 64 / (3 * 8),
    }
    b = TensorTrain.random(64, 64, cores=3, rank=2, generator=generator())
    assert list(b.learning_rate_scale().values()) == [64 / (3 * 8), 64 / (3 * 8), 64 / (3 * 4)]


REFUSED = [
    (
        lambda: TensorTrain((dense(2, 2),), "2 1", "2 1"),
        "tensor_train: as many cores as factors.*got 1 cores, 2 row factors, 2 column factors",
    ),
    (lambda: TensorTrain((dense(3, 2),), "2", "2"), "core 0 is 3×2, which does not fit rank 1, row factor 2"),
    (lambda: TensorTrain((dense(2, 3),), "2", "2"), "core 0 is 2×3, .*column factor 2"),
    (lambda: TensorTrain((dense(2, 6),), "2", "2"), "tensor_train: the last rank must be 1, got 3"),
    (
        lambda: TensorTrain((dense(2, 4), dense(2, 2)), "2 2", "2 2"),
        "core 1 is 2×2, which does not fit rank 2, row factor 2 and column factor 2",
    ),
    (lambda: TensorTrain((dense(2, 2),), "2", "two"), "positive integers.*got 'two'"),
    (lambda: BlockTensorTrain((dense(2, 2),), "2 1", "2"), "got 1 cores, 2 row factors, 1 column factors"),
    (
        lambda: BlockTensorTrain((dense(5, 2), dense(4, 2)), "2 2", "2 2"),
        "block_tensor_train: core 0 is 5×2, which does not fit rank 1",
    ),
    (
        lambda: BlockTensorTrain((dense(8, 2), dense(4, 2)), "2 2", "2 2"),
        "core 1 is 4×2, which does not fit rank 2",
    ),
    (lambda: BlockTensorTrain((dense(4, 2),), "2", "2"), "the last rank must be 1, got 2"),
    (
        lambda: as_block_kronecker(TensorTrain.random(8, 8, cores=3, rank=1)),
        "tensor_train as block_kronecker: two cores were needed, got 3",
    ),
    (
        lambda: as_block_kronecker(BlockTensorTrain.random(8, 8, cores=3, rank=1)),
        "block_tensor_train as block_kronecker: two cores were needed, got 3",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_cores_that_do_not_chain_are_refused(make, message):
    with pytest.raises(ShapeError, match=message):
        make()


@BOTH
@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            {"rows": (2, 5), "columns": (3, 4)},
            r"rows=\(2, 5\) multiply to 10, the size is 12; usable: 12 = 2·6",
        ),
        (
            {"rows": (2, 6), "columns": (3, 2, 2), "rank": 1},
            r"2 factors were needed for columns, got \(3, 2, 2\)",
        ),
        ({"cores": 3, "rank": (1, 0)}, r"3 cores need 2 ranks of at least 1, got \(1, 0\)"),
        ({"cores": 3, "rank": (1,)}, r"3 cores need 2 ranks of at least 1, got \(1,\)"),
        ({"rank": (1, 2)}, r"2 cores need 1 rank, got \(1, 2\)"),
        ({"cores": 4, "rank": 1}, "do not split into factors above 1: rows 12 = 2·6, 3·4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(cls, size, message):
    with pytest.raises(FitError, match=message):
        cls.fit(normal(12, 12), **size)


@BOTH
def test_a_budget_below_rank_one_names_it_and_the_remedy_works(cls):
    for cores in (2, 3):
        with pytest.raises(BudgetError, match="ask for budget=") as caught:
            cls.fit(normal(24, 36), 0.001, cores=cores)
        found = cls.fit(normal(24, 36), caught.value.smallest, cores=cores).structure
        assert stored_numbers(found) <= caught.value.smallest * 24 * 36
    with pytest.raises(FitError, match=r"stores [46] numbers, more than the 2 of dense"):
        cls.fit(normal(2, 1), rows=(2, 1, 1), columns=(1, 1, 1))


@BOTH
def test_three_cores_within_a_budget_take_the_split_of_least_error(cls):
    target = cls.random(32, 32, rank=3, rows=(2, 2, 8), columns=(8, 2, 2), generator=generator()).to_dense()
    budget = stored_numbers(cls.fit(target, rank=3, rows=(2, 2, 8), columns=(8, 2, 2)).structure) / 1024
    even = cls.fit(target, budget, rows=(2, 4, 4), columns=(2, 4, 4))
    found = cls.fit(target, budget, cores=3)
    assert found.error < even.error - 0.02
    assert found.predicted == pytest.approx(found.error, abs=1e-6)
    assert stored_numbers(found.structure) <= budget * 1024
    half = cls.fit(target, budget, rows=(2, 4, 4))  # the other side is free
    assert half.structure.exact_size()["rows"] == (2, 4, 4)
    assert half.error <= even.error + 1e-9
    hurried = cls.fit(target, budget, cores=3, seconds=1e-9)
    assert hurried.error == pytest.approx(even.error)
    exact = cls.fit(target, rank=2, cores=3).structure.exact_size()
    assert exact["rows"] == exact["columns"] == (2, 4, 4)  # a rank goes with the even split


@BOTH
def test_a_budget_no_split_fits_names_the_least_of_them(cls):
    with pytest.raises(BudgetError, match="below the smallest member") as caught:
        cls.fit(normal(32, 32), 0.01, cores=3)
    small = caught.value.smallest
    assert cls.fit(normal(32, 32), small, cores=3).error < 1
    with pytest.raises(BudgetError, match="below the smallest member"):
        cls.fit(normal(32, 32), small * 0.99, cores=3)
