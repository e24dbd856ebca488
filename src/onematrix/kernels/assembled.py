"""A matrix put together from its blocks, each copied once."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from onematrix.errors import ShapeError
from onematrix.structures.ordinary import is_ordinary

Places = list[tuple[int, int]]


def assemble(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """[[A, B], [C, D]]: the blocks of each row side by side, the rows one above the other.

    rows: blocks (m_i, n_j), one dtype. Each number is copied once; the gradients are views.
    Raises ShapeError when the blocks leave gaps.

    >>> one = torch.ones(1, 1)
    >>> assemble([[one, 2 * one], [3 * one, 4 * one]])
    tensor([[1., 2.],
            [3., 4.]])
    """
    heights, widths = sizes_of_blocks(rows)
    blocks = [block for row in rows for block in row]
    if len({block.dtype for block in blocks}) > 1 or not is_ordinary(*blocks):
        return torch.cat([torch.cat(list(row), 1) for row in rows], 0)
    places = _places(heights), _places(widths)
    if torch.is_grad_enabled() and any(block.requires_grad for block in blocks):
        return _Assembled.apply(*places, *blocks)  # type: ignore[no-any-return, no-untyped-call]
    return _write(*places, blocks)


def sizes_of_blocks(rows: Sequence[Sequence[Tensor]]) -> tuple[list[int], list[int]]:
    """m of every row of blocks and n of every column. Raises ShapeError when the blocks leave gaps."""
    heights = [row[0].shape[0] for row in rows]
    widths = [block.shape[1] for block in rows[0]]
    shapes = [[tuple(block.shape) for block in row] for row in rows]
    if shapes != [[(m, n) for n in widths] for m in heights]:
        raise ShapeError(f"assemble: blocks that make a full matrix were needed, got {shapes}", got=shapes)
    return heights, widths


def _places(sizes: Sequence[int]) -> Places:
    return list(pairwise(accumulate(sizes, initial=0)))


def _write(down: Places, across: Places, blocks: Sequence[Tensor]) -> Tensor:
    whole = blocks[0].new_empty(down[-1][1], across[-1][1])
    for place, (top, bottom) in enumerate(down):
        line = blocks[place * len(across) : (place + 1) * len(across)]
        torch.cat(list(line), 1, out=whole[top:bottom])
    return whole


class _Assembled(torch.autograd.Function):
    """The assembled matrix; the gradient of a block is that of its place."""

    @staticmethod
    def forward(ctx: Any, down: Places, across: Places, *blocks: Tensor) -> Tensor:
        ctx.down, ctx.across = down, across
        return _write(down, across, [block.detach() for block in blocks])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pieces = [grad[a:b, c:d] for a, b in ctx.down for c, d in ctx.across]
        return None, None, *pieces
