"""Dense matrices: every entry is stored."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from onematrix.errors import ShapeError
from onematrix.structures.base import Fit, Structure, below_minimum
from onematrix.structures.sizes import Size, numbers_within


@dataclass(frozen=True, eq=False)
class Dense(Structure):
    """A = W, every entry stored: m n numbers, m n multiply-adds.

    >>> Dense(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).matmul(torch.tensor([1.0, 1.0]))
    tensor([3., 7.])
    """

    can_fit = True
    can_random = True

    weight: Tensor  # (m, n)

    def check(self) -> None:
        if self.weight.dim() != 2:
            raise ShapeError(
                f"dense.weight: two dimensions were needed, got shape {tuple(self.weight.shape)}"
            )

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.weight.shape[0], self.weight.shape[1]

    def _to_dense(self) -> Tensor:
        return self.weight.clone()

    def _matmul(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)

    def _rmatmul(self, y: Tensor) -> Tensor:
        return y @ self.weight

    def multiply_adds(self) -> int:
        return self.weight.numel()

    @classmethod
    def _fit(cls, dense: Tensor, gram: Tensor | None, *, budget: float = 1.0) -> Fit:
        m, n = dense.shape
        if numbers_within(budget, m, n, cls.name) < m * n:
            raise below_minimum(cls, budget, m * n, m, n, "all entries")
        return Fit(cls(dense.clone(memory_format=torch.contiguous_format)), 0.0, 0.0)

    @classmethod
    def random(
        cls, m: int, n: int, budget: float = 1.0, generator: torch.Generator | None = None, **size: Any
    ) -> Self:
        """Entries N(0, 1/n)."""
        if numbers_within(budget, m, n, cls.name) < m * n:
            raise below_minimum(cls, budget, m * n, m, n, "all entries")
        return cls(torch.randn(m, n, generator=generator) / n**0.5)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for m, n in ((1, 1), (5, 3), (2, 7), (1, 4), (4, 1)):
            yield cls(torch.randn(m, n, generator=generator, dtype=torch.float64))
