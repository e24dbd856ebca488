"""Permutation and selection matrices: outputs that are copies of inputs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from onematrix.errors import ShapeError
from onematrix.structures.base import Structure
from onematrix.structures.sizes import Size, check_budget, check_sides


def _check_index(who: str, index: Tensor, columns: int) -> None:
    if index.dim() != 1 or index.dtype not in (torch.int32, torch.int64):
        raise ShapeError(f"{who}: an integer vector was needed, got {index.dtype} {tuple(index.shape)}")
    if index.device.type != "meta" and len(index) and not 0 <= int(index.min()) <= int(index.max()) < columns:
        low, high = int(index.min()), int(index.max())
        raise ShapeError(
            f"{who}: indices must lie in 0..{columns - 1}, got {low}..{high}", low=low, high=high
        )


def _one_hot_rows(index: Tensor, columns: int) -> Tensor:
    dense = torch.zeros(len(index), columns, dtype=torch.float64, device=index.device)
    dense[torch.arange(len(index), device=index.device), index.long()] = 1
    return dense


@dataclass(frozen=True, eq=False)
class Permutation(Structure):
    """(A x)_i = x_p(i): (n, n). Stores n integers and no numbers; no multiply-adds.

    >>> Permutation(torch.tensor([2, 0, 1])).matmul(torch.tensor([10.0, 20.0, 30.0]))
    tensor([30., 10., 20.])
    """

    square_only = True
    can_random = True
    exempt = frozenset({"fit"})

    index: Tensor  # (n,), integers, each of 0..n-1 once

    def check(self) -> None:
        n = len(self.index)
        _check_index("permutation.index", self.index, n)
        if self.index.device.type == "meta":
            return
        if missing := n - len(torch.unique(self.index)):
            raise ShapeError(f"permutation.index: each of 0..{n - 1} once was needed, {missing} are missing")

    @property
    def shape(self) -> tuple[Size, Size]:
        return len(self.index), len(self.index)

    def _to_dense(self) -> Tensor:
        return _one_hot_rows(self.index, len(self.index))

    def _matmul(self, x: Tensor) -> Tensor:
        return x.index_select(-1, self.index)

    def _rmatmul(self, y: Tensor) -> Tensor:
        return y.index_select(-1, torch.argsort(self.index))

    def multiply_adds(self) -> int:
        return 0

    def nonzeros(self) -> int:
        return len(self.index)

    def solve(self, y: Tensor) -> Tensor:
        return self._rmatmul(y)

    def logdet(self) -> Tensor:
        return torch.zeros((), device=self.index.device)

    @classmethod
    def random(
        cls, m: int, n: int, budget: float = 1.0, generator: torch.Generator | None = None, **size: Any
    ) -> Self:
        """A uniformly drawn permutation."""
        if m != n:
            raise ShapeError(f"permutation is square, got {m}×{n}")
        check_sides(cls.name, m, n)
        check_budget(budget, cls.name)  # any will do: a permutation stores no number
        return cls(torch.randperm(n, generator=generator))

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield from (cls(torch.randperm(n, generator=generator)) for n in (1, 2, 7))


@dataclass(frozen=True, eq=False)
class Selection(Structure):
    """(A x)_i = x_s(i): (m, n), rows of the identity in any order and number; stores m integers.

    >>> Selection(torch.tensor([1, 1]), 3).matmul(torch.tensor([10.0, 20.0, 30.0]))
    tensor([20., 20.])
    """

    index: Tensor  # (m,), integers in 0..n-1
    columns: int

    def check(self) -> None:
        _check_index("selection.index", self.index, self.columns)

    @property
    def shape(self) -> tuple[Size, Size]:
        return len(self.index), self.columns

    def _to_dense(self) -> Tensor:
        return _one_hot_rows(self.index, self.columns)

    def _matmul(self, x: Tensor) -> Tensor:
        return x.index_select(-1, self.index)

    def _rmatmul(self, y: Tensor) -> Tensor:
        return y.new_zeros(*y.shape[:-1], self.columns).index_add(-1, self.index, y)

    def multiply_adds(self) -> int:
        return 0

    def nonzeros(self) -> int:
        return len(self.index)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for m, n in ((1, 1), (2, 5), (6, 3)):
            yield cls(torch.randint(n, (m,), generator=generator), n)
