"""Sizes of a train of cores: how rows and columns split, and the ranks between neighbours."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from onematrix.errors import BudgetError, FitError, ShapeError
from onematrix.structures.base import Fit, Structure, below_minimum, relative_error
from onematrix.structures.factor_sizes import (
    cannot_split,
    check_product,
    ordered_splits,
    split_evenly,
    spread,
)
from onematrix.structures.sizes import above_bound, check_rank, numbers_within

T = TypeVar("T")
SPLITS = 16  # pairs of splits a fit with a budget tries, each at the cost of its singular values


@dataclass(frozen=True)
class TrainSizes:
    """m = m1 … mc, n = n1 … nc, and the ranks (r0, …, rc) with r0 = rc = 1."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    ranks: tuple[int, ...]


Count = Callable[[TrainSizes], int]
Limit = Callable[[tuple[int, ...], tuple[int, ...], int, int], int]


def plain_limit(rows: tuple[int, ...], columns: tuple[int, ...], t: int, before: int) -> int:
    """The largest r_t of use after r_(t−1): min(r_(t−1) m_t n_t, Π_{s > t} m_s n_s)."""
    return min(before * rows[t - 1] * columns[t - 1], math.prod(rows[t:]) * math.prod(columns[t:]))


def block_limit(rows: tuple[int, ...], columns: tuple[int, ...], t: int, before: int) -> int:
    """The largest r_t of use after r_(t−1) between block cores: min(r_(t−1) n_t, Π_{s > t} m_s)."""
    return min(before * columns[t - 1], math.prod(rows[t:]))


def choose_train(
    cls: type[Structure],
    m: int,
    n: int,
    count_numbers: Count,
    budget: float | None = None,
    rank: int | Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
    columns: Sequence[int] | None = None,
    cores: int | None = None,
    limit: Limit = plain_limit,
) -> TrainSizes:
    """The sizes asked for; splits that are not given are even ones, and a rank the largest in the budget.

    Raises FitError when a size does not split or the factors do not fit, BudgetError below rank 1.
    """
    cores = cores or len(rows or columns or (1, 1))
    split_rows = _split(cls, "rows", rows, m, cores, m, n)
    split_columns = _split(cls, "columns", columns, n, cores, m, n)

    def with_rank(r: int) -> TrainSizes:
        ranks = useful_ranks([r] * (cores - 1), split_rows, split_columns, limit)
        return TrainSizes(split_rows, split_columns, (1, *ranks, 1))

    if rank is not None:
        asked = _asked_ranks(f"{cls.name} {m}×{n}", rank, split_rows, split_columns, limit)
        return TrainSizes(split_rows, split_columns, (1, *asked, 1))
    budget = 1.0 if budget is None else budget
    allowed, smallest = numbers_within(budget, m, n, cls.name), count_numbers(with_rank(1))
    if smallest > allowed:
        what = f"rank 1 with rows {split_rows} and columns {split_columns}"
        if smallest > m * n:
            raise FitError(
                f"{cls.name} {m}×{n}: {what} stores {smallest} numbers, more than the {m * n} of dense"
            )
        raise below_minimum(cls, budget, smallest, m, n, what)
    return _largest(with_rank, count_numbers, allowed)


def train_options(
    cls: type[Structure],
    m: int,
    n: int,
    count_numbers: Count,
    limit: Limit = plain_limit,
    *,
    budget: float | None = None,
    rank: int | Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
    columns: Sequence[int] | None = None,
    cores: int | None = None,
) -> list[TrainSizes]:
    """The sizes of `choose_train` and, where no rank is given, others with other splits of what is not given.

    Which split is best depends on the matrix. Raises as `choose_train` where no split is within the budget.
    """
    if rank is not None or (rows is not None and columns is not None):
        return [choose_train(cls, m, n, count_numbers, budget, rank, rows, columns, cores, limit)]
    count = cores or len(rows or columns or (1, 1))
    even = _split(cls, "rows", rows, m, count, m, n), _split(cls, "columns", columns, n, count, m, n)
    tall = ordered_splits(m, count) if rows is None else (even[0],)
    wide = ordered_splits(n, count) if columns is None else (even[1],)
    found, errors = [], []
    for r, c in [even, *spread([pair for pair in itertools.product(tall, wide) if pair != even], SPLITS - 1)]:
        try:
            found.append(choose_train(cls, m, n, count_numbers, budget, None, r, c, count, limit))
        except (BudgetError, FitError) as error:
            errors.append(error)
    if not found:
        raise min(errors, key=lambda e: getattr(e, "smallest", math.inf))
    return found


