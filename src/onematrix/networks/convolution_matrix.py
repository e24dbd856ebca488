"""Convolution as the literature writes it: y = R U E x, with U upper triangular on the padded frame.

Y. Zhu, arXiv:2506.01966v3. One channel, column convention y = A x, positions in row-major order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onematrix.errors import ShapeError


@dataclass(frozen=True, eq=False)
class ConvolutionFactors:
    """sampler R: (outputs, frame), toeplitz U: (frame, frame), embedding E: (frame, inputs); A = R U E."""

    sampler: Tensor
    toeplitz: Tensor
    embedding: Tensor

    @property
    def matrix(self) -> Tensor:
        """A = R U E: (outputs, inputs)."""
        return self.sampler @ self.toeplitz @ self.embedding


def upper_shift(size: int, power: int = 1) -> Tensor:
    """S^power with S[i, i + 1] = 1: (size, size); zero from power = size on.

    >>> upper_shift(3)
    tensor([[0., 1., 0.],
            [0., 0., 1.],
            [0., 0., 0.]], dtype=torch.float64)
    """
    if power >= size:
        return torch.zeros(size, size, dtype=torch.float64)
    return torch.diag(torch.ones(size - power, dtype=torch.float64), power)


def toeplitz_frame(kernel: Tensor, frame: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """U(w) = Σ w[a, …] S^(a d) ⊗ …: upper triangular, in 1-d of bandwidths (0, (K − 1) d).

    w ↦ U(w) turns the convolution of kernels into the product of matrices as long as the frame is the same
    and taps beyond it are dropped: U(w) U(v) = U(w ∗ v).
    """
    total = torch.zeros((), dtype=torch.float64)
    for tap in torch.cartesian_prod(*map(torch.arange, kernel.shape)).reshape(-1, kernel.dim()).tolist():
        term = kernel[tuple(tap)].double().reshape(1, 1)
        for a, size, d in zip(tap, frame, dilation, strict=True):
            term = torch.kron(term, upper_shift(size, a * d))
        total = total + term
    return total


def convolution_factors(
    kernel: Tensor,
    sizes: Sequence[int],
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int = 0,
    dilation: Sequence[int] | int = 1,
) -> ConvolutionFactors:
    """R, U, E of torch's cross-correlation of one channel with zeros around it, in 1 or 2 dimensions.

    kernel: (K,) or (K_h, K_w). sizes: of the input. Frame N = L + 2 p; R takes every s-th place of the frame,
    E puts the input p places in. In float64; dense, N² numbers: for looking at and proving, not for computing.
    Raises ShapeError where kernel, sizes and options have different dimensions or the kernel exceeds the frame.

    >>> convolution_factors(torch.tensor([1.0, 2.0]), [3]).matrix
    tensor([[1., 2., 0.],
            [0., 1., 2.]], dtype=torch.float64)
    """
    n = kernel.dim()
    options = [[v] * n if isinstance(v, int) else list(v) for v in (stride, padding, dilation)]
    if n not in (1, 2) or len(sizes) != n or any(len(o) != n for o in options):
        raise ShapeError(
            f"convolution_factors: a kernel, sizes and options of 1 or 2 dimensions were needed, got a "
            f"kernel {tuple(kernel.shape)} and sizes {tuple(sizes)}",
            got=tuple(kernel.shape),
        )
    strides, paddings, dilations = options
    frame = [size + 2 * p for size, p in zip(sizes, paddings, strict=True)]
    spans = [d * (k - 1) + 1 for k, d in zip(kernel.shape, dilations, strict=True)]
    if any(span > size for span, size in zip(spans, frame, strict=True)):
        raise ShapeError(
            f"convolution_factors: a kernel that spans {spans} does not fit the frame {frame}; pad more",
            needed=spans,
            got=frame,
        )
    sampler = embedding = torch.ones(1, 1, dtype=torch.float64)
    for size, whole, span, s, p in zip(sizes, frame, spans, strides, paddings, strict=True):
        count = (whole - span) // s + 1
        identity = torch.eye(whole, dtype=torch.float64)
        sampler = torch.kron(sampler, identity[: count * s : s][:count].contiguous())
        embedding = torch.kron(embedding, identity[:, p : p + size].contiguous())
    return ConvolutionFactors(sampler, toeplitz_frame(kernel, frame, dilations), embedding)
