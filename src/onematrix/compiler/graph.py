"""The graph of values a program computes: what the passes rewrite.

A value is an input, a row of some step, or a result of a loop. Values are immutable and shared: two rows that
compute the same are one value. A row belongs to the loops whose ticks it depends on and to no others, so that
what does not change from tick to tick is outside by itself.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from onematrix.programs.activations import Activation
from onematrix.programs.block_matrix import Block
from onematrix.programs.joins import Join
from onematrix.programs.opaque import Opaque
from onematrix.programs.part import Part
from onematrix.programs.schedule import Loop
from onematrix.structures.sizes import Size


@dataclass(eq=False)
class Scope:
    """The ticks of one loop: what a value depends on when it changes from tick to tick."""

    parent: "Scope | None"

    def chain(self) -> Iterator["Scope"]:
        """This scope and those around it, inner first."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent


@dataclass(frozen=True, eq=False)
class Given:
    """A value no row computes: "input", "one", "noise", "carried" (the state before a tick), "peeled".

    scope: the loop it belongs to. source: the outer value whose tick a peeled value is.
    """

    name: str
    part: Part
    role: str
    scope: Scope | None = None
    source: "Value | None" = None


@dataclass(frozen=True, eq=False)
class Term:
    """ratio · A v; the block None stands for the identity on values of the row's own shape."""

    ratio: Fraction
    block: Block | None
    value: "Value"


Sum = tuple[Term, ...]


@dataclass(frozen=True, eq=False)
class Row:
    """σ(Σ G v) ∘ Σ H v in the shape of a part."""

    name: str
    part: Part
    sums: tuple[Sum, ...]
    activation: Activation
    join: Join | Opaque | None

    @property
    def linear(self) -> bool:
        """Whether it is one sum and nothing else."""
        return self.join is None and self.activation.name == "identity" and len(self.sums) == 1


@dataclass(frozen=True, eq=False)
class Result:
    """What a loop leaves: the final value of a carried part, or the stacked ticks of an output."""

    name: str
    part: Part
    region: "Region | Kept"
    kind: str  # "final" or "stacked"
    place: int  # in the carries or the outputs; -1 for a part of a kept node, which the name tells


Value = Given | Row | Result


@dataclass(frozen=True)
class Header:
    """The attributes of a loop."""

    over: str | None
    times: Size | None
    reverse: bool
    ticks: Size | None
    after: str

    @property
    def length(self) -> Size:
        """Number of ticks of a loop over a dimension."""
        return self.ticks if self.ticks is not None else self.over or 1


@dataclass(frozen=True, eq=False)
class Carry:
    """A carried part: its value before a tick, before the first one (None: zero), and after a tick."""

    param: Given
    init: Value | None
    out: Value


@dataclass(frozen=True, eq=False)
class Output:
    """A stacked output: its outer part and the value of a tick."""

    name: str
    part: Part
    value: Value


@dataclass(frozen=True, eq=False)
class Region:
    """A loop: carried values, outputs, valid mask; its body is what its outs depend on."""

    scope: Scope
    header: Header
    carries: tuple[Carry, ...]
    outputs: tuple[Output, ...]
    valid: Value | None = None

    def outs(self) -> list[Value]:
        """Values of a tick the loop keeps."""
        return [c.out for c in self.carries] + [o.value for o in self.outputs]

    def inits(self) -> list[Value]:
        """Outer values the carried parts start at."""
        return [c.init for c in self.carries if c.init is not None]


@dataclass(frozen=True, eq=False)
class Kept:
    """A node of the schedule kept as it is written: a loop until it stands still, whose end every part decides.

    captured: outer values by the names the node reads them under; started: those its init reads.
    """

    node: Loop
    scope: Scope
    captured: tuple[tuple[str, "Value"], ...]
    started: tuple[tuple[str, "Value"], ...]
    noisy: bool

    def outs(self) -> list["Value"]:
        """Values the node reads."""
        return [value for _, value in (*self.captured, *self.started)]


@dataclass(frozen=True, eq=False)
class Graph:
    """A program as values. outputs: name and value, in the program's order; parts: those of the outputs."""

    inputs: tuple[Given, ...]
    outputs: tuple[tuple[str, Value], ...]
    one: Given
    parts: Mapping[str, Part]

    def values(self) -> list[Value]:
        """Every value the outputs need, operands first."""
        return postorder([value for _, value in self.outputs])

    def regions(self) -> list[Region]:
        """Every loop the outputs need, inner before outer; kept nodes are none."""
        results = [v.region for v in self.values() if isinstance(v, Result)]
        return list({id(r): r for r in results if isinstance(r, Region)}.values())


def operands(value: Value) -> Sequence[Value]:
    """The values a value is computed from; for a loop's result everything the loop needs."""
    if isinstance(value, Row):
        return [term.value for terms in value.sums for term in terms]
    if isinstance(value, Result):
        region = value.region
        if isinstance(region, Kept):
            return region.outs()
        return [*region.inits(), *([region.valid] if region.valid is not None else []), *region.outs()]
    return [value.source] if value.source is not None else []


def postorder(roots: Iterable[Value]) -> list[Value]:
    """Every value the roots need, operands first, in the order of first use."""
    found: list[Value] = []
    seen: set[int] = set()
    for root in roots:
        stack: list[tuple[Value, int]] = [(root, 0)]
        while stack:
            value, place = stack.pop()
            if place == 0:
                if id(value) in seen:
                    continue
                seen.add(id(value))
            needs = operands(value)
            if place < len(needs):
                stack.append((value, place + 1))
                if id(needs[place]) not in seen:
                    stack.append((needs[place], 0))
            else:
                found.append(value)
    return found


def scopes_of(values: Iterable[Value]) -> dict[int, frozenset[Scope]]:
    """id(value) → the loops whose tick it depends on; values must come operands first."""
    table: dict[int, frozenset[Scope]] = {}
    for value in values:
        found = frozenset[Scope]().union(*(table[id(v)] for v in operands(value)))
        if isinstance(value, Given) and value.scope is not None:
            noise = value.role == "noise"
            found = found | (frozenset(value.scope.chain()) if noise else {value.scope})
        elif isinstance(value, Result) and isinstance(value.region, Kept):
            parent = value.region.scope.parent
            if value.region.noisy and parent is not None:
                found = found | frozenset(parent.chain())
        elif isinstance(value, Result):
            found = found - {value.region.scope}
        table[id(value)] = found
    return table


def uses_of(graph: Graph) -> dict[int, int]:
    """id(value) → how many places read it: terms of rows, loops and the program's outputs."""
    count: dict[int, int] = {}
    regions: set[int] = set()

    def use(value: Value) -> None:
        count[id(value)] = count.get(id(value), 0) + 1

    for value in graph.values():
        if isinstance(value, Result):
            if id(value.region) in regions:
                continue
            regions.add(id(value.region))
        for operand in operands(value):
            use(operand)
    for _, value in graph.outputs:
        use(value)
    return count
