"""Convolutions as explicit matrices: entries tied to the kernel, free on its pattern, or free on a triangle."""

import torch
from torch import Tensor, nn

from onematrix.experiments.unified.patterns import (
    Size,
    as_structure,
    convolution_entries,
    triangular_entries,
)
from onematrix.programs.linear import Linear
from onematrix.structures.compressed import CSR
from onematrix.structures.masked import Masked


class TiedConvolution(nn.Module):
    """y = A(w) x + b with A(w) compressed by rows and A.values = w[tap]: the parameters of nn.Conv2d.

    images: (B, C, H, W). The gradient of a weight is the sum over the entries it stands in.
    """

    tap: Tensor
    crow_indices: Tensor
    col_indices: Tensor

    def __init__(self, native: nn.Conv2d, size: Size) -> None:
        super().__init__()
        a = as_structure(native, size)
        positions, tap = convolution_entries(a)
        pattern = CSR.from_positions(*a.fixed_shape, positions, torch.zeros(len(tap)))
        self.weight, self.bias = native.weight, native.bias
        self.register_buffer("tap", tap.clone())  # the original is shared
        self.register_buffer("crow_indices", pattern.crow_indices)
        self.register_buffer("col_indices", pattern.col_indices)
        self.columns, self.grid = pattern.columns, _output_grid(native, size)

    @property
    def structure(self) -> CSR:
        """A(w) over the kernel as it is now."""
        return CSR(self.weight.flatten()[self.tap], self.crow_indices, self.col_indices, self.columns)

    def forward(self, images: Tensor) -> Tensor:
        y = self.structure.matmul(images.flatten(1)).unflatten(1, self.grid)
        return y if self.bias is None else y + self.bias[:, None, None]


class FreeConvolution(nn.Module):
    """y = A x + b: every entry of A and b is its own parameter, started from the native kernel.

    regime "untied": the entries of the convolution, compressed by rows (a locally connected layer);
    "triangular": the upper triangle of the padded frame (see `triangular_entries`), zero where the
    convolution has no entry.
    """

    def __init__(self, native: nn.Conv2d, size: Size, regime: str) -> None:
        super().__init__()
        self.grid = _output_grid(native, size)
        bias = None if native.bias is None else native.bias.detach().repeat_interleave(self.grid[1:].numel())
        self.matrix = Linear(_free_matrix(native, size, regime), bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.matrix(images.flatten(1)).unflatten(1, self.grid)


def _free_matrix(native: nn.Conv2d, size: Size, regime: str) -> CSR | Masked:
    a = as_structure(native, size)
    m, n = a.fixed_shape
    positions, tap = convolution_entries(a)
    values = native.weight.detach().flatten()[tap]
    if regime == "untied":
        return CSR.from_positions(m, n, positions, values)
    kept = triangular_entries(a)
    start = values.new_zeros(m * n).index_put_((positions,), values)
    return Masked(start[kept], kept, m, n)


def _output_grid(native: nn.Conv2d, size: Size) -> torch.Size:
    """(channels, height, width) of the output."""
    return torch.Size([native.out_channels, *(int(n) for n in as_structure(native, size).output_sizes)])
