"""An elementwise recurrence together with the products it is fed."""

from collections.abc import Sequence

from torch import Tensor

from onematrix.kernels.elementwise_code import ElementwiseLoop
from onematrix.kernels.elementwise_loop import check_inputs, choose, run_elementwise_loop
from onematrix.kernels.elementwise_memory import forward_memory, parted
from onematrix.kernels.elementwise_numba import run_pieces
from onematrix.kernels.fed_product import FedProduct


def run_fed_elementwise_loop(
    loop: ElementwiseLoop,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    series: Sequence[Tensor | None],
    vectors: Sequence[Tensor],
    init: Sequence[Tensor],
    *,
    reverse: bool = False,
    valid: Tensor | None = None,
    overlap: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """`run_elementwise_loop` where the series that are None are W_i x_t + b_i, in the order of the weights.

    x: (B, T, n). weights: (m, n) each. biases: (m,) each, or None. B T m n multiply-adds a weight.
    With gradients the products of all ticks are in memory, B T m numbers a weight. Without, where they are many,
    those of a quarter of the ticks or fewer.

    >>> import torch
    >>> mean = ElementwiseLoop(1, 0, 1, (("add", 0, 1), ("scale", 2, 0.5)), outputs=(3,), carry=(3,))
    >>> given = torch.ones(1, 3, 2), [torch.ones(1, 2)], None, [None], [], [torch.zeros(1, 1)]
    >>> run_fed_elementwise_loop(mean, *given)[0][0].flatten()
    tensor([1.0000, 1.5000, 1.7500])
    """
    fed = FedProduct(x, weights, biases)
    rest = [*(s for s in series if s is not None), *vectors, *init]
    if fed.is_read_once(rest) and (length := fed.ticks_of_a_piece()) < x.shape[1]:
        ticks = [x.new_empty(()).expand(x.shape[1], len(x), m) for m in fed.widths]  # shapes alone
        tensors = [*_filled(series, ticks), *vectors, *init]
        sizes = check_inputs(loop, *parted(loop, tensors), valid)
        if sizes[1] == len(x) and choose(None, loop, tensors, sizes) == "numba":
            written = forward_memory(loop, tensors, sizes, reverse, valid, False, True, overlap)
            pieces = fed.pieces(length, reverse)
            return written.outputs, run_pieces(
                loop, series, vectors, init, pieces, fed.widths, written, sizes, reverse, valid
            )
    whole = _filled(series, _ticks_first(fed.whole(), fed))
    return run_elementwise_loop(loop, whole, vectors, init, reverse=reverse, valid=valid, overlap=overlap)


def _ticks_first(products: Tensor, fed: FedProduct) -> list[Tensor]:
    """Each product as a series, (T, B, m)."""
    return [product.transpose(0, 1) for product in products.split(fed.widths, -1)]


def _filled(series: Sequence[Tensor | None], products: Sequence[Tensor]) -> list[Tensor]:
    """The series, the products in place of those that are None."""
    made = iter(products)
    return [next(made) if s is None else s for s in series]
