"""Loops: what does not depend on the state is computed for all ticks at once, before or after the loop.

Hoisting: the part of a row that reads the inputs alone becomes one product over all ticks. Sinking: what the
state does not need is computed from the stacked state. Both leave in the loop what is carried; where all of that
is elementwise the loop is one kernel, and elementwise outputs stay: they cost it less than stacks to read again.
"""

from onematrix.compiler.canonical import IDENTITY
from onematrix.compiler.elementwise_rows import kept_elementwise
from onematrix.compiler.graph import (
    Given,
    Graph,
    Output,
    Region,
    Result,
    Row,
    Sum,
    Value,
    operands,
    postorder,
)
from onematrix.compiler.lifting import Body, Lift, series_of
from onematrix.compiler.places import term_of
from onematrix.compiler.rewriting import rewrite
from onematrix.programs.part import Part
from onematrix.structures.sizes import evaluate_size, size_names

Replace = dict[int, Value]


def hoist_inputs(graph: Graph, fired: list[str]) -> Graph:
    """The graph with what the inputs alone decide computed before each loop."""
    done: set[int] = set()
    while True:
        region = next((r for r in graph.regions() if id(r.scope) not in done), None)
        if region is None:
            return graph
        done.add(id(region.scope))
        if region.header.over is None or not _covers(region):
            continue
        hoist = _Hoist(graph, region)
        if hoist.replace:
            fired.append(f"before the loop over {region.header.over}: {', '.join(hoist.names)}")
            graph = rewrite(graph, hoist.replace)


def _covers(region: Region) -> bool:
    """Whether every tick of the series is a tick of the loop, so that no product is made in vain."""
    ticks, over = region.header.ticks, region.header.over
    if ticks is None:
        return True
    if over is None or size_names(ticks) != {over}:
        return False
    return all(evaluate_size(ticks, {over: n}) >= n for n in (1, 2, 3, 7, 20, 1000))


class _Hoist:
    def __init__(self, graph: Graph, region: Region) -> None:
        self.region, self.over = region, str(region.header.over)
        self.body = Body(region)
        self.past = region.header.ticks is not None and region.header.after == "zero"
        self.lift = Lift(self.body, self.over, self._leaf)
        self.replace: Replace = {}
        self.names: list[str] = []
        self.parts: list[Row] = []  # keeps alive what ids stand for
        for value in self.body.values:
            if isinstance(value, Row) and id(value) in self.body.varying:
                self._split(value)
        for value in self._frontier():
            self._take(value)
        if region.header.ticks is None and region.valid is None:
            self._outputs(graph)

    def _leaf(self, value: Value) -> Value | None:
        return series_of(value, self.over) if isinstance(value, Given) and value.role == "peeled" else None

    def _vanishes(self, value: Value) -> bool:
        """Whether the value is zero where the inputs are: what is fed past their end stays what it was."""
        for v in postorder([value]):
            if id(v) not in self.body.inner:
                return False
            if isinstance(v, Row):
                zero = v.activation.rule.at_zero == 0.0 and v.activation.rule.mixes == "none"
                if v.join is not None or not zero or not all(v.sums):
                    return False
        return True

    def _frontier(self) -> list[Row]:
        """Rows of the inputs alone that the state, an output or an inner loop reads."""
        found: dict[int, Row] = {}
        for value in self.body.values:
            if id(value) in self.body.varying:
                for v in operands(value) if id(value) not in self.replace else []:
                    if isinstance(v, Row) and self.body.free(v):
                        found[id(v)] = v
        for v in self.region.outs():
            if isinstance(v, Row) and self.body.free(v):
                found[id(v)] = v
        return list(found.values())

    def _take(self, value: Row) -> Given | None:
        """The peeled value of a lifted row, in the place of the row."""
        if self.past and not self._vanishes(value):
            return None
        lifted = self.lift.value(value)
        if lifted is None:
            return None
        given = Given(value.name, value.part, "peeled", self.region.scope, lifted)
        self.replace[id(value)] = given
        self.names.append(value.name)
        return given

    def _split(self, row: Row) -> None:
        """The terms of the inputs alone as one value."""
        if row.join is not None and row.join.keeps_operand_shapes:
            return
        sums = tuple(self._split_sum(terms, row) for terms in row.sums)
        if any(new is not old for new, old in zip(sums, row.sums, strict=True)):
            self.replace[id(row)] = Row(row.name, row.part, sums, row.activation, row.join)

    def _split_sum(self, terms: Sum, row: Row) -> Sum:
        free = [t for t in terms if self.body.free(t.value)]
        if not any(isinstance(t.value, Row) for t in free) or row.part.kind != "real":
            return terms
        whole = [] if self.past else [t for t in terms if self.body.whole(t.value)]
        if len(free) + len(whole) < 2:
            return terms
        part = Row(f"{row.name}_in", row.part, (tuple(free + whole),), IDENTITY, None)
        self.parts.append(part)
        self.body.inner.add(id(part))
        given = self._take(part)
        if given is None:
            return terms
        taken = {id(t) for t in free + whole}
        rest = tuple(t for t in terms if id(t) not in taken)
        return (term_of(given), *rest)

    def _outputs(self, graph: Graph) -> None:
        """Outputs of the inputs alone need no loop."""
        for value in graph.values():
            if not isinstance(value, Result) or value.region is not self.region or value.kind != "stacked":
                continue
            inner = self.region.outputs[value.place].value
            if self.body.free(inner) and value.part.shape == (self.over, *inner.part.shape):
                lifted = self.lift.value(inner)
                if lifted is not None and lifted.part == value.part:
                    self.replace[id(value)] = lifted
                    self.names.append(value.name)


