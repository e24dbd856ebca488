"""The schedule: a tree of steps, sequences and loops."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from onematrix.errors import ProgramError, ShapeError
from onematrix.programs.activations import Activation, make_activation
from onematrix.programs.block_matrix import Block, BlockMatrix, operand_shape
from onematrix.programs.joins import Join, contraction_axes, make_join
from onematrix.programs.opaque import Opaque
from onematrix.programs.part import Part, check_size
from onematrix.structures.sizes import Size


@dataclass(frozen=True)
class Row:
    """One row of a step: the sums it reads, its activation (on the first sum) and its join."""

    part: str
    sums: tuple[tuple[tuple[str, Block], ...], ...]
    activation: Activation
    join: Join | Opaque | None

    def reads(self) -> list[str]:
        """Input parts, each once."""
        return list(dict.fromkeys(column for blocks in self.sums for column, _ in blocks))


class Step:
    """x ← σ(G x) ∘ H x for the written rows, all reading the old state; other parts hold.

    matrices: G, then H, and further ones for joins of more than two sums. activations: {part: text}.
    joins: {part: text}, default "hadamard" for a row present in H. rows: the parts written, by default
    those with a block in G. A written row without blocks is σ(0).
    Raises ProgramError for an activation, join or row of an unknown part.
    """

    def __init__(
        self,
        *matrices: BlockMatrix,
        activations: Mapping[str, str | Activation] | None = None,
        joins: Mapping[str, str | Join | Opaque] | None = None,
        rows: Sequence[str] | None = None,
    ) -> None:
        if not matrices:
            raise ProgramError("a step needs at least one block matrix")
        self.matrices = matrices
        self.parts = merge_parts(*(matrix.parts for matrix in matrices))
        names = matrices[0].rows if rows is None else tuple(rows)
        for what, given in (("activation", activations), ("join", joins), ("row", dict.fromkeys(names))):
            for name in given or {}:
                if name not in self.parts:
                    raise ProgramError(
                        f"{what} of part {name!r}: no such part; parts: {', '.join(self.parts)}"
                    )
        for name in [*(activations or {}), *(joins or {}), *(r for m in matrices[1:] for r in m.rows)]:
            if name not in names:
                raise ProgramError(
                    f"part {name!r} has an activation, join or H row but the step does not write it; "
                    f"rows written: {', '.join(names)}"
                )
        if len(set(names)) != len(names):
            raise ProgramError(f"a step writes each row once, got {names}")
        self.rows = tuple(self._make_row(name, activations or {}, joins or {}) for name in names)
        free = {row.part for row in self.rows if row.join is not None and row.join.keeps_operand_shapes}
        for matrix in matrices:
            matrix.check_blocks(free=free)
        for row in self.rows:
            if isinstance(row.join, Join) and row.join.pattern is not None:
                _check_contraction(row, row.join, self.parts)

    def _make_row(
        self,
        name: str,
        activations: Mapping[str, str | Activation],
        joins: Mapping[str, str | Join | Opaque],
    ) -> Row:
        sums = [tuple(matrix.row(name)) for matrix in self.matrices]
        while len(sums) > 1 and not sums[-1]:
            sums.pop()
        join = make_join(joins[name]) if name in joins else make_join("hadamard") if len(sums) > 1 else None
        if join is not None and join.arity != len(sums):
            raise ProgramError(
                f"row {name!r}: join {join} combines {join.arity} sums, the step gives {len(sums)}"
            )
        return Row(name, tuple(sums), make_activation(activations.get(name)), join)


def _check_contraction(row: Row, join: Join, parts: Mapping[str, Part]) -> None:
    """Raise ShapeError unless the axes of the pattern fit what the row reads and writes."""
    operands, output = contraction_axes(join.pattern or "")
    lengths: dict[str, Size] = {}
    if not all(row.sums):
        raise ProgramError(f"row {row.part!r}: a sum of {join} has no block, so it has no shape")
    shapes = [operand_shape(f"row {row.part!r}", b, parts[c]) for blocks in row.sums for c, b in blocks[:1]]
    for axes, shape in [*zip(operands, shapes, strict=True), (output, parts[row.part].shape)]:
        if len(axes) != len(shape):
            raise ShapeError(
                f"row {row.part!r}: {' '.join(axes)!r} of {join} has {len(axes)} axes, the part {shape}"
            )
        for axis, size in zip(axes, shape, strict=True):
            if lengths.setdefault(axis, size) != size:
                raise ShapeError(f"row {row.part!r}: axis {axis!r} of {join} is {lengths[axis]} and {size}")


class Seq:
    """Steps and loops one after the other."""

    def __init__(self, *body: "Node") -> None:
        if not body:
            raise ProgramError("a sequence needs at least one step or loop")
        self.body = body


@dataclass(frozen=True, eq=False)
class Loop:
    """The body again and again: over a named dimension, a number of times, or until it stands still.

    over: peels this dimension off the fed parts and runs the body once per tick. Per tick: first init,
    later carry → feeds overwrite → body → outputs are read and stacked. Only parts in the carry survive.
    feeds: (inner, outer) blocks, the outer part without the dimension (an outer part that has none is fed
    whole). outputs: (outer, inner). init: (inner, outer), zero where absent. carry: (inner, inner).
    reverse: from the last tick to the first. valid: a part of shape (over,) that tells which ticks count
    per sample; elsewhere the state holds and outputs are zero. ticks: their number where it differs from
    the length, as "time + 3"; after: "zero" or "hold", what is fed past the end.

    times: apply the body that often; written parts start at init or zero, all parts survive.
    until: apply until no written part of a sample changes by more than this, at most `at_most` times;
    a sample that stands still is held.
    """

    body: "Node"
    over: str | None = None
    times: Size | None = None
    until: float | None = None
    at_most: int = 100
    feeds: BlockMatrix | None = None
    outputs: BlockMatrix | None = None
    init: BlockMatrix | None = None
    carry: BlockMatrix | None = None
    reverse: bool = False
    valid: str | None = None
    ticks: Size | None = None
    after: str = "zero"
    parts: dict = field(init=False, repr=False)  # type: ignore[type-arg]

    def __post_init__(self) -> None:
        kinds = [k for k in (self.over, self.times, self.until) if k is not None]
        if len(kinds) != 1:
            raise ProgramError("a loop needs exactly one of over=, times=, until=")
        if self.over is not None and not str(self.over).isidentifier():
            raise ProgramError(
                f"loop over={self.over!r}: the name of a dimension, such as 'time', was needed"
            )
        if self.over is None and (self.feeds or self.outputs or self.carry or self.valid or self.reverse):
            raise ProgramError("feeds, outputs, carry, valid and reverse belong to Loop(over=...)")
        if self.over is None and (self.ticks is not None or self.after != "zero"):
            raise ProgramError("ticks and after belong to Loop(over=...)")
        if self.after not in ("zero", "hold"):
            raise ProgramError(f"loop after={self.after!r}: 'zero' or 'hold' was needed")
        for name in ("times", "ticks"):
            if (size := getattr(self, name)) is not None:
                object.__setattr__(self, name, check_size(size, f"loop {name}", least=0))
        if self.until is not None and (not 0 < self.until < math.inf or self.at_most < 1):
            raise ProgramError(
                f"loop until={self.until}, at_most={self.at_most}: both must be positive and finite"
            )
        matrices = [m for m in (self.feeds, self.outputs, self.init, self.carry) if m is not None]
        object.__setattr__(self, "parts", merge_parts(*(matrix.parts for matrix in matrices)))
        for matrix in matrices:
            if matrix is self.feeds:
                matrix.check_blocks(peel_columns=self.over)
            elif matrix is self.outputs:
                matrix.check_blocks(peel_rows=self.length)
                _check_stacks(matrix, self.length)
            else:
                matrix.check_blocks()

    @property
    def length(self) -> Size:
        """Number of ticks, as a size; the dimension along which outputs are stacked."""
        return self.ticks if self.ticks is not None else self.over or 1


Node = Step | Seq | Loop


def _check_stacks(outputs: BlockMatrix, length: Size) -> None:
    """Raise ShapeError unless every output has the dimension along which its ticks are stacked."""
    for name in outputs.rows:
        part = outputs.parts[name]
        if length not in part.stored_shape:
            raise ShapeError(f"loop, output {name!r}: a dimension {length!r} was needed, got {part.shape}")


def merge_parts(*tables: Mapping[str, object]) -> dict:  # type: ignore[type-arg]
    """One table of parts. Raises ProgramError when a name stands for two different parts."""
    merged: dict = {}  # type: ignore[type-arg]
    for table in tables:
        for name, part in table.items():
            if merged.setdefault(name, part) != part:
                raise ProgramError(f"part {name!r} is declared twice, as {merged[name]} and as {part}")
    return merged


def walk(node: Node) -> Iterator[Node]:
    """Every node of the schedule, outer before inner, in order."""
    yield node
    if isinstance(node, Seq):
        for child in node.body:
            yield from walk(child)
    elif isinstance(node, Loop):
        yield from walk(node.body)


def loop_matrices(loop: Loop) -> list[tuple[str, BlockMatrix]]:
    """(name, block matrix) of the loop's own maps that are there, in the order they act."""
    named = (("init", loop.init), ("feed", loop.feeds), ("output", loop.outputs), ("carry", loop.carry))
    return [(name, matrix) for name, matrix in named if matrix is not None]


def blocks_of(node: Node) -> Iterator[tuple[str, str, Block]]:
    """(row, column, block) of every block of one node itself (not of its body)."""
    if isinstance(node, Step):
        for row in node.rows:
            for blocks in row.sums:
                for column, block in blocks:
                    yield row.part, column, block
    elif isinstance(node, Loop):
        for _, matrix in loop_matrices(node):
            for name in matrix.rows:
                for column, block in matrix.row(name):
                    yield name, column, block
