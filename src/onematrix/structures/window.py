"""Windows: a run of coordinates at a fixed pace, which is what a slice of a tensor reads."""

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
class Window(Structure):
    """(A x)_i = x_(start + i pace): (rows, columns), the slice start, start + pace, …; sizes may be named.

    pace: not 0; negative reads backwards. Stores nothing, no multiply-adds; its transpose puts zeros around.

    >>> Window(2, 5, 1, 2).matmul(torch.arange(5))
    tensor([1, 3])
    """

    sizes_are_free = ("rows", "columns", "start")

    rows: int | str
    columns: int | str
    start: int | str = 0
    pace: int = 1

    def check(self) -> None:
        if self.pace == 0:
            raise ShapeError("window: a pace other than 0 was needed, got 0")
        if any(isinstance(v, str) for v in (self.rows, self.columns, self.start)):
            return
        low, high = sorted((self._start, self._start + (self._rows - 1) * self.pace))
        if self._rows < 0 or (self._rows and not 0 <= low <= high < self._columns):
            raise ShapeError(
                f"window of {self.columns}: coordinates in 0..{self._columns - 1} were needed, "
                f"got {self._rows} from {self._start} at pace {self.pace}",
                got=(self._rows, self._start, self.pace),
            )

    @property
    def _rows(self) -> int:
        return int(self.rows)

    @property
    def _columns(self) -> int:
        return int(self.columns)

    @property
    def _start(self) -> int:
        return int(self.start)

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.rows, self.columns

    def _to_dense(self) -> Tensor:
        m, n = self.fixed_shape
        dense = torch.zeros(m, n, dtype=torch.float64)
        for i in range(m):
            dense[i, self._start + i * self.pace] = 1
        return dense

    def _matmul(self, x: Tensor) -> Tensor:
        m, _ = self.fixed_shape
        if self.pace < 0:
            x = x.flip(-1)[..., self._columns - 1 - self._start :]
        else:
            x = x[..., self._start :]
        return x[..., :: abs(self.pace)][..., :m]

    def _rmatmul(self, y: Tensor) -> Tensor:
        m, n = self.fixed_shape
        if m == 0:
            return y.new_zeros(*y.shape[:-1], n)
        pace, first = abs(self.pace), self._start
        if self.pace < 0:
            y, first = y.flip(-1), self._start - (m - 1) * pace
        if pace > 1:  # pace − 1 zeros behind every number but the last
            y = functional.pad(y.unsqueeze(-1), (0, pace - 1)).flatten(-2)[..., : (m - 1) * pace + 1]
        return functional.pad(y, (first, n - first - y.shape[-1]))

    def multiply_adds(self) -> int:
        return 0

    def nonzeros(self) -> int:
        return self.fixed_shape[0]

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield cls(1, 1)
        yield cls(3, 5, 1)
        yield cls(2, 6, 1, 3)
        yield cls(3, 7, 6, -2)
