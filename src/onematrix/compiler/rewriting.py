"""One rewriting of a graph: values replaced, rows made canonical, dead carries and outputs dropped."""

from collections.abc import Mapping

from onematrix.compiler.canonical import Canon
from onematrix.compiler.graph import (
    Carry,
    Given,
    Graph,
    Kept,
    Output,
    Region,
    Result,
    Row,
    Term,
    Value,
)


def rewrite(graph: Graph, replace: Mapping[int, Value] | None = None) -> Graph:
    """The graph with `replace[id(value)]` (a value of the same graph) in the place of each value named there.

    Rows are made canonical, equal ones become one, and only what the outputs need remains.
    """
    rewriter = _Rewriter(replace or {})
    rewriter.find_live([value for _, value in graph.outputs])
    rewriter.map_all([value for _, value in graph.outputs])
    outputs = tuple((name, rewriter.new(value)) for name, value in graph.outputs)
    return Graph(graph.inputs, outputs, graph.one, graph.parts)


class _Rewriter:
    def __init__(self, replace: Mapping[int, Value]) -> None:
        self.replace = replace
        self.canon = Canon()
        self.made: dict[int, Value] = {}
        self.peeled: dict[tuple[object, ...], Given] = {}
        self.owners: dict[int, tuple[Region, int]] = {}  # carried parameter → its loop and place
        self.live: dict[int, dict[str, set[int]]] = {}  # loop → live places of its carries and outputs
        self.regions: dict[int, Region] = {}
        self.nodes: dict[int, Kept] = {}

    def resolve(self, value: Value) -> Value:
        while id(value) in self.replace:
            value = self.replace[id(value)]
        return value

    def new(self, value: Value) -> Value:
        """What became of a value."""
        return self.made[id(self.resolve(value))]

    # Liveness.

    def find_live(self, roots: list[Value]) -> None:
        """Mark the carries and outputs of loops that reach the roots."""
        seen: set[int] = set()
        stack = list(roots)
        while stack:
            value = self.resolve(stack.pop())
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, Result) and isinstance(value.region, Kept):
                stack += value.region.outs()
            elif isinstance(value, Result):
                assert isinstance(value.region, Region), "a kept node was handled above"
                stack += self._enter(value.region)
                stack += self._mark(value.region, value.kind, value.place)
            elif isinstance(value, Row):
                stack += [term.value for terms in value.sums for term in terms]
            elif value.source is not None:
                stack.append(value.source)
            elif id(value) in self.owners:
                region, place = self.owners[id(value)]
                stack += self._mark(region, "final", place)

    def _enter(self, region: Region) -> list[Value]:
        if id(region) in self.live:
            return []
        self.live[id(region)] = {"final": set(), "stacked": set()}
        self.owners |= {id(c.param): (region, place) for place, c in enumerate(region.carries)}
        more = [] if region.valid is None else [region.valid]
        return more

    def _mark(self, region: Region, kind: str, place: int) -> list[Value]:
        marked = self.live[id(region)][kind]
        if place in marked:
            return []
        marked.add(place)
        if kind == "stacked":
            return [region.outputs[place].value]
        carry = region.carries[place]
        return [carry.out] if carry.init is None else [carry.init, carry.out]

    # Mapping.

    def needs(self, value: Value) -> list[Value]:
        """The live values a value is made from."""
        if isinstance(value, Row):
            return [self.resolve(term.value) for terms in value.sums for term in terms]
        if isinstance(value, Given):
            return [] if value.source is None else [self.resolve(value.source)]
        region = value.region
        if isinstance(region, Kept):
            return [self.resolve(v) for v in region.outs()]
        live = self.live[id(region)]
        found = [region.valid] if region.valid is not None else []
        carries = [c for place, c in enumerate(region.carries) if place in live["final"]]
        found += [c.init for c in carries if c.init is not None] + [c.out for c in carries]
        found += [o.value for place, o in enumerate(region.outputs) if place in live["stacked"]]
        return [self.resolve(v) for v in found]

    def map_all(self, roots: list[Value]) -> None:
        """Make every value the roots need, operands first."""
        stack: list[tuple[Value, list[Value] | None]] = [(self.resolve(r), None) for r in reversed(roots)]
        while stack:
            value, needs = stack.pop()
            if id(value) in self.made:
                continue
            needs = self.needs(value) if needs is None else needs
            waiting = next((v for v in needs if id(v) not in self.made), None)
            if waiting is None:
                self.made[id(value)] = self.make(value)
            else:
                stack += [(value, needs), (waiting, None)]

    def make(self, value: Value) -> Value:
        if isinstance(value, Row):
            sums = tuple(
                tuple(Term(term.ratio, term.block, self.new(term.value)) for term in terms)
                for terms in value.sums
            )
            return self.canon.row(value.name, value.part, sums, value.activation, value.join)
        if isinstance(value, Result):
            return self.result(value)
        if value.source is None:
            return value
        source = self.new(value.source)
        key = (id(value.scope), id(source))
        return self.peeled.setdefault(key, Given(value.name, value.part, value.role, value.scope, source))

    def result(self, value: Result) -> Value:
        if isinstance(value.region, Kept):
            return Result(value.name, value.part, self.kept(value.region), value.kind, value.place)
        region = self.region(value.region)
        place = sorted(self.live[id(value.region)][value.kind]).index(value.place)
        return Result(value.name, value.part, region, value.kind, place)

    def kept(self, kept: Kept) -> Kept:
        if id(kept) not in self.nodes:
            captured, started = (
                tuple((name, self.new(v)) for name, v in group) for group in (kept.captured, kept.started)
            )
            self.nodes[id(kept)] = Kept(kept.node, kept.scope, captured, started, kept.noisy)
        return self.nodes[id(kept)]

    def region(self, region: Region) -> Region:
        if id(region) not in self.regions:
            live = self.live[id(region)]
            carries = [region.carries[place] for place in sorted(live["final"])]
            outputs = [region.outputs[place] for place in sorted(live["stacked"])]
            self.regions[id(region)] = Region(
                region.scope,
                region.header,
                tuple(
                    Carry(c.param, None if c.init is None else self.new(c.init), self.new(c.out))
                    for c in carries
                ),
                tuple(Output(o.name, o.part, self.new(o.value)) for o in outputs),
                None if region.valid is None else self.new(region.valid),
            )
        return self.regions[id(region)]


def probe(graph: Graph, values: list[Value], replace: Mapping[int, Value]) -> list[Value]:
    """What the values become when `replace` is applied, all in one table: equal ones are one object."""
    rewriter = _Rewriter(replace)
    roots = [value for _, value in graph.outputs]
    rewriter.find_live([*roots, *values])
    rewriter.map_all(values)
    return [rewriter.new(value) for value in values]
