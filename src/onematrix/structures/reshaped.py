"""A matrix read out of a tensor of any shape: parameters that hold several matrices, kernels, tables."""

import math
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
class Reshaped(Structure):
    """A = rows start … start + m − 1 of T read row by row with n columns: (m, n), m n multiply-adds.

    T keeps its own shape and may be shared: a gate of an LSTM is a run of rows of one parameter. n = 1 makes a
    column of a tensor of any shape.

    >>> Reshaped(torch.arange(6.0).reshape(3, 2), 1, 2, 2).to_dense()
    tensor([[4., 5.]])
    """

    tensor: Tensor
    rows: int
    columns: int
    start: int = 0

    def check(self) -> None:
        held = math.prod(self.tensor.shape) // max(self.columns, 1)
        if self.columns < 1 or held * self.columns != math.prod(self.tensor.shape):
            raise ShapeError(
                f"reshaped: {tuple(self.tensor.shape)} has no rows of {self.columns}", got=self.columns
            )
        if not 0 <= self.start <= self.start + self.rows <= held or self.rows < 1:
            raise ShapeError(
                f"reshaped: rows {self.start}..{self.start + self.rows - 1} of {held} do not exist",
                needed=held,
                got=(self.start, self.rows),
            )

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.rows, self.columns

    @property
    def matrix(self) -> Tensor:
        """The entries, (m, n), sharing memory with the tensor."""
        return self.tensor.reshape(-1, self.columns)[self.start : self.start + self.rows]

    def _to_dense(self) -> Tensor:
        return self.matrix.clone()

    def _matmul(self, x: Tensor) -> Tensor:
        if not self.tensor.is_floating_point():  # integers and booleans stay what they are
            x = x.to(self.tensor.dtype)
        return x * self.matrix.squeeze(-1) if self.columns == 1 else functional.linear(x, self.matrix)

    def _rmatmul(self, y: Tensor) -> Tensor:
        return y @ self.matrix

    def multiply_adds(self) -> int:
        return self.rows * self.columns

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for shape, m, n, start in (
            ((1,), 1, 1, 0),
            ((4, 3), 2, 3, 1),
            ((2, 1, 3), 6, 1, 0),
            ((2, 2, 3), 1, 6, 1),
        ):
            yield cls(torch.randn(*shape, generator=generator, dtype=torch.float64), m, n, start)
