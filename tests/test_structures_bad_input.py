"""What no structure accepts: every structure refuses it, with its name and the values in the message."""

import math

import pytest
import torch

import onematrix as om
from onematrix.errors import BudgetError, DTypeError, FitError, FormatError, OneMatrixError, ShapeError
from onematrix.structures import STRUCTURES
from onematrix.structures.base import fittable, randomisable
from onematrix.structures.blast import Blast
from onematrix.structures.definition import define, forget
from onematrix.structures.low_rank import LowRank
from onematrix.structures.tree import effective_weight
from structure_cases import generator, normal

FITTED = [name for name in fittable() if not hasattr(STRUCTURES[name], "definition")]
DRAWN = [name for name in randomisable() if not hasattr(STRUCTURES[name], "definition")]
RANKED = [
    "blast",
    "block_kronecker",
    "block_tensor_train",
    "canonical",
    "low_rank",
    "monarch",
    "tensor_train",
]
SPLIT = [
    "block_kronecker",
    "block_tensor_train",
    "butterfly",
    "canonical",
    "kronecker",
    "monarch",
    "tensor_train",
]
SQUARE = ["circulant", "diagonal"]

every_fit = pytest.mark.parametrize("name", FITTED)


@pytest.mark.parametrize("name", SPLIT)
def test_prime_sizes_are_refused_with_sizes_that_split(name):
    for make in (
        lambda: STRUCTURES[name].fit(normal(7, 11), 0.9),
        lambda: STRUCTURES[name].random(7, 11, 0.9),
    ):
        with pytest.raises(FitError, match=rf"{name} 7×11: the sizes do not split .*7 is prime .*: 8, 9"):
            make()


@pytest.mark.parametrize("name", SQUARE)
def test_oblong_matrices_are_refused_by_square_structures(name):
    for make in (
        lambda: STRUCTURES[name].fit(normal(7, 11), 0.9),
        lambda: STRUCTURES[name].random(7, 11, 0.9),
    ):
        with pytest.raises(FitError, match=f"{name} is square, the matrix is 7×11"):
            make()


def test_blast_refuses_sizes_no_grid_divides():
    for make in (lambda: Blast.fit(normal(7, 11), 0.9), lambda: Blast.random(7, 11, 0.9)):
        with pytest.raises(
            FitError, match=r"blast 7×11: no grid of 2 to 16 blocks a side divides it; pad it"
        ):
            make()
    with pytest.raises(
        FitError, match=r"blast 8×12: blocks=\(3, 4\) does not divide it; 1, 2, 4, 8 divide 8"
    ):
        Blast.random(8, 12, rank=1, blocks=(3, 4))


@pytest.mark.parametrize("name", RANKED)
@pytest.mark.parametrize("rank", [0, -1])
def test_ranks_below_one_are_refused(name, rank):
    for make in (
        lambda: STRUCTURES[name].fit(normal(12, 12), rank=rank),
        lambda: STRUCTURES[name].random(12, 12, rank=rank),
    ):
        with pytest.raises(FitError, match=f"{name}: rank must be at least 1, got {rank}"):
            make()


@pytest.mark.parametrize("rank", [1.5, True, "2"])
def test_ranks_that_are_no_positive_integers_are_refused(rank):
    with pytest.raises(
        FitError, match=r"low_rank: rank must be at least 1, got .*; it is an integer"
    ) as caught:
        LowRank.fit(normal(12, 12), rank=rank)
    assert caught.value.got == rank


@pytest.mark.parametrize("name", [name for name in RANKED if name not in ("canonical", "blast")])
def test_a_rank_above_the_bound_is_the_bound_and_loses_nothing(name):
    """From the bound on every matrix is a member, so more would store numbers that change nothing."""
    dense = normal(12, 12)
    found = STRUCTURES[name].fit(dense, rank=1000)
    assert found.error < 1e-10
    assert effective_weight(found.structure) <= 2
    drawn = STRUCTURES[name].random(12, 12, rank=1000, generator=generator())
    assert effective_weight(drawn) <= 2


@every_fit
def test_a_budget_below_the_minimum_names_the_smallest_possible(name):
    with pytest.raises(
        BudgetError, match=rf"{name} 12×12: budget 0\.001 .*; ask for budget=\S+ or more"
    ) as caught:
        STRUCTURES[name].fit(normal(12, 12), 0.001)
    smallest = caught.value.smallest
    assert f"budget={smallest!r}" in str(caught.value)
    assert effective_weight(STRUCTURES[name].fit(normal(12, 12), smallest).structure) <= smallest
    if name in DRAWN:
        with pytest.raises(BudgetError, match=rf"{name} 12×12: budget 0\.001 .*ask for budget=") as caught:
            STRUCTURES[name].random(12, 12, 0.001)
        assert (
            effective_weight(STRUCTURES[name].random(12, 12, caught.value.smallest)) <= caught.value.smallest
        )


@every_fit
def test_entries_that_are_no_real_numbers_are_refused(name):
    fit, dense = STRUCTURES[name].fit, normal(12, 12)
    for bad in (math.nan, math.inf, -math.inf):
        broken = dense.clone()
        broken[2, 3] = bad
        with pytest.raises(FitError, match=f"{name}: 1 of 144 entries are nan or infinite"):
            fit(broken, 1.0)
    for dtype in (torch.complex64, torch.int32, torch.bool):
        with pytest.raises(FitError, match=rf"{name}: a real matrix was needed, got {dtype}; convert it"):
            fit(dense.to(dtype), 1.0)
    with pytest.raises(
        FitError, match=f"{name}: a matrix with numbers was needed, got one on the meta device"
    ):
        fit(dense.to("meta"), 1.0)


