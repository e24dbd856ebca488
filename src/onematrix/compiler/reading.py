"""Program → graph: every row of every step as a value, nothing changed yet."""

from collections.abc import Sequence
from fractions import Fraction

from onematrix.compiler.graph import (
    Carry,
    Given,
    Graph,
    Header,
    Kept,
    Output,
    Region,
    Result,
    Row,
    Scope,
    Sum,
    Term,
    Value,
)
from onematrix.programs.activations import Activation
from onematrix.programs.block_matrix import Block, BlockMatrix
from onematrix.programs.flow import parts_read, written
from onematrix.programs.part import ONE, Part
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop, Node, Seq, Step, blocks_of, walk
from onematrix.programs.schedule import Row as ProgramRow

State = dict[str, Value]
IDENTITY = Activation("identity")


def read_program(program: Program) -> Graph:
    """The graph of a program: its outputs as values of its inputs."""
    reader = _Reader(program)
    inputs = tuple(Given(name, program.parts[name], "input") for name in program.inputs)
    state: State = {ONE: reader.one}
    state.update({given.name: given for given in inputs})
    reader.node(program.schedule, state, None)
    outputs = tuple((name, state[name]) for name in program.outputs)
    return Graph(inputs, outputs, reader.one, {name: program.parts[name] for name in program.outputs})


class _Reader:
    def __init__(self, program: Program) -> None:
        self.parts = program.parts
        self.one = Given(ONE, program.parts[ONE], "one")
        self.noise: dict[tuple[str, Scope | None], Given] = {}

    def node(self, node: Node, state: State, scope: Scope | None) -> None:
        if isinstance(node, Step):
            state.update([(row.part, self.row(row, state, scope)) for row in node.rows])
        elif isinstance(node, Seq):
            for child in node.body:
                self.node(child, state, scope)
        elif node.over is not None:
            self.over(node, state, scope)
        elif node.until is not None:
            self.keep(node, state, scope)
        else:
            self.rounds(node, state, scope)

    def value(self, name: str, state: State, scope: Scope | None) -> Value:
        """The value of a part, drawn where it is noise."""
        if name in state:
            return state[name]
        return self.noise.setdefault((name, scope), Given(name, self.parts[name], "noise", scope))

    def sum(self, blocks: Sequence[tuple[str, Block]], state: State, scope: Scope | None) -> Sum:
        return tuple(Term(Fraction(1), block, self.value(c, state, scope)) for c, block in blocks)

    def row(self, row: ProgramRow, state: State, scope: Scope | None) -> Row:
        sums = tuple(self.sum(blocks, state, scope) for blocks in row.sums)
        return Row(row.part, self.parts[row.part], sums, row.activation, row.join)

    def map(
        self, matrix: BlockMatrix | None, part: dict[str, Part], state: State, scope: Scope | None
    ) -> dict[str, Row]:
        """The rows of a loop's own block matrix, each in the shape `part` names for it."""
        if matrix is None:
            return {}
        return {
            name: Row(name, part[name], (self.sum(matrix.row(name), state, scope),), IDENTITY, None)
            for name in matrix.rows
        }

    def over(self, loop: Loop, state: State, parent: Scope | None) -> None:
        scope = Scope(parent)
        init = self.map(loop.init, self.parts, state, parent)
        valid = None if loop.valid is None else state[loop.valid]
        params = {n: Given(n, self.parts[n], "carried", scope) for n in _rows(loop.carry)}
        sources = dict.fromkeys(c for (_, c), _ in loop.feeds or () if c != ONE)
        inner_names = {
            c: r for (r, c), b in reversed(list(loop.feeds or ())) if b.structure.name == "identity"
        }
        fed: State = {
            n: self.peeled(inner_names.get(n, n), state[n], str(loop.over), scope)
            for n in sources
            if n in state
        }
        inner: State = {ONE: self.one, **params}
        inner |= self.map(loop.feeds, self.parts, {ONE: self.one, **fed}, scope)
        self.node(loop.body, inner, scope)
        shapes = {n: self.parts[n].peel(loop.length) or self.parts[n] for n in _rows(loop.outputs)}
        outputs = self.map(loop.outputs, shapes, inner, scope)
        carry = self.map(loop.carry, self.parts, inner, scope)
        region = Region(
            scope,
            _header(loop),
            tuple(Carry(params[n], init.get(n), carry[n]) for n in params),
            tuple(Output(n, self.parts[n], value) for n, value in outputs.items()),
            valid,
        )
        _leave(region, state)

    def peeled(self, name: str, value: Value, over: str, scope: Scope) -> Value:
        """A tick of an outer value; a value that has no ticks is fed whole."""
        part = value.part
        if over not in part.shape:
            return value
        return Given(name, part.peel(over) or part, "peeled", scope, value)

    def keep(self, loop: Loop, state: State, parent: Scope | None) -> None:
        new = written(loop)
        names = sorted(parts_read(loop.body) - new)
        captured = tuple((n, state[n]) for n in names if n in state and n != ONE)
        started = tuple((n, state[n]) for n in _columns(loop.init) if n != ONE and n in state)
        noisy = any(
            n not in state and self.parts[n].kind == "noise"
            for inner in walk(loop)
            for row, column, _ in blocks_of(inner)
            for n in (row, column)
        )
        kept = Kept(loop, Scope(parent), captured, started, noisy)
        for name in sorted(new):
            state[name] = Result(name, self.parts[name], kept, "final", -1)

    def rounds(self, loop: Loop, state: State, parent: Scope | None) -> None:
        scope = Scope(parent)
        init = self.map(loop.init, self.parts, state, parent)
        names = sorted(written(loop.body) | set(init))
        params = {n: Given(n, self.parts[n], "carried", scope) for n in names}
        inner: State = {**state, **params}
        self.node(loop.body, inner, scope)
        region = Region(
            scope, _header(loop), tuple(Carry(params[n], init.get(n), inner[n]) for n in names), ()
        )
        _leave(region, state)


def _columns(matrix: BlockMatrix | None) -> list[str]:
    return list(dict.fromkeys(column for (_, column), _ in matrix or ()))


def _rows(matrix: BlockMatrix | None) -> tuple[str, ...]:
    return () if matrix is None else matrix.rows


def _header(loop: Loop) -> Header:
    return Header(loop.over, loop.times, loop.reverse, loop.ticks, loop.after)


def _leave(region: Region, state: State) -> None:
    """What the parts are after a loop."""
    for place, carry in enumerate(region.carries):
        state[carry.param.name] = Result(carry.param.name, carry.param.part, region, "final", place)
    for place, output in enumerate(region.outputs):
        state[output.name] = Result(output.name, output.part, region, "stacked", place)
