"""Masked matrices: sparse to store, dense to multiply."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from onematrix.errors import ShapeError
from onematrix.structures.base import Fit, Structure, relative_error
from onematrix.structures.patterns import (
    choose_count,
    index_type,
    largest_entries,
    predict_error,
    random_entries,
    random_values,
)
from onematrix.structures.sizes import Size


@dataclass(frozen=True, eq=False)
class Masked(Structure):
    """A.flat[positions] = values, zero elsewhere: (m, n). Stores the k kept values and k positions only.

    The product writes the values into a dense matrix and multiplies: m n multiply-adds, the right choice
    when more than about a quarter of the entries are kept.

    >>> Masked(torch.tensor([7.0]), torch.tensor([1]), 2, 2).to_dense()
    tensor([[0., 7.],
            [0., 0.]])
    """

    can_fit = True
    can_random = True

    values: Tensor  # (k,)
    positions: Tensor  # (k,), flat positions i n + j, each at most once
    rows: int
    columns: int

    def check(self) -> None:
        k, p = len(self.values), self.positions
        if self.values.dim() != 1 or p.shape != (k,) or p.dtype not in (torch.int32, torch.int64):
            raise ShapeError(f"masked: {k} values need {k} integer positions, got {p.dtype} {tuple(p.shape)}")
        if p.device.type == "meta":
            return
        last = self.rows * self.columns - 1
        if k and not (0 <= int(p.min()) and int(p.max()) <= last):
            raise ShapeError(f"masked.positions: 0..{last} needed, got {int(p.min())}..{int(p.max())}")
        if (different := len(torch.unique(p))) != k:
            raise ShapeError(f"masked.positions: {k} different positions needed, only {different} differ")

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.rows, self.columns

    def exact_size(self) -> dict[str, Any]:
        return {"nonzeros": len(self.values)}

    def _to_dense(self) -> Tensor:
        flat = self.values.new_zeros(self.rows * self.columns)
        return flat.index_put((self.positions.long(),), self.values).view(self.rows, self.columns)

    def _filled(self) -> Tensor:
        flat = self.values.new_zeros(self.rows * self.columns)
        return flat.index_copy(0, self.positions.long(), self.values).view(self.rows, self.columns)

    def _matmul(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._filled())

    def _rmatmul(self, y: Tensor) -> Tensor:
        return y @ self._filled()

    def learning_rate_scale(self) -> dict[str, float]:
        """n ÷ inputs of one sum, of which a row has k ÷ m on average."""
        m, n = self.fixed_shape
        return {"values": m * n / max(1, self.values.numel())}

    def multiply_adds(self) -> int:
        return self.rows * self.columns

    def nonzeros(self) -> int:
        return len(self.values)

    @classmethod
    def _from(cls, m: int, n: int, positions: Tensor, values: Tensor) -> Self:
        return cls(values.contiguous(), positions.to(index_type(m * n, 1, 1)), m, n)

    @classmethod
    def _fit(
        cls, dense: Tensor, gram: Tensor | None, *, budget: float | None = None, nonzeros: int | None = None
    ) -> Fit:
        """The entries of largest magnitude (times √G_jj), unchanged."""
        m, n = dense.shape
        positions = largest_entries(dense, gram, choose_count(cls, m, n, budget, nonzeros, exact=False))
        fitted = cls._from(m, n, positions, dense.reshape(-1)[positions])
        predicted = predict_error(dense, positions) if gram is None else None
        return Fit(fitted, relative_error(fitted, dense, gram), predicted)

    @classmethod
    def random(
        cls,
        m: int,
        n: int,
        budget: float = 1.0,
        generator: torch.Generator | None = None,
        *,
        nonzeros: int | None = None,
        **size: Any,
    ) -> Self:
        """Exactly round(E m n) entries, drawn without replacement; values N(0, m / k)."""
        count = choose_count(cls, m, n, budget, nonzeros, exact=True)
        positions = random_entries(m, n, count, generator)
        return cls._from(m, n, positions, random_values(count, m, n, generator))

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for m, n, k in ((1, 1, 1), (5, 3, 6), (2, 7, 14), (6, 4, 2)):
            values = torch.randn(k, generator=generator, dtype=torch.float64)
            yield cls._from(m, n, random_entries(m, n, k, generator), values)
