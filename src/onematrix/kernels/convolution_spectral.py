"""Convolution in one dimension by the FFT: for kernels so long that multiplying out every tap costs more."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onematrix.errors import ShapeError
from onematrix.kernels.portable_gradients import portable_gradients
from onematrix.structures.ordinary import is_ordinary
from onematrix.structures.spectral import COARSE, fast_size

# y_i = Σ_a w_a x_{i + a d − p} is a cyclic correlation of length N when the p places before the input and those
# behind it may be the same: N ≥ L + max(p, p'). The kernel, dilated and turned back by p places, has the spectrum
# W; then y is the inverse transform of X W̄, its gradients those of G W (x) and X Ḡ (w).


def spectral_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding: tuple[int, int] = (0, 0),
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """torch.conv1d(pad(x), weight, bias, stride 1): (B, O, L + p + p' − d (K − 1)).

    x: (B, C, L); weight: (O, C ÷ groups, K); padding (p, p') zeros before and behind. Real FFTs of the next fast
    size N ≥ L + max(p, p'): (B C + B O + O C ÷ groups) of them, 3 per channel and twice that with gradients, and
    B O (C ÷ groups) N ÷ 2 complex products, whatever the length of the kernel. float16 and bfloat16 are taken in
    float32. Differentiable to any order.
    D. Fu et al., arXiv:2311.05908v1, §2 (long convolutions by FFT).

    >>> spectral_convolution(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[1.0, 10.0]]])).round()
    tensor([[[21., 32.]]])
    """
    _check(x, weight, padding, dilation, groups)
    options = (padding, dilation, groups)
    if 0 in (x.numel(), weight.numel()):  # MKL refuses an empty batch
        y = torch.conv1d(functional.pad(x, padding), weight, None, 1, 0, dilation, groups)
    elif is_ordinary(x, weight):
        y = _Spectral.apply(x, weight, options)  # type: ignore[no-untyped-call]
    else:
        y = _convolve(x, weight, options)[0]
    return y if bias is None else y + bias[:, None]


def convolution_by_length(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: tuple[int, int],
    dilation: int,
    groups: int,
    least: int,
    alone: int | None = None,
) -> Tensor:
    """The same, by FFT for x of at least so many places and by torch's convolution below, and when exported.

    least: where gradients follow; alone: where none do, None: never.

    >>> x, w = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[1.0, 10.0]]])
    >>> convolution_by_length(x, w, None, (0, 0), 1, 1, least=4)
    tensor([[[21., 32.]]])
    """
    trains = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    places = least if trains else alone
    if not torch.compiler.is_exporting() and places is not None and x.shape[2] >= places:
        return spectral_convolution(x, weight, bias, padding, dilation, groups)
    before, after = padding
    if before != after:
        x, before = functional.pad(x, padding), 0
    return torch.conv1d(x, weight, bias, 1, before, dilation, groups)


Options = tuple[tuple[int, int], int, int]


def _check(x: Tensor, weight: Tensor, padding: tuple[int, int], dilation: int, groups: int) -> None:
    fits = x.dim() == 3 and weight.dim() == 3 and weight.shape[1] * groups == x.shape[1]
    if not fits or weight.shape[0] % groups or min(padding) < 0:
        raise ShapeError(
            f"spectral convolution: x (B, C, L), weight (O, C ÷ {groups}, K) and padding of at least 0 were "
            f"needed, got {tuple(x.shape)}, {tuple(weight.shape)} and {padding}",
            got=(tuple(x.shape), tuple(weight.shape)),
        )
    if x.shape[2] + sum(padding) < (span := _span(weight, dilation)):
        raise ShapeError(
            f"spectral convolution: a kernel that spans {span} places does not fit into {x.shape[2]} with "
            f"padding {padding}",
            needed=span,
            got=x.shape[2],
        )


def _span(weight: Tensor, dilation: int) -> int:
    return dilation * (weight.shape[2] - 1) + 1


def _size(length: int, weight: Tensor, padding: tuple[int, int], dilation: int) -> int:
    return fast_size(max(length + max(padding), _span(weight, dilation)))


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in COARSE else x


def _convolve(x: Tensor, weight: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the spectra of x (B, groups, C ÷ groups, F) and of the kernel (groups, O ÷ groups, C ÷ groups, F)."""
    padding, dilation, groups = options
    size = _size(x.shape[2], weight, padding, dilation)
    inputs: Tensor = torch.fft.rfft(_wide(x), size)
    inputs = inputs.unflatten(1, (groups, -1))
    kernel = _kernel_spectrum(weight, size, options)
    out = _mix(inputs, kernel.conj(), "bgcf,gocf->bgof").flatten(1, 2)
    y: Tensor = torch.fft.irfft(out, size)
    count = x.shape[2] + sum(padding) - _span(weight, dilation) + 1
    return y[..., :count].to(x.dtype), inputs, kernel


def _kernel_spectrum(weight: Tensor, size: int, options: Options) -> Tensor:
    padding, dilation, groups = options
    taps, span = _wide(weight), _span(weight, dilation)
    if dilation > 1:
        taps = functional.pad(taps.unsqueeze(-1), (0, dilation - 1)).flatten(2)[..., :span]
    placed = functional.pad(taps, (0, size - span)).roll(-padding[0], 2)
    spectrum: Tensor = torch.fft.rfft(placed, size)
    return spectrum.unflatten(0, (groups, -1))


def _mix(a: Tensor, b: Tensor, pattern: str) -> Tensor:
    """The product per frequency; of single channels as it stands, without a matrix product of size 1."""
    if pattern == "bgcf,gocf->bgof" and a.shape[2] == 1:
        return a * b[:, :, 0]
    if pattern == "bgof,gocf->bgcf" and b.shape[2] == 1 and b.shape[1] == 1:
        return a * b[:, 0]
    if pattern == "bgcf,bgof->gocf" and a.shape[2] == 1:
        return (a * b if len(a) == 1 else (a * b).sum(0, keepdim=True)).squeeze(0).unsqueeze(2)
    return torch.einsum(pattern, a, b)


class _Spectral(torch.autograd.Function):
    """Keeps both spectra, so that the gradients take one more FFT of the output's gradient and two back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, options: Options) -> Tensor:
        y, inputs, kernel = _convolve(x, weight, options)
        ctx.options = options
        ctx.save_for_backward(x, weight, inputs, kernel)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inputs, kernel = ctx.saved_tensors
        if torch.is_grad_enabled():  # of gradients: the spectra here are no functions of x and of the weight
            portable = portable_gradients(
                lambda a, b: [_convolve(a, b, ctx.options)[0]], (x, weight), (grad,)
            )
            return (*portable, None)
        padding, dilation, groups = ctx.options
        size = _size(x.shape[2], weight, padding, dilation)
        out: Tensor = torch.fft.rfft(_wide(grad), size)
        out = out.unflatten(1, (groups, -1))
        dx = dw = None
        if ctx.needs_input_grad[0]:
            whole: Tensor = torch.fft.irfft(_mix(out, kernel, "bgof,gocf->bgcf").flatten(1, 2), size)
            dx = whole[..., : x.shape[2]].to(x.dtype)
        if ctx.needs_input_grad[1]:
            every: Tensor = torch.fft.irfft(_mix(inputs, out.conj(), "bgcf,bgof->gocf").flatten(0, 1), size)
            taps = every.roll(padding[0], 2)[..., : _span(weight, dilation) : dilation]
            dw = taps.to(weight.dtype)
        return dx, dw, None
