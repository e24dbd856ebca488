"""Wiring: how each block acts between its two parts, worked out once per program.

The schedule says what a program means; its wiring is the same tree with every question answered that does
not depend on a run: which rows pass values on as they are, which dimensions a block leaves alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from onematrix.programs.activations import Activation
from onematrix.programs.block_matrix import Block, BlockMatrix, leading, operand_shape
from onematrix.programs.flow import written
from onematrix.programs.joins import Join
from onematrix.programs.opaque import Opaque
from onematrix.programs.part import Part
from onematrix.programs.schedule import Loop, Node, Row, Seq, Step
from onematrix.structures.base import Structure
from onematrix.structures.dense import Dense
from onematrix.structures.embedding import Embedding
from onematrix.structures.identity import Identity
from onematrix.structures.sizes import Size


@dataclass(frozen=True)
class Wire:
    """One block at one place. Values are (batch, *shape of the part), products act on the last dimension.

    column: part read. slot: place of the structure in the program's list. passes: the value goes through as
    it is. classes: of an index part whose one-hot vectors are multiplied; embeds: by picking columns.
    kept: leading dimensions the block leaves alone; the others are flattened when there are several.
    spread: dimensions of length 1 put in after the batch. tail: the shape that takes the place of the last
    dimension of the product; None when the product has its shape already. fills: the shape to repeat the
    product to, where no block of the sum has one value per place of the row's part. named: has free sizes.
    kind: class of the structure.
    """

    column: str
    slot: int
    passes: bool = False
    classes: Size | None = None
    embeds: bool = False
    kept: int = 0
    flattens: bool = False
    spread: int = 0
    tail: tuple[Size, ...] | None = None
    fills: tuple[Size, ...] | None = None
    named: bool = False
    kind: type[Structure] = Dense
    plain: bool = field(init=False)  # needs no reshaping: the product is one call of the structure

    def __post_init__(self) -> None:
        more = self.passes or self.classes or self.flattens or self.spread or self.tail or self.named
        object.__setattr__(self, "plain", not more)


@dataclass(frozen=True)
class WiredRow:
    """A row: one tuple of wires per sum, activation (None: identity) on the first, join (None: one sum)."""

    part: str
    sums: tuple[tuple[Wire, ...], ...]
    activation: Activation | None = None
    join: Join | Opaque | None = None


@dataclass(frozen=True)
class WiredStep:
    """The rows a step writes."""

    rows: tuple[WiredRow, ...]


@dataclass(frozen=True)
class WiredSeq:
    """Nodes one after the other."""

    body: tuple["Wired", ...]


@dataclass(frozen=True, eq=False)
class WiredLoop:
    """A loop, its body, its maps as rows, and what an iteration of it writes."""

    loop: Loop
    body: "Wired"
    written: tuple[str, ...]
    init: tuple[WiredRow, ...] = ()
    feeds: tuple[WiredRow, ...] = ()
    outputs: tuple[WiredRow, ...] = ()
    carry: tuple[WiredRow, ...] = ()


Wired = WiredStep | WiredSeq | WiredLoop


def wire_schedule(node: Node, parts: Mapping[str, Part], structures: Sequence[Structure]) -> Wired:
    """The wiring of a schedule whose shapes have been checked; slots count `structures`."""
    return _Wirer(parts, {id(s): slot for slot, s in enumerate(structures)}).node(node)


class _Wirer:
    def __init__(self, parts: Mapping[str, Part], slots: Mapping[int, int]) -> None:
        self.parts, self.slots = parts, slots

    def node(self, node: Node) -> Wired:
        if isinstance(node, Step):
            return WiredStep(tuple(self.row(row) for row in node.rows))
        if isinstance(node, Seq):
            return WiredSeq(tuple(self.node(child) for child in node.body))
        return WiredLoop(
            node,
            self.node(node.body),
            tuple(sorted(written(node.body))),
            init=self.map(node.init),
            feeds=self.map(node.feeds, peel_source=node.over),
            outputs=self.map(node.outputs, peel_target=node.length),
            carry=self.map(node.carry),
        )

    def row(self, row: Row) -> WiredRow:
        own = row.join is not None and row.join.keeps_operand_shapes
        sums = [
            self.operand(blocks, row.join is not None and i == row.join.index_operand)
            if own
            else self.sum(blocks, self.parts[row.part])
            for i, blocks in enumerate(row.sums)
        ]
        activation = None if row.activation.name == "identity" else row.activation
        return WiredRow(row.part, tuple(sums), activation, row.join)

    def map(
        self, matrix: BlockMatrix | None, peel_source: Size | None = None, peel_target: Size | None = None
    ) -> tuple[WiredRow, ...]:
        if matrix is None:
            return ()
        rows = []
        for name in matrix.rows:
            target = _peeled(self.parts[name], peel_target)
            rows.append(WiredRow(name, (self.sum(matrix.row(name), target, peel_source),)))
        return tuple(rows)

    def sum(
        self, blocks: Sequence[tuple[str, Block]], target: Part, peel_source: Size | None = None
    ) -> tuple[Wire, ...]:
        """A sum in the shape of its row's part."""
        wires = [self.wire(c, b, _peeled(self.parts[c], peel_source), target) for c, b in blocks]
        if wires and all(wire.spread for wire in wires):
            wires[0] = replace(wires[0], fills=target.shape)
        return tuple(wires)

    def operand(self, blocks: Sequence[tuple[str, Block]], raw: bool) -> tuple[Wire, ...]:
        """A sum in the shape of what it reads; raw: integers as they are."""
        if raw:
            return tuple(Wire(c, self.slots[id(b.structure)], passes=True) for c, b in blocks)
        rank = max(len(operand_shape("operand", b, self.parts[c])) for c, b in blocks)
        return tuple(self.wire(c, b, self.parts[c], None, rank) for c, b in blocks)

    def wire(self, column: str, block: Block, source: Part, target: Part | None, rank: int = 0) -> Wire:
        a, slot = block.structure, self.slots[id(block.structure)]
        index = source.kind == "index"
        if index and target is not None and target.kind == "index":
            return Wire(column, slot, passes=True)
        same = target is None or target.shape == source.shape
        spread = max(0, rank - len(source.shape))
        if isinstance(a, Identity) and not index and same and not spread:
            return Wire(column, slot, passes=True)
        m, n = a.shape
        kept = len(leading(source, n) or ()) if block.on == "last" else 0
        tail: tuple[Size, ...] | None = None
        if target is None:
            spread = max(0, rank - kept - 1)
            if isinstance(a, Identity):
                spread, tail = rank - len(source.shape), source.shape[kept:]
        else:
            before = len(leading(target, m) or ()) if block.on == "last" else 0
            spread, tail = before - kept, target.shape[before:]
        return Wire(
            column,
            slot,
            classes=source.shape[-1] if index else None,
            embeds=index
            and isinstance(a, Dense | Embedding)
            and n == source.shape[-1]
            and kept == len(source.shape) - 1,
            kept=kept,
            flattens=len(source.shape) - kept != 1,
            spread=spread,
            tail=None if tail is None or (len(tail) == 1 and not spread) else tail,
            named=has_names(a),
            kind=type(a),
        )


def outer_nodes(wired: Wired) -> list[WiredStep | WiredLoop]:
    """The steps and loops that run one after the other, in order; not those inside loops."""
    if isinstance(wired, WiredSeq):
        return [node for child in wired.body for node in outer_nodes(child)]
    return [wired]


def every_row(wired: Wired, loops: bool = True) -> list[WiredRow]:
    """The rows in order, those inside loops (loops=False: without them)."""
    if isinstance(wired, WiredSeq):
        return [row for child in wired.body for row in every_row(child, loops)]
    if isinstance(wired, WiredLoop):
        return every_row(wired.body, loops) if loops else []
    return list(wired.rows)


def _peeled(part: Part, size: Size | None) -> Part:
    return part if size is None else part.peel(size) or part


def has_names(structure: Structure) -> bool:
    """Whether a size of the structure, or of one inside it, is left free until run time."""
    if any(isinstance(getattr(structure, name), str) for name in structure.sizes_are_free):
        return True
    inner = [v if isinstance(v, tuple) else (v,) for v in vars(structure).values()]
    return any(has_names(s) for group in inner for s in group if isinstance(s, Structure))
