"""Canonical (CP) matrices: every row, read as a tensor over the modes of the input, is a sum of R products."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from onematrix.errors import FitError, ShapeError
from onematrix.structures.base import (
    SECONDS,
    Fit,
    Structure,
    below_minimum,
    check_cores,
    check_dtypes,
    relative_error,
)
from onematrix.structures.block_projection import truncate
from onematrix.structures.canonical_fit import EXACT, fit_rows, form_of
from onematrix.structures.dense import Dense
from onematrix.structures.deviations import core_deviations
from onematrix.structures.factor_sizes import cannot_split, check_product, prime_factors, split_evenly
from onematrix.structures.multilinear import Cores
from onematrix.structures.multilinear_fit import Search
from onematrix.structures.sizes import Size, check_rank, check_rank_within, check_sides, numbers_within
from onematrix.structures.weighted_error import reduce_form


@dataclass(frozen=True, eq=False)
class Canonical(Structure):
    """A[q, (p1 … pD)] = Σ_r W1[(q, r), p1] ⋯ WD[(q, r), pD] for n = P1 ⋯ PD. m R (P1 + … + PD) numbers.

    The largest mode is contracted first, n m R multiply-adds, then the others one by one: fewer numbers
    than dense, not less work.

    >>> a = Canonical((Dense(torch.ones(6, 2)), Dense(torch.ones(6, 5))), 2)
    >>> a.shape, a.multiply_adds()
    ((3, 10), 72)
    """

    source = "K. Makantasis et al., arXiv:2104.05048, equation of the rank-R network"
    composite = True
    can_fit = True
    can_random = True
    searches = True

    modes: tuple[Dense, ...]  # W_d: (m R, P_d), rows in the order (q, r)
    rank: int  # R

    def check(self) -> None:
        tall = [mode.fixed_shape[0] for mode in self.modes]
        if self.rank < 1 or len(set(tall)) > 1 or tall[0] % self.rank:
            raise ShapeError(
                f"canonical: modes with m R rows each were needed, got rows {tall} and rank {self.rank}"
            )
        check_cores(self.name, "modes", self.modes)

    def _weights(self) -> list[Tensor]:
        return [mode.weight for mode in self.modes]

    @property
    def sizes(self) -> tuple[int, ...]:
        """(P1, …, PD)."""
        return tuple(mode.fixed_shape[1] for mode in self.modes)

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.modes[0].weight.shape[0] // self.rank, math.prod(self.sizes)

    def exact_size(self) -> dict[str, Any]:
        return {"modes": self.sizes, "rank": min(self.rank, _largest_rank(self.sizes))}

    def learning_rate_scale(self) -> dict[str, float]:
        """(n ÷ inputs of one sum) ÷ modes: the rule of arXiv:2406.06248 for chains; the source has none.

        Mode d sums over P_d inputs, the one contracted last over R P_d.
        """
        n, count = math.prod(self.sizes), len(self.modes)
        last = _order(self.sizes)[-1]
        inputs = [size * (self.rank if d == last else 1) for d, size in enumerate(self.sizes)]
        return {f"modes.{d}.weight": n / (count * each) for d, each in enumerate(inputs)}

    def _to_dense(self) -> Tensor:
        m, _ = self.fixed_shape
        whole = self.modes[0].weight.new_ones(m * self.rank, 1)
        for weight in self._weights():
            whole = torch.einsum("qn,qp->qnp", whole, weight).flatten(1)
        return whole.reshape(m, self.rank, whole.shape[1]).sum(1)

    def _matmul(self, x: Tensor) -> Tensor:
        weights = self._weights()
        check_dtypes(self.name, weights[0], x)
        m, sizes, r = weights[0].shape[0] // self.rank, self.sizes, self.rank
        k = x.shape[:-1].numel()
        first, *others = _order(sizes)
        if not others:
            many = x.reshape(k, sizes[0]).repeat(1, r)  # Σ_r W[(q, r)] x as one product
            return (many @ weights[0].reshape(m, r * sizes[0]).mT).reshape(*x.shape[:-1], m)
        left, right = math.prod(sizes[:first]), math.prod(sizes[first + 1 :])
        rows = x.reshape(k, left, sizes[first], right).transpose(2, 3)
        z = weights[first] @ rows.reshape(k * left * right, sizes[first]).mT  # (m R, k left right)
        kept = [size for d, size in enumerate(sizes) if d != first]
        for d in others[:-1]:
            place = [e for e in range(len(sizes)) if e != first].index(d)
            z = _contract(weights[d], z, k * math.prod(kept[:place]), math.prod(kept[place + 1 :]))
            kept[place] = 1
        last = sizes[others[-1]]
        z = z.reshape(m, r, k, last).transpose(1, 2).reshape(m, k, r * last)
        y = torch.bmm(z, weights[others[-1]].reshape(m, r * last, 1))  # (m, k, 1)
        return y.reshape(m, k).mT.reshape(*x.shape[:-1], m)

    def _rmatmul(self, y: Tensor) -> Tensor:
        weights = self._weights()
        check_dtypes(self.name, weights[0], y)
        m, sizes = weights[0].shape[0] // self.rank, self.sizes
        k = y.shape[:-1].numel()
        first = _order(sizes)[0]
        z = y.reshape(k, 1, m, 1).expand(k, 1, m, self.rank).reshape(k, 1, m * self.rank)
        for d, weight in enumerate(weights):
            if d != first:
                z = (z.unsqueeze(2) * weight.mT).flatten(1, 2)  # (k, modes so far, m R)
        left = math.prod(sizes[:first])
        x = (z.reshape(-1, z.shape[2]) if z.numel() else z.flatten(0, 1)) @ weights[first]
        x = x.reshape(k, left, math.prod(sizes[first + 1 :]), sizes[first]).transpose(2, 3)
        return x.reshape(*y.shape[:-1], math.prod(sizes))

    def multiply_adds(self) -> int:
        rows, left = self.modes[0].weight.shape[0], math.prod(self.sizes)
        total = 0
        for d in _order(self.sizes):
            total += rows * left
            left //= self.sizes[d]
        return total

    @classmethod
    def _fit(
        cls,
        dense: Tensor,
        gram: Tensor | None,
        *,
        seconds: float | None = SECONDS,
        starts: int = 4,
        seed: int = 0,
        **size: Any,
    ) -> Fit:
        """Two modes: truncated singular values of every row, exact. More: alternating least squares per row.

        Options: modes=(P1, …), rank=R, budget. With a budget alone the even splits into two to five modes are
        tried, and the one of least error is taken: never worse than the best of two even modes. With a gram
        the fewest modes are taken, and their fit is the start of a descent on the weighted error: more of
        them are harder to descend on than they gain.
        """
        begin, target = time.perf_counter(), dense.detach().double()
        options = _choose(cls, *dense.shape, **size)
        if gram is None:
            found, rest = _best(cls, target, options, Search(seconds, starts, seed))
        else:
            limit = None if seconds is None else seconds / 4
            found, _ = _nearest(cls, target, *options[0], Search(limit, starts, seed))
            left = None if seconds is None else seconds - (time.perf_counter() - begin)
            found, rest = _descend(found, dense, gram, left), None
        a = cls(tuple(Dense(w.to(dense.dtype)) for w in found._weights()), found.rank)
        total = float(target.norm())
        predicted = None if rest is None else rest**0.5 / total if total else 0.0
        return Fit(a, relative_error(a, dense, gram), predicted)

    @classmethod
    def random(
        cls, m: int, n: int, budget: float = 1.0, generator: torch.Generator | None = None, **size: Any
    ) -> Self:
        """Modes as `core_deviations` says: P_d inputs, of the one contracted last R P_d; few of them."""
        check_sides(cls.name, m, n)
        modes, rank = _choose(cls, m, n, budget=None if "rank" in size else budget, **size)[0]
        last = _order(modes)[-1]
        sizes = core_deviations([p * (rank if d == last else 1) for d, p in enumerate(modes)])
        weights = [
            torch.randn(m * rank, p, generator=generator) * s for p, s in zip(modes, sizes, strict=True)
        ]
        return cls(tuple(Dense(w) for w in weights), rank)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        for m, modes, rank in (
            (1, (1,), 1),
            (3, (2, 4), 2),
            (2, (3, 2, 2), 1),
            (2, (2, 3, 2), 2),
            (4, (3,), 2),
        ):
            weights = [torch.randn(m * rank, p, generator=generator, dtype=torch.float64) for p in modes]
            yield cls(tuple(Dense(w) for w in weights), rank)


def _order(sizes: Sequence[int]) -> list[int]:
    """Modes in the order they are contracted: the largest first, so that little is left for the others."""
    return sorted(range(len(sizes)), key=lambda d: (-sizes[d], -d))


def _contract(weight: Tensor, z: Tensor, before: int, after: int) -> Tensor:
    """Σ_p W[q, p] z[q, (before, p, after)] per row q → (q, before after)."""
    rows, p = weight.shape
    parts = z.reshape(rows, before, p, after).transpose(2, 3).reshape(rows, before * after, p)
    return torch.bmm(parts, weight.unsqueeze(2)).reshape(rows, before * after)


Sizes = tuple[tuple[int, ...], int]  # modes and rank
SAMPLE = 64  # rows that splits of the columns are compared on
TRIED = 4  # splits, those of the fewest modes


def _best(
    cls: type[Canonical], dense: Tensor, options: Sequence[Sizes], search: Search
) -> tuple[Canonical, float | None]:
    """The nearest found member of the options (float64), and Σ σ² it leaves; None where no theory tells it.

    The split of more than two modes that serves some rows best is fitted to all; at most a quarter of the
    time goes to the choice. The exact fit of two modes stands unless that one is better.
    """
    begin = time.perf_counter()
    two, more = [o for o in options if len(o[0]) <= 2], [o for o in options if len(o[0]) > 2][:TRIED]
    exact, rest = _nearest(cls, dense, *two[0], search) if two else (None, None)
    if exact is not None and (not more or (rest or 0.0) <= EXACT * float(dense.square().sum())):
        return exact, rest
    chosen = _choice(cls, dense, more, search)
    left = None if search.seconds is None else search.seconds - (time.perf_counter() - begin)
    found, _ = _nearest(cls, dense, *chosen, Search(left, search.starts, search.seed))
    if exact is not None and rest is not None and rest <= _rest(found, dense):
        return exact, rest
    return found, None


def _choice(cls: type[Canonical], dense: Tensor, options: Sequence[Sizes], search: Search) -> Sizes:
    """The option that serves some of the rows best, by one start each."""
    if len(options) == 1:
        return options[0]
    rows = dense[:: max(1, len(dense) // SAMPLE)]
    seconds = None if search.seconds is None else search.seconds / (4 * len(options))
    trial = Search(seconds, 1, search.seed)
    return min(options, key=lambda sizes: _rest(_nearest(cls, rows, sizes[0], sizes[1], trial)[0], rows))


def _descend(a: Canonical, dense: Tensor, gram: Tensor, seconds: float | None) -> Canonical:
    """The member with the weighted error made small, (Q, R, P_d) the cores of its form."""
    cores = [w.reshape(-1, a.rank, w.shape[1]) for w in a._weights()]

    def make(found: Cores) -> Canonical:
        return Canonical(tuple(Dense(c.flatten(0, 1).contiguous()) for c in found), a.rank)

    return reduce_form(form_of(len(cores)), cores, make, dense, gram, seconds)


def _rest(a: Canonical, dense: Tensor) -> float:
    return float((a.to_dense() - dense).square().sum())


def _nearest(
    cls: type[Canonical], dense: Tensor, modes: tuple[int, ...], rank: int, search: Search
) -> tuple[Canonical, float | None]:
    """The nearest member (float64) and Σ σ² it leaves; None where no theory tells the error."""
    m = dense.shape[0]
    if len(modes) == 1:
        weights = [(dense / rank).repeat_interleave(rank, 0)]
        return cls(tuple(Dense(w) for w in weights), rank), 0.0
    if len(modes) == 2:
        u, v, rest = truncate(dense.reshape(m, *modes), rank)
        short = rank - u.shape[2]  # a rank above the sizes leaves the rest zero
        u, v = (torch.nn.functional.pad(t, (0, 0, 0, short)) for t in (u.mT, v))
        pair = (Dense(t.reshape(m * rank, -1).contiguous()) for t in (u, v))
        return cls(tuple(pair), rank), float(rest.sum())
    factors = fit_rows(dense.reshape(m, *modes), rank, search)
    return cls(tuple(Dense(f.reshape(m * rank, -1).contiguous()) for f in factors), rank), None


def _largest_rank(modes: Sequence[int]) -> int:
    """The R from which on every matrix is a member: Π P_d ÷ max P_d, one term per setting of the others."""
    return math.prod(modes) // max(modes)


def _choose(
    cls: type[Structure],
    m: int,
    n: int,
    budget: float | None = None,
    rank: int | None = None,
    modes: Sequence[int] | None = None,
) -> list[Sizes]:
    """Modes and rank within the budget, the fewest modes first; one when either is given."""
    if rank is not None:
        check_rank(cls.name, rank)
    if modes is not None:
        options = [check_product(cls.name, "modes", modes, n)]
    else:
        most = len(prime_factors(n))
        options = [s for count in range(2, most + 1) if 1 not in (s := split_evenly(n, count))]
    if not options:
        raise cannot_split(cls.name, m, n, "modes=(P1, …)")
    if rank is not None:
        where, bound = f" over modes {options[0]}", _largest_rank(options[0])
        return [(options[0], check_rank_within(f"{cls.name} {m}×{n}", rank, bound, where, "modes=(P1, …)"))]
    budget = 1.0 if budget is None else budget
    allowed = numbers_within(budget, m, n, cls.name)
    fitting = [(s, min(allowed // (m * sum(s)), _largest_rank(s))) for s in options if m * sum(s) <= allowed]
    if fitting:
        return fitting
    least = min(options, key=sum)
    what = f"rank 1 over modes {least}"
    if m * sum(least) > m * n:
        raise FitError(
            f"canonical {m}×{n}: {what} stores {m * sum(least)} numbers, more than the {m * n} of dense"
        )
    raise below_minimum(cls, budget, m * sum(least), m, n, what)