def sink_outputs(graph: Graph, fired: list[str]) -> Graph:
    """The graph with the outputs the state does not need computed after each loop."""
    done: set[int] = set()
    while True:
        region = next((r for r in graph.regions() if id(r.scope) not in done), None)
        if region is None:
            return graph
        done.add(id(region.scope))
        if region.header.over is None or region.valid is not None:
            continue
        sink = _Sink(graph, region)
        if sink.names:
            fired.append(f"after the loop over {region.header.over}: {', '.join(sink.names)}")
            graph = rewrite(graph, sink.replace)


class _Sink:
    def __init__(self, graph: Graph, region: Region) -> None:
        self.region = region
        self.body = Body(region)
        self.needed = {id(v) for v in postorder([c.out for c in region.carries])}
        self.kept = kept_elementwise(self.body, self.needed)
        self.lift = Lift(self.body, region.header.length, self._leaf)
        self.more: list[Output] = []
        self.stacks: dict[int, Given] = {}
        self.replace: Replace = {}
        self.names: list[str] = []
        lifted = {place: self._sunk(o) for place, o in enumerate(region.outputs)}
        if self.names:
            self._install(graph, lifted)

    def _sunk(self, output: Output) -> Value | None:
        value = output.value
        stays = id(value) in self.needed or id(value) in self.kept or id(value) not in self.body.varying
        if not isinstance(value, Row) or stays:
            return None
        if output.part.shape != (self.region.header.length, *value.part.shape):
            return None
        lifted = self.lift.value(value)
        if lifted is None or lifted.part != output.part:
            return None  # stacks made on the way are dropped as dead outputs
        self.names.append(output.name)
        return lifted

    def _leaf(self, value: Value) -> Value | None:
        """The stack of a value the state needs; the series of an input."""
        if isinstance(value, Given) and value.role == "peeled" and value.scope is self.region.scope:
            return (
                series_of(value, str(self.region.header.over)) if self.region.header.ticks is None else None
            )
        carried = isinstance(value, Given) and value.role == "carried"
        stays = id(value) in self.needed or id(value) in self.kept
        if not carried and not (stays and isinstance(value, Row | Result)):
            return None
        if value.part.kind != "real" or id(value) not in self.body.inner:
            return None
        if id(value) not in self.body.varying and isinstance(value, Row):
            return None  # a row of the inputs alone is lifted itself
        part = Part((self.region.header.length, *value.part.shape), dtype=value.part.dtype)
        if id(value) not in self.stacks:
            self.stacks[id(value)] = Given(f"{value.name}_all", part, "stack")
            self.more.append(Output(f"{value.name}_all", part, value))
        return self.stacks[id(value)]

    def _install(self, graph: Graph, lifted: dict[int, Value | None]) -> None:
        region = self.region
        outputs = (*region.outputs, *self.more)
        new = Region(region.scope, region.header, region.carries, outputs, region.valid)
        for value in graph.values():
            if isinstance(value, Result) and value.region is region:
                sunk = lifted[value.place] if value.kind == "stacked" else None
                self.replace[id(value)] = sunk or Result(value.name, value.part, new, value.kind, value.place)
        for place, output in enumerate(self.more, start=len(region.outputs)):
            stack = self.stacks[id(output.value)]
            self.replace[id(stack)] = Result(output.name, output.part, new, "stacked", place)
