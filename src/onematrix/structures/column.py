"""Columns: a vector as a matrix with one column, which is what a bias is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from onematrix.errors import ShapeError
from onematrix.structures.base import Structure
from onematrix.structures.sizes import Size


@dataclass(frozen=True, eq=False)
class Column(Structure):
    """A = v: (m, 1), m numbers, m multiply-adds. A bias b is the block Column(b) from the part `one`.

    >>> Column(torch.tensor([2.0, 3.0])).matmul(torch.tensor([[1.0]]))
    tensor([[2., 3.]])
    """

    vector: Tensor  # (m,)

    def check(self) -> None:
        if self.vector.dim() != 1:
            raise ShapeError(f"column.vector: one dimension was needed, got {tuple(self.vector.shape)}")

    @property
    def shape(self) -> tuple[Size, Size]:
        return len(self.vector), 1

    def _to_dense(self) -> Tensor:
        return self.vector.unsqueeze(-1)

    def _matmul(self, x: Tensor) -> Tensor:
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):  # a product like the others of its sum
            return functional.linear(x, self.vector.unsqueeze(-1))
        return x * self.vector

    def _rmatmul(self, y: Tensor) -> Tensor:
        return (y @ self.vector).unsqueeze(-1)

    def multiply_adds(self) -> int:
        return len(self.vector)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield from (cls(torch.randn(m, generator=generator, dtype=torch.float64)) for m in (1, 2, 7))
