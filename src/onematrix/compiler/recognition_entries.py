"""The entries of a matrix as triplets: what recognition looks at when the dense matrix would be too large."""

from dataclasses import dataclass

import torch
from torch import Tensor

from onematrix.structures.base import Structure
from onematrix.structures.compressed import CSC, CSR
from onematrix.structures.dense import Dense
from onematrix.structures.masked import Masked
from onematrix.structures.sparse_kernels import entry_rows


@dataclass(frozen=True, eq=False)
class Entries:
    """A[rows[k], columns[k]] = values[k], no place twice, in ascending order i n + j; the others are 0.

    allowed: largest difference that counts as equal; entries up to it are left out.
    """

    m: int
    n: int
    rows: Tensor  # (k,)
    columns: Tensor  # (k,)
    values: Tensor  # (k,)
    allowed: float = 0.0

    def __len__(self) -> int:
        return len(self.values)

    def sample(self, count: int) -> "Entries":
        """About so many of the entries, evenly spread."""
        pick = slice(None, None, max(1, len(self) // count))
        return Entries(self.m, self.n, self.rows[pick], self.columns[pick], self.values[pick], self.allowed)

    def same(self, other: Tensor | float) -> bool:
        """Whether the values are these."""
        return bool(((self.values - other).abs() <= self.allowed).all())


def find_entries(a: Structure, tolerance: float = 0.0) -> Entries | None:
    """The entries of a matrix that stores them one by one; None for other structures.

    None too where an entry is infinite or nan, which no other structure multiplies alike, and on "meta".
    tolerance: relative to the largest entry.
    """
    m, n = a.shape
    if not isinstance(a, Dense | CSR | CSC | Masked) or isinstance(m, str) or isinstance(n, str):
        return None
    weight = a.weight if isinstance(a, Dense) else a.values
    if weight.is_meta or not bool(weight.detach().isfinite().all()):
        return None
    if isinstance(a, Dense):
        flat = a.weight.detach().reshape(-1)
        positions = flat.nonzero().flatten()
        values = flat[positions]
    else:
        positions, values = _stored(a, m, n)
    allowed = tolerance * float(values.abs().max()) if len(values) else 0.0
    kept = values.abs() > allowed
    if not bool(kept.all()):
        positions, values = positions[kept], values[kept]
    rows = torch.div(positions, n, rounding_mode="floor")
    return Entries(m, n, rows, positions - rows * n, values, allowed)


def _stored(a: CSR | CSC | Masked, m: int, n: int) -> tuple[Tensor, Tensor]:
    """Ascending flat positions and values; entries named twice added up."""
    values = a.values.detach()
    if isinstance(a, Masked):
        positions = a.positions.long()
    elif isinstance(a, CSR):
        positions = entry_rows(a.crow_indices, len(values)).long() * n + a.col_indices.long()
    else:
        positions = a.row_indices.long() * n + entry_rows(a.ccol_indices, len(values)).long()
    if not bool((positions.diff() > 0).all()):
        positions, place = torch.unique(positions, return_inverse=True)
        values = values.new_zeros(len(positions)).index_add(0, place, values)
    return positions, values
