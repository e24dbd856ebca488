"""What no structure accepts: every structure refuses it, with its name and the values in the message."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

import onematrix as om
from onematrix.errors import BudgetError, DTypeError, FitError, FormatError, OneMatrixError, ShapeError
from onematrix.structures import STRUCTURES
from onematrix.structures.base import fittable, randomisable
from onematrix.structures.blast import Blast
from onematrix.structures.definition import define, forget
from onematrix.structures.low_rank import LowRank
from onematrix.structures.tree import effective_weight, leaves, map_tensors
from structure_cases import generator, normal

FITTED = [name for name in fittable() if not hasattr(STRUCTURES[name], "definition")]
DRAWN = [name for name in randomisable() if not hasattr(STRUCTURES[name], "definition")]
RANKED = [
    name
    for name in FITTED
    if {"rank", "factors"} & next(STRUCTURES[name].examples(generator())).exact_size().keys()
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
    for name in RANKED:
        with pytest.raises(
            FitError, match=rf"{name}: rank must be at least 1, got {rank!r}; it is an integer"
        ):
            STRUCTURES[name].random(12, 12, rank=rank)
    for name in ("tensor_train", "block_tensor_train"):
        with pytest.raises(
            FitError, match=rf"{name}: rank must be at least 1, got {rank!r}; it is an integer"
        ):
            STRUCTURES[name].random(12, 12, rank=rank, rows=(2, 2, 3), columns=(2, 2, 3))


@pytest.mark.parametrize("name", RANKED)
def test_a_rank_above_the_largest_of_use_is_refused_with_that_rank(name):
    """At the bound every matrix is a member, so that more would store numbers that change nothing."""
    cls, dense = STRUCTURES[name], normal(12, 12)
    message = rf"{name} 12×12: rank (\d+) is above (\d+), the largest of use.*; ask for \2 or less"
    for make in (lambda r: cls.fit(dense, rank=r).structure, lambda r: cls.random(12, 12, rank=r)):
        with pytest.raises(FitError, match=message) as caught:
            make(1000)
        bound = caught.value.needed
        assert caught.value.got == 1000
        make(bound)
        with pytest.raises(FitError, match=message) as caught:
            make(bound + 1)
        assert (caught.value.got, caught.value.needed) == (bound + 1, bound)
    assert cls.fit(dense, rank=bound).error < 1e-10
    if name != "blast":  # its members one rank below have more numbers than the matrix
        assert cls.fit(dense, rank=bound - 1).error > 1e-3


def test_blast_takes_ranks_above_the_size_of_its_blocks():
    for rank in (3, 4, 12):
        assert Blast.random(12, 12, rank=rank, blocks=(4, 4)).rank == rank
    with pytest.raises(
        FitError, match=r"blast 12×12: rank 13 is above 12, the largest of use on 4 × 4 blocks"
    ):
        Blast.random(12, 12, rank=13, blocks=(4, 4))
    with pytest.raises(
        FitError, match=r"blast 4×9: rank 13 is above 9, .*other sizes with blocks=\(b1, b2\)"
    ):
        Blast.fit(normal(4, 9), rank=13, blocks=(1, 9))


def test_one_rank_for_several_cores_is_that_of_those_it_is_of_use_to():
    sides = {"rows": (2, 2, 2), "columns": (2, 2, 2)}
    ranks = {"tensor_train": ((3, 3), (4, 4)), "block_tensor_train": ((2, 2), (2, 2))}
    for name, (below, highest) in ranks.items():
        cls = STRUCTURES[name]
        assert cls.random(8, 8, rank=below[0], **sides).exact_size()["rank"] == below
        with pytest.raises(FitError, match=rf"{name} 8×8: rank 9 is above {highest[0]}, .*rows \(2, 2, 2\)"):
            cls.fit(normal(8, 8), rank=9, **sides)
        with pytest.raises(
            FitError, match=rf"{name} 8×8: r2 = 9 is above {highest[1]}, the largest of use with"
        ):
            cls.fit(normal(8, 8), rank=(2, 9), **sides)
    uneven = STRUCTURES["tensor_train"].random(32, 32, rows=(2, 4, 4), columns=(2, 4, 4), rank=9)
    assert uneven.ranks == (1, 4, 9, 1)


@pytest.mark.parametrize("name", RANKED)
def test_a_member_made_by_hand_has_a_size_that_can_be_asked_for(name):
    """Numbers beyond the largest rank of use may stand in a value; `exact_size` leaves them out."""
    for a in STRUCTURES[name].examples(generator()):
        m, n = a.fixed_shape
        assert STRUCTURES[name].random(m, n, **a.exact_size()).exact_size() == a.exact_size()


COUNTED = [
    ("csr", {"nonzeros": 145}, r"csr 12×12: nonzeros must lie in 1\.\.144, got 145"),
    ("csc", {"nonzeros": 0}, r"csc 12×12: nonzeros must lie in 1\.\.144, got 0"),
    ("masked", {"nonzeros": 145}, r"masked 12×12: nonzeros must lie in 1\.\.144, got 145"),
    (
        "block_sparse",
        {"blocks": 17, "tile": (3, 3)},
        r"block_sparse 12×12: blocks must lie in 1\.\.16, got 17",
    ),
    (
        "butterfly",
        {"block": 5},
        r"butterfly 12×12: block=5 does not divide both; usable: \[1, 2, 3, 4, 6, 12\]",
    ),
    (
        "kronecker",
        {"left": (5, 2)},
        r"kronecker: left=\(m1, n1\), rows=\(5, 2\) multiply to 10, the size is 12",
    ),
]


@pytest.mark.parametrize(("name", "size", "message"), COUNTED)
def test_sizes_no_member_has_are_refused(name, size, message):
    for make in (
        lambda: STRUCTURES[name].fit(normal(12, 12), **size),
        lambda: STRUCTURES[name].random(12, 12, **size),
    ):
        with pytest.raises(OneMatrixError, match=message):
            make()


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


@pytest.mark.parametrize("name", DRAWN)
def test_random_members_without_entries_are_refused(name):
    for m, n in ((0, 12), (12, 0), (0, 0)):
        with pytest.raises(OneMatrixError, match=rf"{m}(×|, ){n}|more than the 0 of dense"):
            STRUCTURES[name].random(m, n)


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("budget", [0.0, -0.5, 1.5, math.nan, True, "0.2"])
def test_budgets_outside_zero_to_one_are_refused(name, budget):
    cls, message = (
        STRUCTURES[name],
        rf"{name}: budget must lie in \(0, 1\] .*, got {budget!r}; 0\.2 keeps one",
    )
    with pytest.raises(BudgetError, match=message):
        cls.random(12, 12, budget)
    if name in FITTED:
        with pytest.raises(BudgetError, match=message):
            cls.fit(normal(12, 12), budget)


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


@pytest.mark.parametrize("name", sorted(STRUCTURES))
def test_numbers_unlike_the_others_are_refused_by_every_structure(name):
    """When the value is made, or by its product where it holds structures of other kinds."""

    def unlike(a, which, change):
        places = itertools.count()
        return map_tensors(a, lambda t: change(t) if next(places) == which else t)

    for a in STRUCTURES[name].examples(generator()):
        floating = [t.is_floating_point() for _, t in leaves(a)]
        for which, is_number in enumerate(floating):
            if not is_number:
                continue
            with pytest.raises(DTypeError, match=r"real numbers were needed, got torch\.complex128"):
                unlike(a, which, lambda t: t.to(torch.complex128))
            if sum(floating) > 1:
                with pytest.raises(DTypeError, match=r"torch\.float32.*; convert one of them with \.to"):
                    unlike(a, which, lambda t: t.float()).matmul(normal(2, a.fixed_shape[1]))


@pytest.mark.parametrize("name", ["tensor_train", "block_tensor_train", "butterfly", "canonical"])
def test_cores_on_several_devices_are_refused_when_they_are_put_together(name):
    a = list(STRUCTURES[name].examples(generator()))[1]
    what = "modes" if name == "canonical" else "cores"
    message = (
        rf"{name}: {what}\.0\.weight is torch.float64 on cpu, {what}\.1\.weight is torch.float64 on meta"
    )
    first, second, *rest = getattr(a, what)
    moved = map_tensors(second, lambda t: t.to("meta"))
    with pytest.raises(DTypeError, match=message):
        replace(a, **{what: (first, moved, *rest)})


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
        for make in (lambda **size: cls.fit(normal(8, 4), **size), lambda **size: cls.random(8, 4, **size)):
            with pytest.raises(FitError, match=r"test_bad_input 8×4: rank 5 is above 4, the largest of use"):
                make(rank=5)
            with pytest.raises(
                FitError, match=r"axis 'r' = 5 is above 4, .*other sizes with sizes="
            ) as caught:
                make(sizes={"r": 5})
            assert (caught.value.needed, caught.value.got) == (4, 5)
        assert cls.fit(normal(8, 4), rank=4).error < 1e-10
        assert cls(torch.ones(2, 4, 9), torch.ones(9, 4)).exact_size()["sizes"]["r"] == 4
        with pytest.raises(FitError, match="rank must be at least 1, got 0"):
            cls.random(8, 4, rank=0)
        with pytest.raises(
            FitError, match=r"test_bad_input: a non-empty matrix was needed, got shape \(0, 4\)"
        ):
            cls.fit(torch.ones(0, 4))
    finally:
        forget("test_bad_input")
