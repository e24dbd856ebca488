"""Shapes and kinds: whether every row, join, feed and mask of a schedule fits the parts it names."""

from collections.abc import Mapping

import torch

from onematrix.errors import ProgramError, ShapeError
from onematrix.programs.block_matrix import Block, BlockMatrix, operand_shape
from onematrix.programs.joins import Join
from onematrix.programs.part import ONE, Part
from onematrix.programs.schedule import Loop, Node, Row, Seq, Step, loop_matrices
from onematrix.structures.identity import Identity
from onematrix.structures.sizes import Size

Parts = Mapping[str, Part]
Blocks = tuple[tuple[str, Block], ...]


def check_shapes(node: Node, parts: Parts) -> None:
    """Raise ShapeError or ProgramError where a row, join, map or mask does not fit its parts."""
    if isinstance(node, Seq):
        for child in node.body:
            check_shapes(child, parts)
    elif isinstance(node, Step):
        for row in node.rows:
            _check_row(row, parts)
    else:
        _check_loop(node, parts)
        check_shapes(node.body, parts)


def _check_row(row: Row, parts: Parts) -> None:
    who, target = f"row {row.part!r}", parts[row.part]
    _check_written(who, row.part, target)
    if row.join is not None and row.join.keeps_operand_shapes:
        _check_operands(who, row, parts)
    if isinstance(row.join, Join) and row.join.name in ("gather", "scatter", "top_k"):
        _check_picking(who, row, row.join, parts)
    elif row.join is not None and row.join.name == "one_hot":
        _check_one_hot(who, row, parts)
    elif target.kind == "index":
        plain = row.activation.name == "identity" and row.join is None
        _check_index(who, row.sums[0] if plain else (), parts)


def _check_written(who: str, name: str, part: Part) -> None:
    if name == ONE:
        raise ProgramError(f"{who}: part 'one' is the constant 1; nothing can write it")
    if part.kind == "noise":
        raise ProgramError(f"{who}: a noise part is drawn, nothing can write it; use a real part")


def _check_index(who: str, blocks: Blocks, parts: Parts) -> None:
    """An index part takes the integers of another one, or those of a top_k."""
    fits = len(blocks) == 1 and _is_pass(*blocks[0], parts)
    if not fits:
        raise ProgramError(
            f"{who}: an index part is written by top_k or by one identity block from an index part"
        )


def _is_pass(column: str, block: Block, parts: Parts) -> bool:
    return isinstance(block.structure, Identity) and parts[column].kind == "index"


def _check_operands(who: str, row: Row, parts: Parts) -> None:
    """Every sum of a join that keeps shapes has blocks, and all of them have one shape."""
    for number, blocks in enumerate(row.sums, start=1):
        if not blocks:
            raise ProgramError(f"{who}: sum {number} of {row.join} has no block, so it has no shape")
        first, *others = (operand_shape(who, block, parts[column]) for column, block in blocks)
        for shape in others:
            short, long = sorted((shape, first), key=len)
            if long[len(long) - len(short) :] != short:
                raise ShapeError(f"{who}: sum {number} of {row.join} adds shapes {first} and {shape}")


def _check_picking(who: str, row: Row, join: Join, parts: Parts) -> None:
    """gather: (n, …), index (k, n) → (k, …). scatter(n): (k, …), index (k, n) → (n, …). top_k: (…, n) → (…, k, n)."""
    column, block = row.sums[0][0]
    values, target = operand_shape(who, block, parts[column]), parts[row.part]
    if join.name == "top_k":
        k = join.argument or 0
        needed = (*values[:-1], k, values[-1])
        if target.kind != "index" or k < 1 or (isinstance(values[-1], int) and k > values[-1]):
            raise ProgramError(f"{who}: {join} of {values} needs an index part {needed} with 1 ≤ k ≤ n")
    else:
        index = _index_operand(who, row.sums[1], join, parts)
        before, after = (index[1], index[0]) if join.name == "gather" else index
        needed = (after, *values[1:])
        if values[0] != before or (join.name == "scatter" and join.argument != after):
            raise ShapeError(f"{who}: {join} of {values} by an index part {index} does not fit")
    if target.shape != needed:
        raise ShapeError(f"{who}: {join} gives {needed}, the part is {target.shape}")


def _check_one_hot(who: str, row: Row, parts: Parts) -> None:
    """one_hot: integers (…) → an index part (…, n)."""
    column, block = row.sums[0][0]
    source, target = parts[column], parts[row.part]
    whole = source.dtype is not None and not getattr(torch, source.dtype).is_floating_point
    if target.kind != "index" or not whole or operand_shape(who, block, source) != target.stored_shape:
        raise ProgramError(
            f"{who}: one_hot of {source.shape} {source.dtype} needs integers and an index part (…, n), "
            f"the part is {target.shape} {target.kind}"
        )


def _index_operand(who: str, blocks: Blocks, join: Join, parts: Parts) -> tuple[Size, Size]:
    shape = parts[blocks[0][0]].shape
    if len(blocks) != 1 or not _is_pass(*blocks[0], parts) or len(shape) != 2:
        raise ProgramError(f"{who}: {join} needs one identity block from an index part (k, n) as second sum")
    return shape[0], shape[1]


def _check_loop(loop: Loop, parts: Parts) -> None:
    if loop.valid is not None and parts[loop.valid].shape != (loop.over,):
        raise ShapeError(
            f"loop valid={loop.valid!r}: shape ({loop.over},) was needed, got {parts[loop.valid].shape}"
        )
    for name, matrix in loop_matrices(loop):
        for row in matrix.rows:
            who = f"loop, {name} {row!r}"
            _check_written(who, row, parts[row])
            if parts[row].kind == "index":
                _check_index(who, tuple(matrix.row(row)), parts)
    _check_feeds(loop, loop.feeds, parts)


def _check_feeds(loop: Loop, feeds: BlockMatrix | None, parts: Parts) -> None:
    for (row, column), _ in feeds or ():
        part = parts[column]
        if part.kind == "noise":
            raise ProgramError(
                f"loop, feed {row!r}: noise part {column!r} needs no feed; read it in the body"
            )
        if loop.over in part.shape and loop.over not in part.stored_shape:
            raise ShapeError(f"loop, feed {row!r}: {loop.over!r} is the classes of {column!r}, not its ticks")