def best_train(
    options: Sequence[TrainSizes], fit: Callable[[TrainSizes], tuple[T, float]], seconds: float | None
) -> tuple[T, float, TrainSizes]:
    """The fit with the least rest, the rest, and its sizes; after the first only while there is time."""
    end = math.inf if seconds is None else time.perf_counter() + seconds
    best: tuple[T, float, TrainSizes] | None = None
    for sizes in options:
        if best is not None and time.perf_counter() > end:
            break
        found, rest = fit(sizes)
        if best is None or rest < best[1]:
            best = found, rest, sizes
    assert best is not None  # there is at least one option
    return best


def useful_ranks(
    ranks: Sequence[int], rows: tuple[int, ...], columns: tuple[int, ...], limit: Limit
) -> tuple[int, ...]:
    """(r1, …, r(c−1)), each at most the largest of use after the one before it."""
    found = [1]
    for t, r in enumerate(ranks):
        found.append(min(r, limit(rows, columns, t + 1, found[-1])))
    return tuple(found[1:])


def _asked_ranks(
    who: str, rank: int | Sequence[int], rows: tuple[int, ...], columns: tuple[int, ...], limit: Limit
) -> tuple[int, ...]:
    """One rank for all, each taking what is of use to it, or one each. FitError where none can be so large."""
    name, cores, where = who.split()[0], len(rows), f" with rows {rows} and columns {columns}"
    if not isinstance(rank, tuple | list):
        check_rank(name, rank)
    asked = [rank] * (cores - 1) if isinstance(rank, int) else list(rank)
    if len(asked) != cores - 1 or any(isinstance(a, bool) or not isinstance(a, int) or a < 1 for a in asked):
        raise FitError(f"{name}: {cores} cores need {cores - 1} ranks of at least 1, got {rank}", got=rank)
    found = useful_ranks(asked, rows, columns, limit)
    if isinstance(rank, int) and rank > (bound := max(found, default=1)):
        raise above_bound(who, "rank", rank, bound, where, "rows=, columns=")
    for t, (a, bound) in enumerate(zip(asked, found, strict=True)):
        if a > bound and not isinstance(rank, int):
            raise above_bound(who, f"r{t + 1} =", a, bound, where, "rows=, columns=")
    return found


def single_rank(name: str, rank: int | Sequence[int] | None) -> int | None:
    """The one rank of a train of two cores, given as it is or as (r1,). Raises FitError for several."""
    if rank is None:
        return rank
    if not isinstance(rank, tuple | list):
        check_rank(name, rank)
        return rank  # type: ignore[return-value]
    if len(rank) != 1:
        raise FitError(f"{name}: 2 cores need 1 rank, got {tuple(rank)}", got=tuple(rank))
    return rank[0]


def _largest(with_rank: Callable[[int], TrainSizes], count_numbers: Count, allowed: int) -> TrainSizes:
    best = with_rank(1)
    for r in range(2, allowed):
        more = with_rank(r)
        if more == best or count_numbers(more) > allowed:
            return best
        best = more
    return best


def _split(
    cls: type[Structure], option: str, given: Sequence[int] | None, size: int, cores: int, m: int, n: int
) -> tuple[int, ...]:
    if given is not None:
        found = check_product(cls.name, option, given, size)
        if len(found) != cores:
            raise FitError(f"{cls.name}: {cores} factors were needed for {option}, got {found}", needed=cores)
        return found
    found = split_evenly(size, cores)
    if 1 in found:
        raise cannot_split(cls.name, m, n, "rows=(…), columns=(…)")
    return found


