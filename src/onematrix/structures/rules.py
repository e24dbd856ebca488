"""Identities of products and sums, keyed by the exact types of both sides (classes are final).

Each rule returns a structure equal to the plain Product or Sum, with no more multiply-adds and no more
stored numbers; the tests prove that on all example pairs. A fixed ratio moves to the outside of a product,
its one place, even where that is a few multiply-adds dearer.
"""

from collections.abc import Callable
from fractions import Fraction

from onematrix.errors import ShapeError
from onematrix.structures.algebra import BlockDiagonal, Product, Sum
from onematrix.structures.base import Structure
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Scaled, Zero, scale
from onematrix.structures.low_rank import LowRank
from onematrix.structures.permutation import Permutation, Selection

Rule = Callable[..., Structure]

PRODUCTS: dict[tuple[type[Structure], type[Structure]], Rule] = {
    (Diagonal, Diagonal): lambda a, b: Diagonal(a.vector * b.vector),
    (Diagonal, Dense): lambda a, b: Dense(a.vector[:, None] * b.weight),
    (Dense, Diagonal): lambda a, b: Dense(a.weight * b.vector),
    (Diagonal, LowRank): lambda a, b: LowRank(a.vector[:, None] * b.left, b.right),
    (LowRank, Diagonal): lambda a, b: LowRank(a.left, a.right * b.vector),
    (Permutation, Permutation): lambda a, b: Permutation(b.index[a.index.long()]),
    (Permutation, Dense): lambda a, b: Dense(b.weight[a.index.long()]),
    (Selection, Selection): lambda a, b: Selection(b.index[a.index.long()], b.columns),
    (Selection, Permutation): lambda a, b: Selection(b.index[a.index.long()], len(b.index)),
    (BlockDiagonal, BlockDiagonal): lambda a, b: _blockwise(a, b),
}

SUMS: dict[tuple[type[Structure], type[Structure]], Rule] = {
    (Dense, Dense): lambda a, b: Dense(a.weight + b.weight),
    (Diagonal, Diagonal): lambda a, b: Diagonal(a.vector + b.vector),
    (Sum, Sum): lambda a, b: Sum(a.terms + b.terms),
}


def multiply(a: Structure, b: Structure) -> Structure:
    """A B by the cheapest known identity; Product(A, B) where none applies.

    >>> multiply(Identity(3), Zero(3, 2)).name
    'zero'
    """
    if a.shape[1] != b.shape[0]:
        raise ShapeError(f"multiply: {a.name} {a.shape} and {b.name} {b.shape} do not chain")
    if isinstance(a, Zero) or isinstance(b, Zero):
        return Zero(a.shape[0], b.shape[1])
    if isinstance(a, Identity):
        return b
    if isinstance(b, Identity):
        return a
    if isinstance(a, Scaled):
        return scale(multiply(a.inner, b), Fraction(a.numerator, a.denominator))
    if isinstance(b, Scaled):
        return scale(multiply(a, b.inner), Fraction(b.numerator, b.denominator))
    rule = PRODUCTS.get((type(a), type(b)))
    return Product(a, b) if rule is None else rule(a, b)


def add(a: Structure, b: Structure) -> Structure:
    """A + B by the cheapest known identity; Sum((A, B)) where none applies.

    >>> add(Identity(3), Identity(3)).factor
    2.0
    """
    if a.shape != b.shape:
        raise ShapeError(f"add: {a.name} {a.shape} and {b.name} {b.shape} differ in shape")
    if isinstance(a, Zero):
        return b
    if isinstance(b, Zero):
        return a
    if isinstance(a, Identity) and isinstance(b, Identity):
        return scale(a, 2)
    rule = SUMS.get((type(a), type(b)))
    return Sum((a, b)) if rule is None else rule(a, b)


def _blockwise(a: BlockDiagonal, b: BlockDiagonal) -> Structure:
    if [t.shape[1] for t in a.terms] != [t.shape[0] for t in b.terms]:
        return Product(a, b)
    return BlockDiagonal(tuple(multiply(x, y) for x, y in zip(a.terms, b.terms, strict=True)))
