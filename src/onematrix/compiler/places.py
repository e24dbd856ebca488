"""Where every value stands when a graph is written: its loop, and whether it has a part of its own."""

from dataclasses import dataclass
from fractions import Fraction

from onematrix.compiler.graph import (
    Given,
    Graph,
    Kept,
    Region,
    Result,
    Row,
    Scope,
    Sum,
    Term,
    Value,
    operands,
    scopes_of,
)
from onematrix.errors import ShapeError
from onematrix.programs.block_matrix import Block, operand_shape


@dataclass(frozen=True)
class Leaf:
    """A term as it will be written, and the row it was taken over from (None: it was there)."""

    term: Term
    via: Row | None


class Places:
    """The loop of every value, and the rows that are written inside the sums that read them."""

    def __init__(self, graph: Graph) -> None:
        self.values = graph.values()
        self.scopes = scopes_of(self.values)
        self.regions: dict[int, Region | Kept] = {}
        self.parents: dict[int, Scope | None] = {}  # id(scope) → the loop a loop really stands in
        for value in self.values:
            if isinstance(value, Result):
                self.regions[id(value.region)] = value.region
                self.parents[id(value.region.scope)] = self.home(value)
        self.inline: set[int] = set()
        self.written: set[int] = {id(v) for v in self.values if isinstance(v, Row)}
        self._choose(graph)
        self._part_doubles()

    def home(self, value: Value) -> Scope | None:
        """The innermost loop whose tick the value depends on."""
        found = self.scopes[id(value)]
        return max(found, key=lambda s: sum(1 for _ in s.chain())) if found else None

    def inside(self, value: Value, scope: Scope) -> bool:
        """Whether the value is computed in the loop or in one inside it."""
        home = self.home(value)
        while home is not None and home is not scope:
            home = self.parents.get(id(home), home.parent)
        return home is scope

    # Which rows are written inside others.

    def _choose(self, graph: Graph) -> None:
        readers: dict[int, list[bool]] = {}  # per value: whether each place that reads it can take its terms
        for value in self.values:
            if isinstance(value, Row):
                self._read_row(value, readers)
        for region in self.regions.values():
            self._read_region(region, readers)
        for name, value in graph.outputs:
            readers.setdefault(id(value), []).append(False)
            del name
        for value in self.values:
            if not isinstance(value, Row) or not value.linear:
                continue
            places = readers.get(id(value), [])
            if is_constant(value):
                self.inline.add(id(value))
                if all(places):
                    self.written.discard(id(value))
            elif len(places) == 1 and places[0]:
                self.inline.add(id(value))
                self.written.discard(id(value))

    def _read_row(self, row: Row, readers: dict[int, list[bool]]) -> None:
        own = row.join is not None and row.join.keeps_operand_shapes
        for terms in row.sums:
            for term in terms:
                v = term.value
                fits = term.block is None and (self.home(v) is self.home(row) or is_constant(v))
                if own and fits:
                    fits = len(terms) == 1 and _operand_of(v)
                elif fits:
                    fits = v.part == row.part or is_constant(v)
                readers.setdefault(id(v), []).append(fits)

    def _read_region(self, region: Region | Kept, readers: dict[int, list[bool]]) -> None:
        if isinstance(region, Kept):
            for value in region.outs():
                readers.setdefault(id(value), []).append(False)
            return
        parent = self.parents[id(region.scope)]
        for scope, values in ((parent, region.inits()), (region.scope, region.outs())):
            for value in values:
                fits = is_constant(value) or (of_identities(value) and self.home(value) is scope)
                readers.setdefault(id(value), []).append(fits)
        sources = [v.source for v in self.values if isinstance(v, Given) and v.scope is region.scope]
        for source in [region.valid, *sources]:
            if source is not None:
                readers.setdefault(id(source), []).append(False)

    def _part_doubles(self) -> None:
        """A sum reads each value through one block: products that meet there get parts of their own."""
        for value in self.values:
            if not isinstance(value, Row):
                continue
            own = value.join is not None and value.join.keeps_operand_shapes
            for terms in value.sums:
                self._part_double(terms, own)

    def _part_double(self, terms: Sum, own: bool) -> None:
        while True:
            leaves = self.flatten(terms, own)
            seen: dict[int, Leaf] = {}
            again = False
            for leaf in leaves:
                v = leaf.term.value
                other = seen.setdefault(id(v), leaf)
                if other is leaf or is_one(v):
                    continue
                via = leaf.via or other.via
                if via is not None:
                    self.inline.discard(id(via))
                    self.written.add(id(via))
                    again = True
                    break
            if not again:
                return

    def flatten(self, terms: Sum, own: bool = False) -> list[Leaf]:
        """The terms with the rows written inside them taken over; own: of a sum that keeps operand shapes."""
        found: list[Leaf] = []
        stack = [Leaf(term, None) for term in reversed(terms)]
        while stack:
            leaf = stack.pop()
            term, v = leaf.term, leaf.term.value
            fits = term.block is None and id(v) in self.inline and (not own or _operand_of(v))
            if fits and isinstance(v, Row):
                stack += [Leaf(Term(term.ratio * t.ratio, t.block, t.value), v) for t in reversed(v.sums[0])]
            else:
                found.append(leaf)
        return found

    def external(self, region: Region) -> list[Value]:
        """Outer values the body of a loop reads, those it peels among them as peeled values."""
        found: dict[int, Value] = {}
        seen: set[int] = set()
        stack: list[Value] = list(reversed(region.outs()))
        while stack:
            value = stack.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, Given) and value.scope is region.scope:
                if value.role == "peeled":
                    found[id(value)] = value
            elif not self.inside(value, region.scope):
                if isinstance(value, Row) and id(value) not in self.written:
                    stack += reversed(operands(value))  # a constant that stands in each sum
                elif not is_one(value) and not _is_noise(value):
                    found[id(value)] = value
            else:
                stack += reversed(operands(value))
        return list(found.values())


def is_one(value: Value) -> bool:
    """Whether the value is the constant part."""
    return isinstance(value, Given) and value.role == "one"


def _is_noise(value: Value) -> bool:
    return isinstance(value, Given) and value.role == "noise"


def is_constant(value: Value) -> bool:
    """Whether the value is one block times the constant part, or a multiple of that: a bias."""
    if not isinstance(value, Row) or not value.linear or len(value.sums[0]) != 1:
        return False
    term = value.sums[0][0]
    return is_one(term.value) if term.block is not None else is_constant(term.value)


def of_identities(value: Value) -> bool:
    """Whether the value is a sum of multiples of values that are no products, or a constant."""
    if not isinstance(value, Row) or not value.linear:
        return False
    return is_constant(value) or all(
        term.block is None
        and (not isinstance(term.value, Row) or not term.value.linear or of_identities(term.value))
        for term in value.sums[0]
    )


def _operand_of(value: Value) -> bool:
    """Whether a contraction can read the one block of this row itself."""
    if not isinstance(value, Row) or not value.linear or len(value.sums[0]) != 1:
        return False
    term = value.sums[0][0]
    if term.block is None:
        return not isinstance(term.value, Row) or not term.value.linear
    try:
        return operand_shape(value.name, Block(term.block.structure, term.block.on), term.value.part) == (
            value.part.shape
        )
    except ShapeError:
        return False


def term_of(value: Value) -> Term:
    """The value as a term."""
    return Term(Fraction(1), None, value)
