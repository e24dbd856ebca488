"""Canonical form: sums over shared values with rational factors, without identities, zeros and ones.

Linear normal form: a row of identity blocks alone is replaced by its terms where that lets terms meet, as in
½c + ½c = c. Every product A v of a structure is a value of its own, so that equal products are one.
"""

from fractions import Fraction

from onematrix.compiler.graph import Given, Row, Sum, Term, Value
from onematrix.compiler.numbering import Numbering, block_of, is_zero
from onematrix.errors import ShapeError
from onematrix.programs.activations import Activation
from onematrix.programs.block_matrix import Block, operand_shape
from onematrix.programs.joins import Join
from onematrix.programs.opaque import Opaque
from onematrix.programs.part import Part
from onematrix.structures.algebra import Product
from onematrix.structures.base import Structure
from onematrix.structures.column import Column
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Ones, Scaled, Zero

IDENTITY = Activation("identity")
ONE = Fraction(1)


class Canon:
    """Makes rows in canonical form; equal ones are one value."""

    def __init__(self) -> None:
        self.numbering = Numbering()
        self.expansions: dict[int, Sum] = {}

    def row(
        self, name: str, part: Part, sums: tuple[Sum, ...], activation: Activation, join: Join | Opaque | None
    ) -> Value:
        """σ(G v) ∘ H v of values that are in canonical form already."""
        if part.kind == "index" or (join is not None and join.index_operand is not None):
            return self._kept(name, part, sums, activation, join)
        own = join is not None and join.keeps_operand_shapes
        alone = join is None and activation.name == "identity" and len(sums[0]) == 1
        made = tuple(self._operand(s, name) if own else self._sum(s, part, name, alone) for s in sums)
        if join is not None and join.name == "hadamard":
            if activation.name == "identity" and self._is_one(made[0], part):
                made, join = made[1:], None
            elif self._is_one(made[1], part):
                made, join = made[:1], None
        if join is None and activation.name == "identity":
            return self._linear(name, part, made[0])
        return self.numbering.row(
            name, part, made, activation, join, None if own else self._expanded(made, part)
        )

    def _kept(
        self, name: str, part: Part, sums: tuple[Sum, ...], activation: Activation, join: Join | Opaque | None
    ) -> Value:
        """A row of indices: integers pass as they are."""
        only = sums[0][0].value if len(sums) == 1 and len(sums[0]) == 1 else None
        if join is None and activation.name == "identity" and only is not None and only.part == part:
            return only
        return self.numbering.row(name, part, sums, activation, join)

    def _linear(self, name: str, part: Part, terms: Sum) -> Value:
        if len(terms) == 1 and terms[0].block is None and terms[0].ratio == 1:
            return terms[0].value
        row = self.numbering.row(name, part, (terms,), IDENTITY, None, self._expanded((terms,), part))
        return row

    def _expanded(self, sums: tuple[Sum, ...], part: Part) -> tuple[Sum, ...]:
        """Each sum over values that are no sums of identities themselves; for comparing."""
        return tuple(_merged([t for term in terms for t in self._atoms(term, part)])[0] for terms in sums)

    def _atoms(self, term: Term, part: Part) -> list[Term]:
        value = term.value
        if term.block is not None or not isinstance(value, Row) or not value.linear or value.part != part:
            return [term]
        if any(t.block is not None for t in value.sums[0]):
            return [term]
        if id(value) not in self.expansions:
            self.expansions[id(value)] = self._expanded(value.sums, part)[0]
        return [Term(term.ratio * t.ratio, None, t.value) for t in self.expansions[id(value)]]

    # One sum.

    def _sum(self, terms: Sum, part: Part, name: str, alone: bool) -> Sum:
        """The terms over values of the row's shape, met ones added; whole sums stay together where none meet."""
        found = [
            t
            for term in terms
            for t in self._term(term, part, name if alone else f"{name}_{term.value.name}")
        ]
        short, met_first = _merged(found)
        atoms = [t for term in short for t in self._atoms(term, part)]
        full, met = _merged(atoms)
        return full if met or met_first or any(t.block is None and is_zero(t.value) for t in short) else short

    def _term(self, term: Term, part: Part, name: str) -> list[Term]:
        if term.block is None:
            return [term]
        value, ratio, a = term.value, term.ratio, term.block.structure
        while isinstance(a, Scaled):
            ratio, a = ratio * Fraction(a.numerator, a.denominator), a.inner
        if isinstance(a, Zero):
            return []
        if value.part.kind != "real" or (value.part.dtype, "real") != (part.dtype, part.kind):
            return [term]  # integers and draws are read where they stand
        if isinstance(a, Identity) and value.part.shape == part.shape:
            return [Term(ratio, None, value)]
        block = self._constant(value, Block(a, term.block.on))
        if block is not None:
            value = self._one_of(value)
        else:
            block = Block(a, term.block.on)
        sums = ((Term(ONE, block, value),),)
        return [Term(ratio, None, self.numbering.row(name, part, sums, IDENTITY, None))]

    def _constant(self, value: Value, block: Block) -> Block | None:
        """A · 1 as a block from the part `one`, where the value is 1 everywhere."""
        if not self._ones(value) or block.on != "all" or isinstance(block.structure, Identity):
            return None
        if isinstance(block.structure, Diagonal):
            return Block(Column(block.structure.vector))
        return Block(Product(block.structure, Ones(block.structure.shape[1], 1)))

    def _ones(self, value: Value) -> bool:
        if not isinstance(value, Row) or not value.linear or len(value.sums[0]) != 1:
            return False
        term = value.sums[0][0]
        return term.block is not None and term.ratio == 1 and _is_ones(term)

    def _one_of(self, value: Value) -> Value:
        assert isinstance(value, Row), "a constant is a row"
        return value.sums[0][0].value

    def _is_one(self, terms: Sum, part: Part) -> bool:
        """Whether the sum is 1 everywhere."""
        if len(terms) != 1 or terms[0].ratio != 1 or terms[0].block is not None:
            return False
        return self._ones(terms[0].value) and terms[0].value.part == part

    # One operand of a contraction.

    def _operand(self, terms: Sum, name: str) -> Sum:
        """A single block becomes a value in the shape of what it gives; several stay as they are."""
        if len(terms) != 1 or terms[0].block is None:
            return terms
        term, value = terms[0], terms[0].value
        ratio, a = term.ratio, block_of(term).structure
        while isinstance(a, Scaled):
            ratio, a = ratio * Fraction(a.numerator, a.denominator), a.inner
        if value.part.kind != "real" or value.part.dtype is not None:
            return terms
        try:
            shape = operand_shape(name, Block(a, block_of(term).on), value.part)
        except ShapeError:
            return terms
        part = Part(shape)
        if not (isinstance(a, Identity) and shape == value.part.shape):
            inner = (Term(ONE, Block(a, block_of(term).on), value),)
            value = self.numbering.row(f"{name}_{value.name}", part, (inner,), IDENTITY, None)
        return (Term(ratio, None, value),)


def _merged(terms: list[Term]) -> tuple[Sum, bool]:
    """Terms over one value added, and whether any met; terms that would cancel stay apart (∞ − ∞ is nan)."""
    ratios: dict[int, list[Term]] = {}
    for term in terms:
        if term.block is None:
            ratios.setdefault(id(term.value), []).append(term)
    found: list[Term] = []
    met = False
    for term in terms:
        same = ratios.get(id(term.value), []) if term.block is None else []
        total = sum((t.ratio for t in same), Fraction(0))
        if len(same) < 2 or total == 0:
            found.append(term)
        elif term is same[0]:
            met = True
            found.append(Term(total, None, term.value))
    return tuple(found), met


def _is_ones(term: Term) -> bool:
    return isinstance(term.value, Given) and term.value.role == "one" and _all_one(block_of(term).structure)


def _all_one(a: Structure) -> bool:
    return isinstance(a, Ones) and a.shape[1] == 1
