"""Recognition of circulant and Toeplitz matrices: one number per diagonal."""

import torch
from torch import Tensor

from onematrix.structures.circulant import Circulant
from onematrix.structures.toeplitz import Toeplitz

FIRST = 4  # rows that turn away almost every other matrix


def find_toeplitz(dense: Tensor, allowed: float = 0.0) -> Circulant | Toeplitz | None:
    """The Circulant, or else the Toeplitz matrix, whose entries differ from these by at most `allowed`."""
    m, n = dense.shape
    if not _steady(dense[:FIRST], 2 * allowed) or not _steady(dense, 2 * allowed):
        return None
    if allowed:
        fitted = Toeplitz.fit(dense).structure
        assert isinstance(fitted, Toeplitz), "a fit gives its own class"
        diagonals = fitted.diagonals
    else:
        diagonals = torch.cat([dense[0].flip(0), dense[1:, 0]])
    if m == n and _near(diagonals[: n - 1], diagonals[n:], 2 * allowed):
        column = Circulant.fit(dense).structure if allowed else Circulant(dense[:, 0].contiguous())
        assert isinstance(column, Circulant), "a fit gives its own class"
        if _near(column.to_dense(), dense, allowed):
            return column
    found = Toeplitz(diagonals.contiguous(), m)
    return found if _near(found.to_dense(), dense, allowed) else None


def _steady(dense: Tensor, allowed: float) -> bool:
    """Whether each entry is that above and left of it."""
    return _near(dense[1:, 1:], dense[:-1, :-1], allowed)


def _near(a: Tensor, b: Tensor, allowed: float) -> bool:
    return bool(((a - b).abs() <= allowed).all())
