"""Values no structure can have: each is refused when it is made, with its numbers in the message."""

import pytest
import torch

import onematrix as om
from onematrix.errors import ShapeError
from onematrix.structures import STRUCTURES
from onematrix.structures.algebra import HorizontalStack, Product, Sum, VerticalStack
from onematrix.structures.block_sparse import BlockSparse
from onematrix.structures.compressed import CSC, CSR
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Ones, Scaled, Zero, scale
from onematrix.structures.low_rank import LowRank
from onematrix.structures.masked import Masked
from onematrix.structures.permutation import Permutation, Selection
from onematrix.structures.sizes import evaluate_size
from structure_cases import examples, generator, near, normal


def integers(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def dense(m: int, n: int) -> Dense:
    return Dense(torch.ones(m, n))


REFUSED = [
    (lambda: Dense(torch.ones(3)), r"dense\.weight: two dimensions were needed, got shape \(3,\)"),
    (lambda: Dense(3.5), r"dense\.weight: a tensor, structure, int, str or bool was needed, got float"),
    (lambda: Diagonal(torch.ones(2, 2)), r"diagonal\.vector: one dimension was needed, got \(2, 2\)"),
    (lambda: LowRank(torch.ones(3, 2), torch.ones(1, 4)), r"were needed, got \(3, 2\) and \(1, 4\)"),
    (lambda: Masked(torch.ones(2), integers(0), 2, 2), r"2 values need 2 integer positions.*\(1,\)"),
    (lambda: Masked(torch.ones(1), torch.ones(1), 2, 2), r"integer positions, got torch\.float32"),
    (lambda: Masked(torch.ones(2), integers(1, 4), 2, 2), r"positions: 0\.\.3 needed, got 1\.\.4"),
    (lambda: Masked(torch.ones(2), integers(1, 1), 2, 2), "2 different positions needed, only 1 differ"),
    (lambda: Permutation(torch.ones(2)), r"an integer vector was needed, got torch\.float32 \(2,\)"),
    (lambda: Selection(integers(0, 3), 3), r"selection\.index: indices must lie in 0\.\.2, got 0\.\.3"),
    (lambda: Selection(integers(-1, 2), 3), r"indices must lie in 0\.\.2, got -1\.\.2"),
    (lambda: CSR(torch.ones(2), integers(0, 3, 2), integers(0, 1), 2), "pointers must rise from 0 to 2"),
    (
        lambda: CSR(torch.ones(1), integers(1, 1), integers(0), 2),
        r"pointers must rise from 0 to 1, got 1\.\.1",
    ),
    (
        lambda: CSC(torch.ones(1), integers(0, 1), integers(2), 2),
        r"csc: indices must lie in 0\.\.1, got 2\.\.2",
    ),
    (lambda: CSC(torch.ones(1), integers(0), integers(0), 2), r"1 values need 1 indices.*\(1,\) and \(1,\)"),
    (lambda: BlockSparse(torch.ones(2, 2), integers(0), integers(0), 2, 2), r"\(K, p, q\) was needed, got"),
    (
        lambda: BlockSparse(torch.ones(1, 2, 3), integers(0), integers(0), 4, 4),
        "tiles 2×3 do not divide 4×4",
    ),
    (
        lambda: BlockSparse(torch.ones(1, 2, 2), integers(0, 1), integers(0), 4, 4),
        r"1 tiles need 1 integer rows and columns, got torch\.int64 \(2,\)",
    ),
    (
        lambda: BlockSparse(torch.ones(1, 2, 2), integers(0), integers(2), 4, 4),
        r"grid places must lie in 0\.\.1, got 2\.\.2",
    ),
    (lambda: Identity(0), "identity: a size of at least 1 was needed, got 0"),
    (lambda: Zero(2, -1), "zero: a size of at least 1 was needed, got -1"),
    (lambda: Ones(True, 1), "ones: a size of at least 1 was needed, got True"),
    (lambda: Scaled(Identity(2), 1, 0), "a denominator of at least 1 was needed, got 0"),
    (lambda: scale(Identity(2), float("inf")), "a finite factor was needed, got inf"),
    (lambda: Product(dense(2, 3), dense(4, 2)), "inner sizes differ: dense 2×3, dense 4×2"),
    (lambda: Sum((dense(2, 3), dense(3, 2))), "sum: shapes differ: dense 2×3, dense 3×2"),
    (lambda: Sum((1,)), r"sum\.terms: a tuple of one or more structures was needed, got \(1,\)"),
    (lambda: VerticalStack((dense(2, 3), dense(2, 4))), "numbers of columns differ: dense 2×3, dense 2×4"),
    (lambda: HorizontalStack((dense(2, 3), dense(3, 3))), "numbers of rows differ: dense 2×3, dense 3×3"),
    (lambda: evaluate_size("time +", {}), r"size 'time \+' is no expression of named sizes"),
    (lambda: evaluate_size("time ** 2", {"time": 2}), r"only names, integers, \+ - \* // and parentheses"),
    (lambda: Permutation.random(2, 3), "permutation is square, got 2×3"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(ShapeError, match=message):
        make()


@pytest.mark.parametrize("name", ["csr", "csc", "masked", "block_sparse"])
def test_a_diagonal_gram_makes_the_kept_entries_the_best(name):
    """With a diagonal gram every entry counts w_ij² G_jj: dropping any kept one for another is no better."""
    target, weight = normal(4, 6), torch.tensor([1.0, 9.0, 1.0, 4.0, 1.0, 25.0]).double()
    size = {"blocks": 3, "tile": (2, 2)} if name == "block_sparse" else {"nonzeros": 7}
    kept = om.fit(target, name, gram=torch.diag(weight), **size).to_dense() != 0
    score = target.square() * weight
    if name == "block_sparse":
        score = score.reshape(2, 2, 3, 2).sum((1, 3))
        kept = kept.reshape(2, 2, 3, 2).all(3).all(1)
    assert int(kept.sum()) == next(iter(size.values()))
    assert score[kept].min() >= score[~kept].max()


@pytest.mark.parametrize("cls", [Diagonal, LowRank])
def test_directions_no_input_excites_are_left_finite(cls):
    gram = torch.diag(torch.tensor([4.0, 0.0, 1.0]).double())
    found = (
        cls.fit(normal(3, 3), 1.0, gram=gram) if cls is Diagonal else cls.fit(normal(3, 3), gram=gram, rank=1)
    )
    assert found.structure.to_dense().isfinite().all()
    assert found.error < 1


def test_fitting_zero_is_exact():
    for name in ("csr", "csc", "masked", "block_sparse", "diagonal", "low_rank", "dense"):
        found = STRUCTURES[name].fit(torch.zeros(4, 4), 1.0)
        assert (found.error, found.predicted) == (0.0, 0.0)
        near(found.structure.to_dense(), torch.zeros(4, 4), torch.float32)


def test_a_fit_does_not_follow_later_changes_of_the_matrix():
    for name in ("csr", "csc", "masked", "block_sparse", "diagonal", "low_rank", "dense"):
        target = normal(4, 4)
        a = om.fit(target, name, budget=1.0)
        before = a.to_dense()
        target.zero_()
        assert torch.equal(a.to_dense(), before), name


def test_members_with_named_sizes_can_be_fixed_inside_others():
    a = Product(Zero("time", 3), examples(Dense)[1].transpose())
    assert a.shape == ("time", 5)
    assert a.at(time=4).matmul(normal(2, 5)).shape == (2, 4)
    assert CSR.random(3, 4, nonzeros=5, generator=generator()).nonzeros() == 5