@every_fit
def test_empty_matrices_are_refused(name):
    for shape in ((0, 3), (3, 0), (0, 0), (5,), (2, 2, 2)):
        with pytest.raises(
            FitError, match=f"{name}: a non-empty matrix was needed, got shape {'.'}"
        ) as caught:
            STRUCTURES[name].fit(torch.ones(shape), 1.0)
        assert str(shape) in str(caught.value)


@pytest.mark.parametrize("name", [name for name in DRAWN if name != "permutation"])
def test_random_members_without_entries_are_refused(name):
    for m, n in ((0, 12), (12, 0), (0, 0)):
        with pytest.raises(OneMatrixError, match=rf"{m}(×|, ){n}|more than the 0 of dense"):
            STRUCTURES[name].random(m, n)


@every_fit
def test_weights_of_the_error_that_are_no_real_numbers_are_refused(name):
    fit, dense = STRUCTURES[name].fit, normal(12, 12)
    with pytest.raises(FitError, match=rf"{name}: gram must be 12×12 \(XᵀX of the inputs\), got \(11, 11\)"):
        fit(dense, 1.0, gram=torch.eye(11))
    with pytest.raises(FitError, match=f"{name}: 144 of 144 entries of gram are nan or infinite") as caught:
        fit(dense, 1.0, gram=torch.full((12, 12), math.nan))
    assert caught.value.bad == 144
    for gram in (torch.eye(12, dtype=torch.complex64), torch.eye(12, dtype=torch.int64)):
        with pytest.raises(
            FitError, match=rf"{name}: gram must be real and on cpu .*, got {gram.dtype} on cpu"
        ):
            fit(dense, 1.0, gram=gram)
    with pytest.raises(
        FitError, match=r"gram must be real and on cpu as the matrix is, got torch.float32 on meta"
    ):
        fit(dense, 1.0, gram=torch.eye(12, device="meta"))


def test_numbers_of_mixed_kinds_are_refused_when_a_structure_is_made():
    one, row = torch.ones(2, 1), torch.ones(1, 3)
    with pytest.raises(
        DTypeError, match=r"low_rank: left is torch.float32 on cpu, right is torch.float64 on cpu"
    ):
        LowRank(one, row.double())
    with pytest.raises(
        DTypeError, match=r"left is torch.float32 on cpu, right is torch.float32 on meta; convert"
    ):
        LowRank(one, row.to("meta"))
    with pytest.raises(
        DTypeError, match=r"low_rank\.left: real numbers were needed, got torch.complex64"
    ) as caught:
        LowRank(one.to(torch.complex64), row)
    assert caught.value.got == torch.complex64
    with pytest.raises(
        DTypeError, match=r"blast: left is torch.float32 on cpu, coupling is torch.bfloat16 on cpu"
    ):
        Blast(torch.ones(2, 3, 5), torch.ones(5, 2, 4).bfloat16(), torch.ones(4, 5, 2))


@pytest.mark.parametrize("name", [name for name in DRAWN if name != "permutation"])
def test_inputs_of_another_dtype_or_width_are_refused(name):
    a = STRUCTURES[name].random(12, 12, generator=generator())
    for dtype in (torch.float64, torch.int64, torch.complex64):
        with pytest.raises(DTypeError, match=rf"weights are torch\.float32, input is {dtype}; convert one"):
            a.matmul(torch.ones(12, dtype=dtype))
    with pytest.raises(ShapeError, match=rf"{name} is 12×12: input must end in 12, got \(2, 11\)"):
        a.matmul(torch.ones(2, 11))


DEFINITIONS = [
    ("i r r, r j -> i j", "core0 repeats axis 'r'"),
    ("i r, r j -> (i i) j", "the matrix repeats axis 'i'"),
    ("i r s, r j -> i j", "axis 's' is in one core alone and not in the matrix: it is lost"),
    ("i r, r j -> i (j k)", "no core has axis 'k' of the matrix"),
    ("u[i r], u[r j] -> i j", "core 'u' is used 2 times; the matrix must be linear in every"),
]


@pytest.mark.parametrize(("pattern", "message"), DEFINITIONS)
def test_definitions_that_repeat_lose_or_are_not_linear_are_refused(pattern, message):
    with pytest.raises(FormatError, match=message):
        define("test_bad_definition", pattern)
    assert "test_bad_definition" not in STRUCTURES


def test_defined_structures_refuse_the_same():
    cls = define("test_bad_input", "u[i p r], v[r j] -> (i p) (j)")
    try:
        with pytest.raises(
            FitError, match=r"7 is no product of 2 sizes \(i p\) of at least 2; pad the matrix"
        ):
            om.fit(normal(7, 4), "test_bad_input", budget=1.0)
        with pytest.raises(
            BudgetError, match=r"budget 0\.01 is below the smallest member .*; ask for budget="
        ):
            om.fit(normal(8, 8), "test_bad_input", budget=0.01)
        assert cls.fit(normal(8, 4), rank=1000).structure.sizes["r"] == 4
        assert cls.random(8, 4, rank=1000).sizes["r"] == 4
        with pytest.raises(FitError, match="rank must be at least 1, got 0"):
            cls.random(8, 4, rank=0)
        with pytest.raises(
            FitError, match=r"test_bad_input: a non-empty matrix was needed, got shape \(0, 4\)"
        ):
            cls.fit(torch.ones(0, 4))
    finally:
        forget("test_bad_input")
