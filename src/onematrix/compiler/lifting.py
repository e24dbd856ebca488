"""Lifting: a value of every tick as one value over all ticks, computed outside the loop.

The lifted value of shape (over, *shape) comes from the same row with its blocks on the last dimensions, so that
one product serves all ticks. Values that hold for every tick are read as they are and repeated.
"""

from collections.abc import Callable
from fractions import Fraction

from onematrix.compiler.canonical import IDENTITY
from onematrix.compiler.graph import (
    Given,
    Region,
    Result,
    Row,
    Sum,
    Term,
    Value,
    operands,
    postorder,
    scopes_of,
)
from onematrix.compiler.places import is_constant
from onematrix.errors import ShapeError
from onematrix.programs.block_matrix import Block, check_fit, operand_shape
from onematrix.programs.joins import Join, contraction_axes
from onematrix.programs.part import Part
from onematrix.structures.identity import Identity
from onematrix.structures.sizes import Size

Leaf = Callable[[Value], Value | None]
ELEMENTWISE = ("hadamard", "maximum", "minimum", "divide", "select")


class Body:
    """Which values of a loop's body change from tick to tick, and whether by the state or the inputs alone."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.values = postorder(region.outs())
        self.inner: set[int] = set()  # depends on the tick
        self.varying: set[int] = set()  # depends on the state before the tick, or is drawn
        nested = {v.region.scope for v in self.values if isinstance(v, Result)}
        scopes = scopes_of(self.values)
        self.deeper = {id(v) for v in self.values if scopes[id(v)] & nested}  # of a tick of a loop inside
        for value in self.values:
            self._classify(value)

    def _classify(self, value: Value) -> None:
        below = operands(value)
        if isinstance(value, Given) and value.role == "noise":
            if value.scope is not None and self.region.scope in value.scope.chain():
                self.inner.add(id(value))
                self.varying.add(id(value))
            return
        if isinstance(value, Given) and value.scope is self.region.scope:
            self.inner.add(id(value))
            if value.role == "carried":
                self.varying.add(id(value))
            return
        if any(id(v) in self.inner for v in below):
            self.inner.add(id(value))
        if any(id(v) in self.varying for v in below):
            self.varying.add(id(value))

    def free(self, value: Value) -> bool:
        """Whether the value changes with the inputs of the tick alone."""
        return id(value) in self.inner and id(value) not in self.varying and id(value) not in self.deeper

    def whole(self, value: Value) -> bool:
        """Whether the value is the same at every tick."""
        return id(value) not in self.inner and id(value) not in self.deeper


class Lift:
    """Lifts values of one loop; `leaf` gives the series of a value no row of the loop computes from others."""

    def __init__(self, body: Body, length: Size, leaf: Leaf) -> None:
        self.body, self.length, self.leaf = body, length, leaf
        self.memo: dict[int, Value | None] = {}

    def part(self, part: Part) -> Part:
        """The part over all ticks."""
        return Part((self.length, *part.shape), part.kind, part.dtype)

    def value(self, value: Value) -> Value | None:
        """The lifted value of an inner value; None where there is none."""
        for v in postorder([value]):  # operands first: no deep recursion
            if id(v) in self.body.inner and id(v) not in self.memo:
                self.memo[id(v)] = None if id(v) in self.body.deeper else self._lift(v)
        return self.memo[id(value)]

    def _lift(self, value: Value) -> Value | None:
        found = self.leaf(value)
        if found is not None or not isinstance(value, Row):
            return found
        return self.row(value)

    def row(self, row: Row) -> Row | None:
        """The lifted row, its inner operands lifted already."""
        if row.part.kind == "index":
            return None
        join, own = row.join, row.join is not None and row.join.keeps_operand_shapes
        if join is not None and join.pattern is None and join.name not in ELEMENTWISE:
            return None
        part = self.part(row.part)
        sums = []
        for terms in row.sums:
            lifted = self._operand(terms) if own else self._sum(terms, part)
            if lifted is None:
                return None
            sums.append(lifted)
        if join is not None and join.pattern is not None:
            join = self._pattern(join, row)
        return Row(row.name, part, tuple(sums), row.activation, join)

    def _sum(self, terms: Sum, part: Part) -> Sum | None:
        found = [self._term(term, part) for term in terms]
        return None if any(term is None for term in found) else tuple(t for t in found if t is not None)

    def _term(self, term: Term, part: Part) -> Term | None:
        value = term.value
        if id(value) in self.body.inner:
            lifted = self.memo[id(value)]
            if lifted is None:
                return None
            if term.block is None:
                return Term(term.ratio, None, lifted)
            block = Block(term.block.structure, "last")
        elif id(value) in self.body.deeper:
            return None
        else:
            term, lifted = _constant(term), _constant(term).value
            a = Identity(lifted.part.features) if term.block is None else term.block.structure
            block = Block(a, "last")
        return Term(term.ratio, block, lifted) if _fits(block, part, lifted.part) else None

    def _operand(self, terms: Sum) -> Sum | None:
        if len(terms) != 1:
            return None
        term = terms[0]
        if self.body.whole(term.value):
            return terms
        if id(term.value) in self.body.deeper:
            return None
        lifted = self.memo[id(term.value)]
        if lifted is None:
            return None
        if term.block is None:
            return (Term(term.ratio, None, lifted),)
        block = Block(term.block.structure, "last")
        try:
            before = operand_shape("lift", term.block, term.value.part)
            after = operand_shape("lift", block, lifted.part)
        except ShapeError:
            return None
        return (Term(term.ratio, block, lifted),) if after == (self.length, *before) else None

    def _pattern(self, join: Join, row: Row) -> Join:
        """The contraction with one more axis on the operands that change, and on the result."""
        left, right = contraction_axes(join.pattern or "")
        axis = next(a for a in ("t", *(f"t{i}" for i in range(99))) if not any(a in names for names in left))
        inner = [any(id(t.value) in self.body.inner for t in terms) for terms in row.sums]
        texts = [" ".join([axis, *names] if i else names) for names, i in zip(left, inner, strict=True)]
        return Join("einsum", pattern=f"{', '.join(texts)} -> {' '.join([axis, *right])}")


def _constant(term: Term) -> Term:
    """A multiple of a block from the constant part as the one block it is."""
    while term.block is None and is_constant(term.value) and isinstance(term.value, Row):
        inner = term.value.sums[0][0]
        term = Term(term.ratio * inner.ratio, inner.block, inner.value)
    return term


def _fits(block: Block, target: Part, source: Part) -> bool:
    try:
        check_fit("lift", block, target, source)
    except ShapeError:
        return False
    return True


def series_of(peeled: Given, over: str) -> Value | None:
    """The outer value whose ticks a peeled value is, where the ticks come first."""
    source = peeled.source
    if source is None or peeled.part.kind != source.part.kind:
        return None
    if source.part.shape == (over, *peeled.part.shape):
        return source
    plain = source.part.kind == "real" and source.part.dtype is None
    if plain and source.part.shape == (over,) and peeled.part.shape == (1,):
        block = Block(Identity(over))
        sums = ((Term(Fraction(1), block, source),),)
        return Row(peeled.name, Part((over, 1)), sums, IDENTITY, None)
    return None
