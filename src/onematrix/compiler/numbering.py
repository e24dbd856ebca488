"""Value numbering: one value for every way of writing the same row, and structures equal by what they hold."""

from fractions import Fraction

from torch import Tensor

from onematrix.compiler.graph import Row, Sum, Term, Value
from onematrix.programs.activations import Activation
from onematrix.programs.block_matrix import Block
from onematrix.programs.joins import Join
from onematrix.programs.opaque import Opaque
from onematrix.programs.part import Part
from onematrix.structures.base import Structure

Key = tuple[object, ...]


class Numbering:
    """A table of the rows made so far; asking for one that is there gives the one that is there."""

    def __init__(self) -> None:
        self.rows: dict[Key, Row] = {}
        self.structures: dict[int, Key] = {}
        self.kept: list[object] = []  # what the ids in the keys belong to

    def row(
        self,
        name: str,
        part: Part,
        sums: tuple[Sum, ...],
        activation: Activation,
        join: Join | Opaque | None,
        expanded: tuple[Sum, ...] | None = None,
    ) -> Row:
        """The row; `expanded` are its sums in the form by which equal ones are recognised."""
        shown = tuple(self.sum_key(terms) for terms in (sums if expanded is None else expanded))
        named = ("opaque", id(join)) if isinstance(join, Opaque) else str(join)
        key: Key = (part, shown, str(activation), named)
        if key not in self.rows:
            self.rows[key] = Row(name, part, sums, activation, join)
            self.kept.append((sums, expanded, join))
        return self.rows[key]

    def sum_key(self, terms: Sum) -> Key:
        """Equal for sums of the same terms in any order."""
        return tuple(sorted((self.term_key(term) for term in terms), key=repr))

    def term_key(self, term: Term) -> Key:
        block = None if term.block is None else (self.structure_key(term.block.structure), term.block.on)
        return (term.ratio, block, id(term.value))

    def structure_key(self, a: Structure) -> Key:
        """Equal for structures of one class over the same tensors and sizes."""
        if id(a) not in self.structures:
            self.structures[id(a)] = (a.name, *(self.field_key(v) for v in vars(a).values()))
            self.kept.append(a)
        return self.structures[id(a)]

    def field_key(self, value: object) -> object:
        if isinstance(value, Structure):
            return self.structure_key(value)
        if isinstance(value, tuple):
            return tuple(self.field_key(v) for v in value)
        return ("tensor", id(value)) if isinstance(value, Tensor) else value


def scaled_value(value: Value) -> tuple[Fraction, Value]:
    """(ratio, v) with value = ratio · v and v no such multiple itself."""
    if isinstance(value, Row) and value.linear and len(value.sums[0]) == 1:
        term = value.sums[0][0]
        if term.block is None:
            ratio, inner = scaled_value(term.value)
            return term.ratio * ratio, inner
    return Fraction(1), value


def is_zero(value: Value) -> bool:
    """Whether the value is a row without blocks and without activation: zero."""
    return isinstance(value, Row) and value.linear and not value.sums[0]


def block_of(term: Term) -> Block:
    """The block of a term that has one."""
    assert term.block is not None, "the term is an identity"
    return term.block
