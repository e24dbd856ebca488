"""Which entries a sparse structure keeps: the largest by magnitude, or a random draw; and index arrays."""

import math

import torch
from torch import Tensor

from onematrix.errors import BudgetError
from onematrix.structures.base import Structure, below_minimum
from onematrix.structures.sizes import nearest_count, numbers_within


def choose_count(
    cls: type[Structure], m: int, n: int, budget: float | None, nonzeros: int | None, exact: bool
) -> int:
    """Entries to keep: `nonzeros`, else floor(E m n) for a fit (a bound), round(E m n) for a random draw."""
    if nonzeros is None:
        count = nearest_count if exact else numbers_within
        nonzeros = count(1.0 if budget is None else budget, m, n, cls.name)
        if nonzeros < 1 and budget is not None:
            raise below_minimum(cls, budget, 1, m, n, "one entry")
    if not 1 <= nonzeros <= m * n:
        raise BudgetError(
            f"{cls.name} {m}×{n}: nonzeros must lie in 1..{m * n}, got {nonzeros}", got=nonzeros
        )
    return nonzeros


def largest_entries(dense: Tensor, gram: Tensor | None, count: int) -> Tensor:
    """Flat positions, ascending, of the `count` entries with the largest w_ij² G_jj (G = I when not given).

    The best choice for the Frobenius norm; with a gram, the best when it is diagonal. Ties: lowest position.
    """
    score = dense.detach().double().square()
    if gram is not None:
        score = score * gram.detach().double().diagonal().clamp(min=0)
    order = torch.sort(score.reshape(-1), descending=True, stable=True).indices[:count]
    return order.sort().values


def random_entries(m: int, n: int, count: int, generator: torch.Generator | None) -> Tensor:
    """`count` different flat positions, ascending, drawn uniformly without replacement."""
    if count * 4 > m * n:
        return torch.randperm(m * n, generator=generator)[:count].sort().values
    chosen = torch.empty(0, dtype=torch.int64)
    while len(chosen) < count:  # few collisions at low density: draw what is missing until all differ
        more = torch.randint(m * n, (count - len(chosen),), generator=generator)
        chosen = torch.unique(torch.cat([chosen, more]))
    return chosen


def compress_rows(rows: Tensor, m: int) -> Tensor:
    """Row pointers (m + 1,) of ascending row indices."""
    pointers = torch.zeros(m + 1, dtype=torch.int64, device=rows.device)
    pointers[1:] = torch.bincount(rows, minlength=m).cumsum(0)
    return pointers


def index_type(m: int, n: int, count: int) -> torch.dtype:
    """int32 where every index fits it, else int64."""
    return torch.int32 if max(m, n, count) < 2**31 else torch.int64


def random_values(count: int, m: int, n: int, generator: torch.Generator | None) -> Tensor:
    """N(0, m / k): k / m entries meet in a row on average, so outputs keep the variance of the inputs."""
    return torch.randn(count, generator=generator) * math.sqrt(m / count)


def predict_error(dense: Tensor, positions: Tensor) -> float:
    """‖W without the kept entries‖ ÷ ‖W‖: exact for the largest entries."""
    square = dense.detach().double().square().reshape(-1)
    total = float(square.sum())
    if not total:
        return 0.0
    square[positions] = 0.0
    return math.sqrt(float(square.sum()) / total)
