"""A dense recurrence together with the products it is fed and the blocks of its matrix."""

from collections.abc import Sequence

from torch import Tensor

from onematrix.errors import ShapeError
from onematrix.kernels import dense_numba
from onematrix.kernels.assembled import assemble, sizes_of_blocks
from onematrix.kernels.dense_blocks import Blocks, run_by_blocks
from onematrix.kernels.dense_final import reads_as_columns
from onematrix.kernels.dense_loop import check_dense, run_plan
from onematrix.kernels.dense_plan import Activations, DensePlan
from onematrix.kernels.fed_product import FedProduct

# Numbers of W from which on its blocks are multiplied apart: 0.75 to 0.86 of the time then, 1.01 to 1.09 below.
LARGE = 2**23


def run_fed_dense_loop(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    blocks: Blocks,
    init: Tensor,
    activations: Activations,
    *,
    ticks: int | None = None,
    after: str = "zero",
    reverse: bool = False,
    valid: Tensor | None = None,
    last_only: bool = False,
    zero: bool = False,
    read: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """`run_dense_loop` of the inputs [W_1; …; W_k] x_t + b and the matrix that the blocks make.

    x: (B, T, n). weights: (m_i, n). biases: (m_i,) each, or None. blocks: rows of (m_i, m_j).
    The options are its own.
    Without gradients all states are written over what is fed; and where only the last state is wanted, a matrix of
    2^23 numbers, more than are fed, is not put together: the products of its blocks are added up in place.

    >>> import torch
    >>> one = torch.ones(1, 1)
    >>> run_fed_dense_loop(torch.ones(1, 3, 1), [one], None, [[one / 2]], 0 * one, ((1, "identity"),))[0].flatten()
    tensor([1.0000, 1.5000, 1.7500])
    """
    height = sum(len(w) for w in weights)
    ticks_lead = x.shape[2] <= height  # the copy of x is smaller than what it puts in order
    fed = FedProduct(x.transpose(0, 1) if ticks_lead else x, weights, biases)
    count = x.shape[1] if ticks is None else ticks
    plan = DensePlan(activations, count, after, reverse, last_only, zero, read)
    read_once = fed.is_read_once([init, *(block for row in blocks for block in row)]) and x.numel() > 0
    several = read_once and len(weights) > 1
    inputs = next(fed.pieces(fed.x.shape[1]))[2] if several else fed.whole()
    inputs = inputs if ticks_lead else inputs.transpose(0, 1)
    large = init.shape[1] ** 2 >= LARGE and len(blocks) > 1
    columns = read_once and large and count > 0 and reads_as_columns(init, plan)
    if valid is None and plan.last_only and columns and not dense_numba.serves(init, plan):
        _check(inputs, blocks, init, plan)
        return init.new_empty(0, *init.shape), run_by_blocks(inputs, blocks, init, plan)
    matrix = blocks[0][0] if len(blocks) == 1 else assemble(blocks)
    return run_plan(inputs, matrix, init, plan, valid, own=read_once)


def _check(inputs: Tensor, blocks: Blocks, init: Tensor, plan: DensePlan) -> None:
    """Raise ShapeError, DTypeError or ProgramError where these are no dense recurrence of square diagonal blocks."""
    heights, widths = sizes_of_blocks(blocks)
    if heights != widths:
        raise ShapeError(
            f"dense loop: square blocks on the diagonal needed, got rows {heights} and columns {widths}",
            got=(heights, widths),
        )
    check_dense(inputs, blocks[0][0].new_empty(()).expand(sum(heights), sum(widths)), init, plan, None)
