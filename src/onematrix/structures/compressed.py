"""Compressed sparse rows and columns: a value and an index per stored entry."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from onematrix.errors import ShapeError
from onematrix.structures.base import Fit, Structure, relative_error
from onematrix.structures.patterns import (
    choose_count,
    compress_rows,
    index_type,
    largest_entries,
    predict_error,
    random_entries,
    random_values,
)
from onematrix.structures.sizes import Size
from onematrix.structures.sparse_kernels import entry_rows
from onematrix.structures.sparse_product import csr_matmul, csr_rmatmul


def _check_arrays(who: str, values: Tensor, pointers: Tensor, indices: Tensor, width: int) -> None:
    k = len(values)
    if values.dim() != 1 or pointers.dim() != 1 or indices.shape != (k,) or len(pointers) < 2:
        raise ShapeError(
            f"{who}: {k} values need {k} indices and a vector of pointers, "
            f"got {tuple(indices.shape)} and {tuple(pointers.shape)}"
        )
    if pointers.dtype != indices.dtype or indices.dtype not in (torch.int32, torch.int64):
        raise ShapeError(
            f"{who}: indices and pointers must both be int32 or int64, "
            f"got {indices.dtype} and {pointers.dtype}"
        )
    if values.device.type == "meta":
        return
    if int(pointers[0]) != 0 or int(pointers[-1]) != k or bool((pointers.diff() < 0).any()):
        raise ShapeError(
            f"{who}: pointers must rise from 0 to {k}, got {int(pointers[0])}..{int(pointers[-1])}"
        )
    if k and not 0 <= int(indices.min()) <= int(indices.max()) < width:
        raise ShapeError(
            f"{who}: indices must lie in 0..{width - 1}, got {int(indices.min())}..{int(indices.max())}"
        )


def _arrays(m: int, n: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """(pointers, indices) of ascending flat positions in an (m, n) matrix."""
    kind = index_type(m, n, len(positions))
    rows = torch.div(positions, n, rounding_mode="floor")
    return compress_rows(rows, m).to(kind), (positions - rows * n).to(kind).contiguous()


def _scatter(values: Tensor, pointers: Tensor, indices: Tensor, width: int) -> Tensor:
    dense = values.new_zeros(len(pointers) - 1, width)
    rows = entry_rows(pointers, len(indices)).long()
    return dense.index_put((rows, indices.long()), values, accumulate=True)


def _flat(x: Tensor, values: Tensor) -> Tensor:
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return flat if flat.dtype == values.dtype else flat.to(values.dtype)  # differs under autocast only


@dataclass(frozen=True, eq=False)
class CSR(Structure):
    """A[i, col[k]] = values[k] for crow[i] ≤ k < crow[i+1]. k numbers, k multiply-adds, (k + m + 1) indices.

    Entries named twice add up. The product keeps features contiguous, so CSR layers in a row copy nothing.

    >>> CSR.fit(torch.tensor([[0.0, 5.0], [1.0, 0.0]]), nonzeros=2).structure.values
    tensor([5., 1.])
    """

    can_fit = True
    can_random = True

    values: Tensor  # (k,)
    crow_indices: Tensor  # (m + 1,)
    col_indices: Tensor  # (k,)
    columns: int

    def check(self) -> None:
        _check_arrays(self.name, self.values, self.crow_indices, self.col_indices, self.columns)

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.crow_indices.shape[0] - 1, self.columns

    def exact_size(self) -> dict[str, Any]:
        return {"nonzeros": len(self.values)}

    def _to_dense(self) -> Tensor:
        return _scatter(self.values, self.crow_indices, self.col_indices, self.columns)

    def _matmul(self, x: Tensor) -> Tensor:
        flat = _flat(x, self.values)
        out = csr_matmul(self.values, self.crow_indices, self.col_indices, flat)
        return out if x.dim() == 2 else out.reshape(*x.shape[:-1], self.crow_indices.shape[0] - 1)

    def _rmatmul(self, y: Tensor) -> Tensor:
        flat = _flat(y, self.values)
        out = csr_rmatmul(self.values, self.crow_indices, self.col_indices, flat, self.columns)
        return out if y.dim() == 2 else out.reshape(*y.shape[:-1], self.columns)

    def learning_rate_scale(self) -> dict[str, float]:
        """n ÷ inputs of one sum, of which a row has k ÷ m on average."""
        m, n = self.fixed_shape
        return {"values": m * n / max(1, self.values.numel())}

    def multiply_adds(self) -> int:
        return len(self.values)

    def nonzeros(self) -> int:
        return len(self.values)

    @classmethod
    def from_positions(cls, m: int, n: int, positions: Tensor, values: Tensor) -> Self:
        """The matrix with `values` at ascending flat positions i n + j."""
        return cls(values.contiguous(), *_arrays(m, n, positions), n)

    @classmethod
    def _fit(
        cls, dense: Tensor, gram: Tensor | None, *, budget: float | None = None, nonzeros: int | None = None
    ) -> Fit:
        """The entries of largest magnitude (times √G_jj), unchanged."""
        m, n = dense.shape
        positions = largest_entries(dense, gram, choose_count(cls, m, n, budget, nonzeros, exact=False))
        fitted = cls.from_positions(m, n, positions, dense.reshape(-1)[positions])
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
        return cls.from_positions(m, n, positions, random_values(count, m, n, generator))

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for m, n, k in ((1, 1, 1), (5, 3, 6), (2, 7, 14), (6, 4, 2)):
            values = torch.randn(k, generator=generator, dtype=torch.float64)
            yield cls.from_positions(m, n, random_entries(m, n, k, generator), values)


@dataclass(frozen=True, eq=False)
class CSC(Structure):
    """A[row[k], j] = values[k] for ccol[j] ≤ k < ccol[j+1]. k numbers, k multiply-adds, (k + n + 1) indices.

    Multiplied through the compressed rows of its transpose, which is as fast as CSR; torch's own
    compressed-column product is 10 to 47 times slower.

    >>> CSC.fit(torch.tensor([[0.0, 5.0], [1.0, 0.0]]), nonzeros=2).structure.values
    tensor([1., 5.])
    """

    can_fit = True
    can_random = True

    values: Tensor  # (k,)
    ccol_indices: Tensor  # (n + 1,)
    row_indices: Tensor  # (k,)
    rows: int

    def check(self) -> None:
        _check_arrays(self.name, self.values, self.ccol_indices, self.row_indices, self.rows)

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.rows, self.ccol_indices.shape[0] - 1

    def exact_size(self) -> dict[str, Any]:
        return {"nonzeros": len(self.values)}

    def _mirror(self) -> CSR:
        """Aᵀ by compressed rows: the same arrays read the other way."""
        return CSR(self.values, self.ccol_indices, self.row_indices, self.rows)

    def _to_dense(self) -> Tensor:
        return _scatter(self.values, self.ccol_indices, self.row_indices, self.rows).mT

    def _matmul(self, x: Tensor) -> Tensor:
        flat = _flat(x, self.values)
        out = csr_rmatmul(self.values, self.ccol_indices, self.row_indices, flat, self.rows)
        return out if x.dim() == 2 else out.reshape(*x.shape[:-1], self.rows)

    def _rmatmul(self, y: Tensor) -> Tensor:
        flat = _flat(y, self.values)
        out = csr_matmul(self.values, self.ccol_indices, self.row_indices, flat)
        return out if y.dim() == 2 else out.reshape(*y.shape[:-1], self.ccol_indices.shape[0] - 1)

    def learning_rate_scale(self) -> dict[str, float]:
        """n ÷ inputs of one sum, of which a row has k ÷ m on average."""
        m, n = self.fixed_shape
        return {"values": m * n / max(1, self.values.numel())}

    def multiply_adds(self) -> int:
        return len(self.values)

    def nonzeros(self) -> int:
        return len(self.values)

    @classmethod
    def _from_mirror(cls, mirror: CSR) -> Self:
        return cls(mirror.values, mirror.crow_indices, mirror.col_indices, mirror.columns)

    @classmethod
    def _fit(
        cls, dense: Tensor, gram: Tensor | None, *, budget: float | None = None, nonzeros: int | None = None
    ) -> Fit:
        """The entries of largest magnitude (times √G_jj), unchanged."""
        m, n = dense.shape
        positions = largest_entries(dense, gram, choose_count(cls, m, n, budget, nonzeros, exact=False))
        columns = positions % n
        by_column = (columns * m + torch.div(positions, n, rounding_mode="floor")).sort().values
        values = dense.mT.reshape(-1)[by_column]
        fitted = cls._from_mirror(CSR.from_positions(n, m, by_column, values))
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
        positions = random_entries(n, m, count, generator)
        values = random_values(count, m, n, generator)
        return cls._from_mirror(CSR.from_positions(n, m, positions, values))

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield from (cls._from_mirror(mirror) for mirror in CSR.examples(generator))
