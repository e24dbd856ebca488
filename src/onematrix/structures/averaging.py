"""Averages and running sums along one axis."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from onematrix.structures.base import Structure
from onematrix.structures.sizes import Size


@dataclass(frozen=True, eq=False)
class Mean(Structure):
    """A[0, j] = 1 ÷ n: (1, n), the mean; n additions counted as multiply-adds. n may be named.

    >>> Mean(4).matmul(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    tensor([3.])
    """

    sizes_are_free = ("columns",)

    columns: int | str

    @property
    def shape(self) -> tuple[Size, Size]:
        return 1, self.columns

    def _to_dense(self) -> Tensor:
        n = self.fixed_shape[1]
        return torch.full((1, n), 1 / n, dtype=torch.float64)

    def _matmul(self, x: Tensor) -> Tensor:
        return x.sum(-1, keepdim=True) / self.fixed_shape[1]

    def _rmatmul(self, y: Tensor) -> Tensor:
        n = self.fixed_shape[1]
        return (y / n).expand(*y.shape[:-1], n)

    def multiply_adds(self) -> int:
        return self.fixed_shape[1]

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield from (cls(n) for n in (1, 2, 7))


@dataclass(frozen=True, eq=False)
class Cumulative(Structure):
    """A[i, j] = 1 for j ≤ i, else 0: (n, n), the running sum; additions alone, which are not counted. n may be named.

    >>> Cumulative(3).matmul(torch.tensor([1, 2, 3]))
    tensor([1, 3, 6])
    """

    square_only = True
    sizes_are_free = ("size",)

    size: int | str

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.size, self.size

    def _to_dense(self) -> Tensor:
        n = self.fixed_shape[0]
        return torch.ones(n, n, dtype=torch.float64).tril()

    def _matmul(self, x: Tensor) -> Tensor:
        return x.cumsum(-1)

    def _rmatmul(self, y: Tensor) -> Tensor:
        return y.flip(-1).cumsum(-1).flip(-1)

    def multiply_adds(self) -> int:
        return 0

    def nonzeros(self) -> int:
        n = self.fixed_shape[0]
        return n * (n + 1) // 2

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield from (cls(n) for n in (1, 2, 7))
