"""Recognition in a whole program: each block with the shapes of the parts it stands between."""

import math
from collections.abc import Iterator

import torch

from onematrix.compiler.recognition import recognise
from onematrix.compiler.recognition_convolution import Grid
from onematrix.programs.block_matrix import Block
from onematrix.programs.part import Part
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop, blocks_of, walk
from onematrix.programs.substitution import replace_structures
from onematrix.structures.base import Structure
from onematrix.structures.column import Column
from onematrix.structures.convolution import Convolution
from onematrix.structures.identity import Ones
from onematrix.structures.per_axis import PerAxis
from onematrix.structures.sizes import Size


def recognise_blocks(program: Program, tolerance: float = 0.0) -> Program:
    """The same program with the structure of every block's fixed numbers found, as `recognise` finds it.

    Blocks of loops stay dense where they are not diagonal, a permutation or less: the kernel of a recurrence wants
    them so. A bias with one number per channel becomes that of a convolution.
    """
    blocks, looped = program.blocks(), _looped(program)
    grids: dict[int, list[tuple[Grid, Grid]]] = {}
    for row, column, block in blocks:
        target, source = (_grids(program.parts[name], block, side) for side, name in enumerate((row, column)))
        pairs = [(a, b) for a in target for b in source if len(a) == len(b) > 1]
        grids.setdefault(id(block.structure), []).extend(pairs)
    new = {
        id(s): recognise(s, tolerance, grids[id(s)], forms=id(s) not in looped) for s in program.structures
    }
    convolved = {row for row, _, b in blocks if isinstance(new[id(b.structure)], Convolution)}
    for row, _, block in blocks:
        if isinstance(block.structure, Column):
            shape = _fixed(program.parts[row].shape) if row in convolved and block.on == "all" else None
            new[id(block.structure)] = _per_channel(block.structure, shape)
    return replace_structures(program, new)


def _grids(part: Part, block: Block, side: int) -> list[Grid]:
    """The dimensions the block acts on, and the same as one channel."""
    size, kept = block.structure.shape[side], _fixed(part.shape)
    if block.on == "last":
        tails = (_fixed(part.shape[k:]) for k in range(len(part.shape)))
        kept = next((tail for tail in tails if tail is not None and math.prod(tail) == size), None)
    if kept is None or math.prod(kept) != size:
        return []
    return [kept, (1, *kept)]


def _fixed(shape: tuple[Size, ...]) -> Grid | None:
    sizes = tuple(size for size in shape if isinstance(size, int))
    return sizes if len(sizes) == len(shape) else None


def _looped(program: Program) -> set[int]:
    """Structures of loops, by id."""
    loops = [node for node in walk(program.schedule) if isinstance(node, Loop)]
    inside: Iterator[Block] = (
        block for loop in loops for node in walk(loop) for _, _, block in blocks_of(node)
    )
    return {id(block.structure) for block in inside}


def _per_channel(a: Column, shape: Grid | None) -> Structure:
    """One number per first dimension, where the others repeat it."""
    if shape is None or len(shape) < 2:
        return a
    table = a.vector.detach().reshape(shape[0], -1)
    if table.shape[1] == 1 or not torch.equal(table, table[:, :1].expand_as(table)):
        return a
    return PerAxis((Column(table[:, 0].contiguous()), Ones(table.shape[1], 1)))
