"""Depthwise convolution as a sum of shifted inputs times one number per channel: for kernels of a few taps."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv1d_weight as grad_of_weight

from onematrix.errors import ShapeError
from onematrix.kernels.portable_gradients import portable_gradients
from onematrix.structures.ordinary import is_ordinary


def shifted_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding: tuple[int, int] = (0, 0),
    dilation: int = 1,
) -> Tensor:
    """y[b, c, i] = Σ_a w[c, 0, a] x[b, c, i + a d − p]: (B, C, L + p + p' − d (K − 1)).

    x: (B, C, L); weight: (C, 1, K); padding (p, p') zeros before and behind. K passes over the output, the
    same multiply-adds as the definition: the diagonals of a banded matrix, one after the other. Differentiable to
    any order.

    >>> shifted_convolution(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[1.0, 10.0]]]))
    tensor([[[21., 32.]]])
    """
    if x.dim() != 3 or weight.dim() != 3 or weight.shape[:2] != (x.shape[1], 1) or min(padding) < 0:
        raise ShapeError(
            "shifted convolution: x (B, C, L), weight (C, 1, K) and padding of at least 0 were needed, got "
            f"{tuple(x.shape)}, {tuple(weight.shape)} and {padding}",
            got=(tuple(x.shape), tuple(weight.shape)),
        )
    span = dilation * (weight.shape[2] - 1) + 1
    if x.shape[2] + sum(padding) < span:
        raise ShapeError(
            f"shifted convolution: a kernel that spans {span} places does not fit into {x.shape[2]} with "
            f"padding {padding}",
            needed=span,
            got=x.shape[2],
        )
    if is_ordinary(x, weight):
        y = _Shifted.apply(x, weight, padding, dilation)  # type: ignore[no-untyped-call]
    else:
        y = _shift(x, weight, padding, dilation)
    return y if bias is None else y + bias[:, None]


def _pieces(x: Tensor, taps: int, padding: tuple[int, int], dilation: int) -> list[Tensor]:
    """The inputs every tap reads, as views of one padded copy."""
    wide = functional.pad(x, padding) if any(padding) else x
    count = wide.shape[2] - dilation * (taps - 1)
    return [wide.narrow(2, a * dilation, count) for a in range(taps)]


def _shift(x: Tensor, weight: Tensor, padding: tuple[int, int], dilation: int) -> Tensor:
    factors = weight.unbind(2)
    pieces = _pieces(x, len(factors), padding, dilation)
    y = pieces[0] * factors[0]
    for piece, factor in zip(pieces[1:], factors[1:], strict=True):
        y = torch.addcmul(y, piece, factor)
    return y


class _Shifted(torch.autograd.Function):
    """Sums in place; the gradient of x is the same with the kernel turned round, that of the kernel is torch's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: tuple[int, int], dilation: int) -> Tensor:
        ctx.options = (padding, dilation)
        ctx.save_for_backward(x, weight)
        return _shift_in_place(x, weight, padding, dilation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        padding, dilation = ctx.options
        if torch.is_grad_enabled():
            found = portable_gradients(lambda a, b: [_shift(a, b, padding, dilation)], (x, weight), (grad,))
            return (*found, None, None)
        dx = dw = None
        if ctx.needs_input_grad[0]:
            reach = dilation * (weight.shape[2] - 1)
            back = (reach - padding[0], reach - padding[1])  # below 0: cut off
            dx = _shift_in_place(grad, weight.flip(2), back, dilation)
        if ctx.needs_input_grad[1]:
            wide = functional.pad(x, padding) if any(padding) else x
            dw = grad_of_weight(wide, weight.shape, grad, 1, 0, dilation, weight.shape[0])
        return dx, dw, None, None


def _shift_in_place(x: Tensor, weight: Tensor, padding: tuple[int, int], dilation: int) -> Tensor:
    factors = weight.unbind(2)
    pieces = _pieces(x, len(factors), padding, dilation)
    y = pieces[0] * factors[0]
    for piece, factor in zip(pieces[1:], factors[1:], strict=True):
        y.addcmul_(piece, factor)
    return y
