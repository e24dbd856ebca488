"""Diagonal matrices: one number per coordinate."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from onematrix.errors import ShapeError
from onematrix.structures.base import Fit, Structure, below_minimum, relative_error, require_square
from onematrix.structures.sizes import Size, numbers_within


@dataclass(frozen=True, eq=False)
class Diagonal(Structure):
    """A = diag(v): (n, n), n numbers, n multiply-adds.

    >>> Diagonal(torch.tensor([2.0, 3.0])).matmul(torch.tensor([1.0, 1.0]))
    tensor([2., 3.])
    """

    square_only = True
    can_fit = True
    can_random = True

    vector: Tensor  # (n,)

    def check(self) -> None:
        if self.vector.dim() != 1:
            raise ShapeError(f"diagonal.vector: one dimension was needed, got {tuple(self.vector.shape)}")

    @property
    def shape(self) -> tuple[Size, Size]:
        return len(self.vector), len(self.vector)

    def _to_dense(self) -> Tensor:
        return torch.diag(self.vector)

    def _matmul(self, x: Tensor) -> Tensor:
        return x * self.vector

    def _rmatmul(self, y: Tensor) -> Tensor:
        return y * self.vector

    def multiply_adds(self) -> int:
        return len(self.vector)

    def nonzeros(self) -> int:
        return len(self.vector)

    def solve(self, y: Tensor) -> Tensor:
        return y / self.vector

    def logdet(self) -> Tensor:
        return self.vector.abs().log().sum()

    @classmethod
    def _fit(cls, dense: Tensor, gram: Tensor | None, *, budget: float = 1.0) -> Fit:
        """v_i = (W G)_ii ÷ G_ii, which minimises (w_i − v_i e_i) G (w_i − v_i e_i)ᵀ; W_ii where G_ii = 0."""
        n = require_square(cls, *dense.shape)
        if numbers_within(budget, n, n, cls.name) < n:
            raise below_minimum(cls, budget, n, n, n, "one number per row")
        vector = dense.diagonal().clone()
        if gram is not None:
            weight = gram.diagonal()
            vector = torch.where(weight > 0, (dense @ gram).diagonal() / weight.clamp(min=1e-300), vector)
        fitted = cls(vector.contiguous())
        error = relative_error(fitted, dense, gram)
        total = float(dense.double().norm())
        off = float((dense - torch.diag(dense.diagonal())).double().norm())
        return Fit(fitted, error, (off / total if total else 0.0) if gram is None else None)

    @classmethod
    def random(
        cls, m: int, n: int, budget: float = 1.0, generator: torch.Generator | None = None, **size: Any
    ) -> Self:
        """Entries N(0, 1): each output has one input."""
        require_square(cls, m, n)
        if numbers_within(budget, n, n, cls.name) < n:
            raise below_minimum(cls, budget, n, n, n, "one number per row")
        return cls(torch.randn(n, generator=generator))

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield from (cls(torch.randn(n, generator=generator, dtype=torch.float64)) for n in (1, 2, 7))