def read_ranks(
    name: str,
    shapes: Sequence[tuple[int, int]],
    rows: tuple[int, ...],
    columns: tuple[int, ...],
) -> tuple[int, ...]:
    """(r0, …, rc) for cores that are (r(t−1) m_t) × (n_t r_t).

    Raises ShapeError when the cores do not chain, with the core that does not.
    """
    check_counts(name, len(shapes), rows, columns)
    ranks = [1]
    for t, ((tall, wide), m, n) in enumerate(zip(shapes, rows, columns, strict=True)):
        if tall != ranks[-1] * m or wide % n:
            raise cannot_chain(name, t, (tall, wide), ranks[-1], m, n)
        ranks.append(wide // n)
    return check_last(name, ranks)


def read_block_ranks(
    name: str,
    shapes: Sequence[tuple[int, int]],
    rows: tuple[int, ...],
    columns: tuple[int, ...],
) -> tuple[int, ...]:
    """(r0, …, rc) for cores of K_t blocks (m_t r_t) × (r(t−1) n_t) one below the other.

    K_t = m1 … m(t−1) · n(t+1) … nc. Raises ShapeError when the cores do not chain.
    """
    check_counts(name, len(shapes), rows, columns)
    ranks = [1]
    for t, ((tall, wide), m, n) in enumerate(zip(shapes, rows, columns, strict=True)):
        step = count_blocks(rows, columns, t) * m
        if wide != ranks[-1] * n or tall % step:
            raise cannot_chain(name, t, (tall, wide), ranks[-1], m, n)
        ranks.append(tall // step)
    return check_last(name, ranks)


def count_blocks(rows: tuple[int, ...], columns: tuple[int, ...], t: int) -> int:
    """K_t for t from 0: m1 … mt · n(t+2) … nc."""
    return math.prod(rows[:t]) * math.prod(columns[t + 1 :])


def check_counts(name: str, cores: int, rows: tuple[int, ...], columns: tuple[int, ...]) -> None:
    """Raises ShapeError unless there are as many cores as row factors and column factors."""
    if not cores == len(rows) == len(columns):
        raise ShapeError(
            f"{name}: as many cores as factors were needed, got {cores} cores, "
            f"{len(rows)} row factors, {len(columns)} column factors"
        )


def cannot_chain(name: str, t: int, shape: tuple[int, int], rank: int, m: int, n: int) -> ShapeError:
    """The error for a core that does not fit the rank before it and its factors."""
    return ShapeError(
        f"{name}: core {t} is {shape[0]}×{shape[1]}, which does not fit rank {rank}, "
        f"row factor {m} and column factor {n}",
        core=t,
    )


def check_last(name: str, ranks: list[int]) -> tuple[int, ...]:
    """The ranks. Raises ShapeError unless the last is 1."""
    if ranks[-1] != 1:
        raise ShapeError(f"{name}: the last rank must be 1, got {ranks[-1]}", got=ranks[-1])
    return tuple(ranks)


def balance(cores: Sequence[Tensor]) -> list[Tensor]:
    """The same product with cores of equal root mean square, so that one learning rate suits all."""
    sizes = [float(core.detach().square().mean().sqrt()) for core in cores]
    if not all(sizes):
        return list(cores)
    mean = math.exp(sum(map(math.log, sizes)) / len(sizes))
    return [core * (mean / size) for core, size in zip(cores, sizes, strict=True)]


def two_cores(size: dict[str, Any]) -> bool:
    """Whether these options ask for two cores, for which the projection is exact."""
    return size.get("cores", 2) == 2 and all(len(size.get(k) or (1, 1)) == 2 for k in ("rows", "columns"))


def fit_of_train(a: Structure, dense: Tensor, gram: Tensor | None, rest: float) -> Fit:
    """The fit a; rest is what the cuts left out of ‖dense‖², which bounds the unweighted error."""
    total = float(dense.detach().double().norm())
    predicted = rest**0.5 / total if total else 0.0
    return Fit(a, relative_error(a, dense, gram), predicted if gram is None else None)
