"""Graph → program: every value a part that is written once, independent rows in one step."""

from collections.abc import Sequence

from onematrix.compiler.graph import (
    Given,
    Graph,
    Kept,
    Region,
    Result,
    Row,
    Scope,
    Sum,
    Value,
)
from onematrix.compiler.naming import Names
from onematrix.compiler.places import Leaf, Places, is_one, term_of
from onematrix.programs.block_matrix import Block, BlockMatrix
from onematrix.programs.part import ONE, Part
from onematrix.programs.program import Program
from onematrix.programs.renaming import rename_loop
from onematrix.programs.schedule import Loop, Node, Seq, Step
from onematrix.structures.algebra import Sum as SumOf
from onematrix.structures.identity import Identity, Zero, scale

Blocks = dict[tuple[str, str], Block]
Item = Row | Region | Kept
Env = dict[int, str]


def write_program(graph: Graph) -> Program:
    """The program of a graph; reading it back gives the same graph."""
    return _Writer(graph).program()


class _Writer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.places = Places(graph)
        self.names = Names(graph, self.places)
        self.parts: dict[str, Part] = {ONE: graph.one.part}

    def program(self) -> Program:
        graph = self.graph
        env: Env = {id(given): self.declare(given.name, given.part) for given in graph.inputs}
        items = self.items(None)
        nodes = self.nodes(items, env)
        copies: Blocks = {}
        for name, value in graph.outputs:
            if self.names.of_output.get(name) is None and env.get(id(value)) != name:
                self.declare(name, graph.parts[name])
                copies[name, self.column(value, env)] = identity_block(graph.parts[name])
        if copies or not nodes:
            nodes.append(Step(self.matrix(copies, [name for name, _ in copies])))
        schedule = nodes[0] if len(nodes) == 1 else Seq(*nodes)
        table = {given.name: given.part for given in graph.inputs}
        return Program(schedule, [g.name for g in graph.inputs], [n for n, _ in graph.outputs], table)

    def declare(self, name: str, part: Part) -> str:
        self.parts[name] = part
        return name

    # What stands in one loop, in order.

    def items(self, scope: Scope | None) -> list[Item]:
        """Rows and loops that are written in this scope, operands first."""
        found: list[Item] = []
        seen: set[int] = set()
        for value in self.places.values:
            if isinstance(value, Row):
                if id(value) in self.places.written and self.places.home(value) is scope:
                    found.append(value)
            elif isinstance(value, Result) and id(value.region) not in seen:
                seen.add(id(value.region))
                if self.places.home(value) is scope:
                    found.append(value.region)
        return found

    def reads(self, item: Item) -> list[Value]:
        """Values an item needs in the scope it stands in."""
        if isinstance(item, Row):
            own = item.join is not None and item.join.keeps_operand_shapes
            return [leaf.term.value for terms in item.sums for leaf in self.places.flatten(terms, own)]
        if isinstance(item, Kept):
            return item.outs()
        found = [leaf.term.value for v in item.inits() for leaf in self.places.flatten((term_of(v),))]
        found += [] if item.valid is None else [item.valid]
        for value in self.places.external(item):
            peeled = isinstance(value, Given) and value.role == "peeled" and value.scope is item.scope
            found.append(value.source if peeled and value.source is not None else value)  # type: ignore[union-attr]
        return found

    def nodes(self, items: Sequence[Item], env: Env) -> list[Node]:
        """The items as steps and loops: per level the rows, then the loops."""
        levels: dict[int, int] = {}
        grouped: dict[int, list[Item]] = {}
        for item in items:
            level = 1 + max((levels.get(self.provider(v), 0) for v in self.reads(item)), default=0)
            levels[id(item)] = level
            grouped.setdefault(level, []).append(item)
        nodes: list[Node] = []
        for level in sorted(grouped):
            rows = [item for item in grouped[level] if isinstance(item, Row)]
            if rows:
                nodes.append(self.step([(self.name(row, env), row) for row in rows], env))
            nodes += [self.loop(item, env) for item in grouped[level] if not isinstance(item, Row)]
        return nodes

    def provider(self, value: Value) -> int:
        return id(value.region) if isinstance(value, Result) else id(value)

    # Names.

    def name(self, value: Value, env: Env) -> str:
        """The part of a value that is written now."""
        env[id(value)] = self.declare(self.names.of(value), value.part)
        return env[id(value)]

    def column(self, value: Value, env: Env) -> str:
        """The part a value is read from."""
        if is_one(value):
            return ONE
        if isinstance(value, Given) and value.role == "noise":
            return self.declare(value.name, value.part)
        if id(value) not in env and isinstance(value, Result):
            return self.name(value, env)
        return env[id(value)]

    # Steps.

    def step(self, rows: Sequence[tuple[str, Row]], env: Env) -> Step:
        matrices: list[Blocks] = [{} for _ in range(max(len(row.sums) for _, row in rows))]
        for name, row in rows:
            own = row.join is not None and row.join.keeps_operand_shapes
            for place, terms in enumerate(row.sums):
                matrices[place] |= self.sum(name, terms, None if own else row.part, env)
                if not terms and place:
                    matrices[place][name, ONE] = zero_block(row.part)
        return Step(
            *(self.matrix(blocks, [name for name, _ in rows]) for blocks in matrices),
            activations={name: row.activation for name, row in rows},
            joins={name: row.join for name, row in rows if row.join is not None},
            rows=[name for name, _ in rows],
        )

    def sum(self, row: str, terms: Sum, part: Part | None, env: Env) -> Blocks:
        """Blocks of one sum; part: that of the row, None where operands keep their own shape."""
        found: Blocks = {}
        for leaf in self.places.flatten(terms, part is None):
            column = self.column(leaf.term.value, env)
            block = _block(leaf, part)
            if (row, column) in found:
                other = found[row, column]
                block = Block(SumOf((other.structure, block.structure)), block.on)
            found[row, column] = block
        return found

    def map(self, name: str, value: Value, env: Env) -> Blocks:
        """One row of a loop's own block matrix."""
        found = self.sum(name, (term_of(value),), value.part, env)
        return found or {(name, ONE): zero_block(value.part)}

    # Loops.

    def loop(self, item: Region | Kept, env: Env) -> Node:
        if isinstance(item, Kept):
            return self.kept(item, env)
        return self.rounds(item, env) if item.header.over is None else self.over(item, env)

    def over(self, region: Region, env: Env) -> Loop:
        header, feeds, inner = region.header, Blocks(), Env()
        valid = None if region.valid is None else self.column(region.valid, env)
        for value in self.places.external(region):
            peeled = isinstance(value, Given) and value.role == "peeled" and value.scope is region.scope
            source = value.source if peeled else value  # type: ignore[union-attr]
            assert source is not None, "a peeled value has a source"
            name = self.names.of(value) if peeled else self.names.copy(value, region)
            feeds[self.declare(name, value.part), self.column(source, env)] = identity_block(value.part)
            inner[id(value)] = name
        init: Blocks = {}
        for carry in region.carries:
            name = inner[id(carry.param)] = self.declare(self.names.of(carry.param), carry.param.part)
            init |= {} if carry.init is None else self.map(name, carry.init, env)
        body = self.nodes(self.items(region.scope), inner)
        carried: Blocks = {}
        for carry in region.carries:
            carried |= self.map(inner[id(carry.param)], carry.out, inner)
        outputs: Blocks = {}
        for place, output in enumerate(region.outputs):
            outer = self.declare(self.names.of_stacked(region, place), output.part)
            outputs |= self.map(outer, output.value, inner)
        return Loop(
            self._body(body, region, inner),
            over=header.over,
            feeds=self.maybe(feeds),
            outputs=self.maybe(outputs),
            init=self.maybe(init),
            carry=self.maybe(carried),
            reverse=header.reverse,
            valid=valid,
            ticks=header.ticks,
            after=header.after,
        )

    def _body(self, nodes: list[Node], region: Region, inner: Env) -> Node:
        """The body; one that computes nothing copies what it keeps."""
        if not nodes:
            given = [c.param for c in region.carries] or self.places.external(region)
            value = given[0] if given else self.graph.one
            name = self.declare(self.names.give((id(region), "kept"), "kept"), value.part)
            nodes = [
                Step(self.matrix({(name, self.column(value, inner)): identity_block(value.part)}, [name]))
            ]
        return nodes[0] if len(nodes) == 1 else Seq(*nodes)

    def maybe(self, blocks: Blocks) -> BlockMatrix | None:
        return self.matrix(blocks, []) if blocks else None

    def matrix(self, blocks: Blocks, rows: Sequence[str]) -> BlockMatrix:
        """A block matrix over the parts its blocks touch, and the rows without blocks."""
        names = dict.fromkeys([*rows, *(name for key in blocks for name in key)])
        return BlockMatrix(blocks, {name: self.parts[name] for name in names})

    def rounds(self, region: Region, env: Env) -> Loop:
        """A loop that runs a number of times: its last step writes every carried part at once."""
        inner, init = dict(env), Blocks()
        for carry in region.carries:
            name = inner[id(carry.param)] = self.declare(self.names.of(carry.param), carry.param.part)
            init |= {} if carry.init is None else self.map(name, carry.init, env)
        last = [c for c in region.carries if self.names.written_last(c)]
        apart = {id(c.out) for c in last}
        items = [item for item in self.items(region.scope) if id(item) not in apart]
        nodes = self.nodes(items, inner)
        rows = []
        for carry in region.carries:
            if carry.out is carry.param:
                continue
            row = carry.out if id(carry.out) in apart else self.copy(carry.param, carry.out)
            assert isinstance(row, Row), "what is written last is a row"
            rows.append((inner[id(carry.param)], row))
        if rows or not nodes:
            nodes.append(self.step(rows, inner))
        body = nodes[0] if len(nodes) == 1 else Seq(*nodes)
        return Loop(body, times=region.header.times, init=self.maybe(init))

    def copy(self, param: Given, value: Value) -> Row:
        return Row(param.name, param.part, ((term_of(value),),), self.names.identity, None)

    def kept(self, kept: Kept, env: Env) -> Loop:
        captured = {name: self.column(value, env) for name, value in kept.captured}
        started = {name: self.column(value, env) for name, value in kept.started}
        table = self.names.of_kept(kept)
        loop = rename_loop(
            kept.node,
            lambda n: captured.get(n) or table.get(n, n),
            lambda n: started.get(n, n),
        )
        self.parts |= {table[name]: part for name, part in self.names.kept_parts(kept).items()}
        return loop


def _block(leaf: Leaf, part: Part | None) -> Block:
    """The block a term is written as."""
    term = leaf.term
    if term.block is not None:
        return Block(scale(term.block.structure, term.ratio), term.block.on)
    block = identity_block(term.value.part)
    return Block(scale(block.structure, term.ratio), block.on)


def identity_block(part: Part) -> Block:
    """The identity on a part."""
    if part.kind == "index" or len(part.shape) == 1:
        return Block(Identity(part.features))
    return Block(Identity(part.shape[-1]), on="last")


def zero_block(part: Part) -> Block:
    """A block from `one` that gives zero."""
    if len(part.shape) == 1:
        return Block(Zero(part.features, 1))
    return Block(Zero(part.shape[-1], 1), on="last")
