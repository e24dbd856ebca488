"""Embedding tables: a matrix whose columns are picked by an index part."""

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
class Embedding(Structure):
    """A = Wᵀ: (d, v), column i the vector of class i; column `padding` (−1: none) is a constant, never trained.

    >>> Embedding(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).pick(torch.tensor([1]))
    tensor([[3., 4.]])
    """

    weight: Tensor  # (v, d)
    padding: int = -1

    def check(self) -> None:
        if self.weight.dim() != 2 or not -1 <= self.padding < len(self.weight):
            raise ShapeError(
                f"embedding: a table (v, d) and a padding in -1..v-1 were needed, "
                f"got {tuple(self.weight.shape)} and {self.padding}"
            )

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.weight.shape[1], self.weight.shape[0]

    def pick(self, index: Tensor) -> Tensor:
        """The columns the integers name: (…) → (…, d)."""
        return functional.embedding(index, self.weight, self.padding if self.padding >= 0 else None)

    def _table(self) -> Tensor:
        if self.padding < 0:
            return self.weight
        here = torch.arange(len(self.weight), device=self.weight.device) == self.padding
        return torch.where(here.unsqueeze(-1), self.weight.detach(), self.weight)

    def _to_dense(self) -> Tensor:
        return self._table().mT

    def _matmul(self, x: Tensor) -> Tensor:
        return x @ self._table()

    def _rmatmul(self, y: Tensor) -> Tensor:
        return functional.linear(y, self._table())

    def multiply_adds(self) -> int:
        return self.weight.numel()

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for v, d, padding in ((1, 1, -1), (4, 3, -1), (3, 4, 1)):
            yield cls(torch.randn(v, d, generator=generator, dtype=torch.float64), padding)
