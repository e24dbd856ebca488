"""Sizes of the axes of a definition within a budget, and the fit of its cores."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from onematrix.errors import BudgetError, FitError
from onematrix.structures.base import round_up
from onematrix.structures.block_projection import truncate
from onematrix.structures.canonical_fit import fit_rows
from onematrix.structures.definition_pattern import Pattern
from onematrix.structures.factor_sizes import ordered_splits
from onematrix.structures.multilinear import Form, Kernel, LeastSquares
from onematrix.structures.multilinear_fit import Search, fit_form
from onematrix.structures.sizes import above_bound, check_sides, numbers_within

GRIDS = 3  # splits of the sides a fit tries
MOST_SPLITS = 4000
Sizes = dict[str, int]


@dataclass(frozen=True)
class Wanted:
    """What was asked for: a budget, one rank for all rank axes, or sizes by axis. All may be None."""

    budget: float | None = None
    rank: int | None = None
    sizes: Mapping[str, int] | None = None


def stored_numbers(pattern: Pattern, sizes: Mapping[str, int]) -> int:
    """Numbers in all cores."""
    return sum(math.prod(sizes[axis] for axis in axes) for _, axes in pattern.cores)


def rank_bound(pattern: Pattern, sizes: Mapping[str, int]) -> int:
    """The least product of sizes of axes that leads from the rows to the columns: no member has a higher rank.

    Each way to put the cores on the side of the rows or of the columns cuts the axes that both sides have;
    for fixed values of these the matrix is an outer product. Cost 2^cores.
    """
    cores, best = [set(axes) for _, axes in pattern.cores], math.inf
    for left in itertools.product((False, True), repeat=len(cores)):
        sides: list[set[str]] = [set(pattern.columns), set(pattern.rows)]
        for side, axes in zip(left, cores, strict=True):
            sides[side] = sides[side] | axes
        best = min(best, math.prod(sizes[axis] for axis in sides[0] & sides[1]))
    return int(best)


def choose_sizes(name: str, pattern: Pattern, m: int, n: int, wanted: Wanted) -> list[Sizes]:
    """Sizes of every axis, the best guess first: highest rank bound, then most numbers, then evenest split.

    A size of 1 is never taken for one of several axes of a side unless asked for: such a member would be of
    another kind. Raises FitError where a side does not split, BudgetError below the smallest member.
    """
    fixed = dict(wanted.sizes or {})
    _check_fixed(name, pattern, fixed)
    splits = list(itertools.islice(_splits(name, pattern, m, n, fixed), MOST_SPLITS))
    check_sides(name, m, n)
    most = [_too_high(pattern, split, wanted, m * n) for split in splits]
    useful = [split for split, above in zip(splits, most, strict=True) if above is None]
    if splits and not useful:
        what, got, bound = max((above for above in most if above is not None), key=lambda above: above[2])
        raise above_bound(f"{name} {m}×{n}", what, got, bound, other="sizes={'axis': 2, …}")
    found = [sizes for split in useful if (sizes := _with_ranks(name, pattern, split, m, n, wanted))]
    if not found:
        raise _too_small(name, pattern, m, n, splits, wanted)
    found = [s for s in found if stored_numbers(pattern, s) <= m * n] or found  # a rank alone is no limit
    return sorted(found, key=lambda s: (-rank_bound(pattern, s), -stored_numbers(pattern, s), _spread(s)))


def fit_cores(
    pattern: Pattern, dense: Tensor, gram: Tensor | None, candidates: list[Sizes], search: Search
) -> tuple[Sizes, list[Tensor]]:
    """The cores of the candidate sizes with the least error; the time is divided among them."""
    tried = candidates[:GRIDS]
    best: tuple[float, Sizes, list[Tensor]] = (math.inf, candidates[0], [])
    kernel = Kernel(pattern.form)
    seconds = None if search.seconds is None else search.seconds / len(tried)
    for sizes in tried:
        letters = pattern.in_letters(sizes)
        given = project_cores(pattern.form, dense, letters)
        if len(given) == 1 or (len(given) == 2 and gram is None):
            cores = given
        else:
            own = Search(seconds, search.starts, search.seed)
            terms = canonical_cores(pattern.form, dense, letters, own)
            own = own if terms is None or seconds is None else Search(seconds / 2, search.starts, search.seed)
            cores = fit_form(kernel, dense, letters, gram, own, [given] if terms is None else [given, terms])
        shaped = dense.double().reshape([letters[c] for c in pattern.form.output])
        least = LeastSquares(kernel, shaped, letters, None if gram is None else gram.double())
        error = least.value(least.pack(cores))[0]
        if error < best[0]:
            best = (error, sizes, cores)
    return best[1], best[2]


def project_cores(form: Form, dense: Tensor, sizes: Mapping[str, int]) -> list[Tensor]:
    """Cores in float64: every matrix is a member of a form of one, the nearest member of one of two.

    More are split off one by one, each from all that follow, by `_split_pair`. What is left out at one core is
    orthogonal to what later ones keep: on chains this is the error of successive singular values.
    """
    if len(form.cores) == 1:
        axes = [form.output.index(c) for c in form.cores[0]]
        return [dense.double().reshape([sizes[c] for c in form.output]).permute(axes).contiguous()]
    first, *rest = form.cores
    if len(rest) == 1:
        return list(_split_pair(form, dense, sizes, even=True))
    ahead = set(form.output) | set(first)
    kept = "".join(dict.fromkeys(c for core in rest for c in core if c in ahead))
    core, left = _split_pair(Form((first, kept), form.rows, form.columns), dense, sizes, even=False)
    return [core, *project_cores(Form(tuple(rest), kept, ""), left, sizes)]


def canonical_cores(
    form: Form, dense: Tensor, sizes: Mapping[str, int], search: Search
) -> list[Tensor] | None:
    """Cores in float64 of a canonical decomposition in half the time; None where the form is none.

    It is one where every axis is in all cores or in one alone: for each value of the axes of the matrix that all
    have, a sum of outer products.
    """
    shared = set(form.cores[0]).intersection(*form.cores[1:])
    own = ["".join(c for c in core if c not in shared) for core in form.cores]
    if len(own) < 3 or not all(own) or len(set("".join(own))) < len("".join(own)):
        return None
    both = "".join(c for c in form.output if c in shared)
    ranks = "".join(c for c in form.cores[0] if c in shared and c not in both)

    def count(axes: str) -> int:
        return math.prod(sizes[c] for c in axes)

    order = [form.output.index(c) for c in both + "".join(own)]
    whole = dense.double().reshape([sizes[c] for c in form.output]).permute(order)
    half = None if search.seconds is None else search.seconds / 2
    factors = fit_rows(
        whole.reshape([count(both), *map(count, own)]),
        count(ranks),
        Search(half, search.starts, search.seed),
    )
    found = []
    for core, axes, factor in zip(form.cores, own, factors, strict=True):
        laid = both + ranks + axes
        found.append(
            factor.reshape([sizes[c] for c in laid]).permute([laid.index(c) for c in core]).contiguous()
        )
    return found


def _split_pair(form: Form, dense: Tensor, sizes: Mapping[str, int], *, even: bool) -> tuple[Tensor, Tensor]:
    """The nearest member of a form of two cores: exact. Not even: the first core is orthonormal.

    For every value of the axes of the matrix that both cores have, the rest is a matrix from the axes of the
    one to those of the other, of a rank that is the product of the rank axes: its largest singular values.
    Cost of the singular value decompositions of these blocks.
    """
    first, second = form.cores
    both = "".join(c for c in form.output if c in first and c in second)
    sides = ["".join(c for c in form.output if c in core and c not in both) for core in form.cores]
    ranks = form.ranks
    order = [form.output.index(c) for c in both + sides[0] + sides[1]]
    count, p, q = (math.prod(sizes[c] for c in letters) for letters in (both, *sides))
    blocks = dense.double().reshape([sizes[c] for c in form.output]).permute(order).reshape(count, p, q)
    rank = math.prod(sizes[c] for c in ranks)
    u, v, _ = truncate(blocks, min(rank, p, q))
    if not even:
        norms = u.norm(dim=1).clamp(min=1e-300)  # (count, rank), √σ
        u, v = u / norms[:, None], v * norms[:, :, None]
    more = rank - u.shape[2]  # a rank axis above the size of a block holds zeros
    u, v = torch.nn.functional.pad(u, (0, more)), torch.nn.functional.pad(v, (0, 0, 0, more))
    laid = both + sides[0] + ranks, both + ranks + sides[1]
    left, right = (
        part.reshape([sizes[c] for c in letters]).permute([letters.index(c) for c in axes]).contiguous()
        for part, letters, axes in zip((u, v), laid, form.cores, strict=True)
    )
    return left, right


def _check_fixed(name: str, pattern: Pattern, fixed: Mapping[str, int]) -> None:
    if unknown := sorted(set(fixed) - set(pattern.axes)):
        raise FitError(f"{name}: there is no axis {unknown[0]!r}; axes: {' '.join(pattern.axes)}")
    for axis, size in fixed.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise FitError(f"{name}: the size of axis {axis!r} must be at least 1, got {size!r}")


def _splits(name: str, pattern: Pattern, m: int, n: int, fixed: Mapping[str, int]) -> Iterator[Sizes]:
    """Sizes of the axes of both sides."""
    rows, columns = (
        [dict(zip(axes, sizes, strict=True)) for sizes in factorisations(size, len(axes), axes, fixed)]
        for axes, size in ((pattern.rows, m), (pattern.columns, n))
    )
    for axes, size, found in ((pattern.rows, m, rows), (pattern.columns, n, columns)):
        if not found:
            given = {axis: fixed[axis] for axis in axes if axis in fixed}
            raise FitError(
                f"{name} {m}×{n}: {size} is no product of {len(axes)} sizes ({' '.join(axes)}) of at least 2"
                + (f" with {given}" if given else "")
                + "; pad the matrix, or give sizes={'axis': 1, …} to leave an axis out",
                size=size,
            )
    yield from ({**a, **b} for a, b in itertools.product(rows, columns))


def factorisations(
    size: int, count: int, axes: tuple[str, ...] = (), fixed: Mapping[str, int] | None = None
) -> list[tuple[int, ...]]:
    """Ordered products of so many sizes, each at least 2 unless it is the only one or fixed by axis.

    >>> factorisations(12, 2)
    [(2, 6), (3, 4), (4, 3), (6, 2)]
    """
    given = {axes.index(axis): s for axis, s in (fixed or {}).items() if axis in axes}
    free = [place for place in range(count) if place not in given]
    rest, taken = divmod(size, math.prod(given.values()))
    if taken or (not free and rest != 1):
        return []
    least = 1 if count == 1 else 2
    return [
        tuple(given.get(place, 0) or found[free.index(place)] for place in range(count))
        for found in ordered_splits(rest, len(free), least)
    ]


def _too_high(pattern: Pattern, split: Sizes, wanted: Wanted, cells: int) -> tuple[str, int, int] | None:
    """What was asked for a rank beyond its use with these sides: its name, its size, the largest of use."""
    fixed = {axis: size for axis, size in (wanted.sizes or {}).items() if axis in pattern.ranks}
    free = [axis for axis in pattern.ranks if axis not in fixed]
    high = {**split, **dict.fromkeys(free, wanted.rank or cells), **fixed}
    asked = [(f"axis {axis!r} =", size, useful_rank(pattern, high, axis)) for axis, size in fixed.items()]
    if wanted.rank is not None:
        rest = wanted.rank if fixed else 1  # given by size, or no rank at all
        bound = max((useful_rank(pattern, high, axis) for axis in free), default=rest)
        asked.append(("rank", wanted.rank, bound))
    return next((each for each in asked if each[1] > each[2]), None)


def useful_sizes(pattern: Pattern, sizes: Sizes) -> Sizes:
    """The same sizes with every rank at most the largest of use beside the others."""
    found: Sizes | None = None
    while found != sizes:
        found, sizes = sizes, dict(sizes)
        for axis in pattern.ranks:
            sizes[axis] = min(sizes[axis], useful_rank(pattern, sizes, axis))
    return sizes


def _with_ranks(name: str, pattern: Pattern, split: Sizes, m: int, n: int, wanted: Wanted) -> Sizes | None:
    """The split with the largest ranks: all equal, then each in turn larger, within the budget and their use."""
    fixed = wanted.sizes or {}
    free = [axis for axis in pattern.ranks if axis not in fixed]
    sizes = {**split, **{axis: fixed[axis] for axis in pattern.ranks if axis in fixed}}
    if wanted.rank is not None:
        high = {**sizes, **dict.fromkeys(free, wanted.rank)}
        return {**high, **{axis: min(wanted.rank, useful_rank(pattern, high, axis)) for axis in free}}
    most = m * n if wanted.budget is None and not free else numbers_within(wanted.budget or 1.0, m, n, name)
    low = {**sizes, **dict.fromkeys(free, 1)}
    if wanted.budget is None and not free:
        return low
    if stored_numbers(pattern, low) > most:
        return None
    for together in [free, *([axis] for axis in free if len(free) > 1)]:
        low = _raise(pattern, low, together, most)
    return low


def _raise(pattern: Pattern, sizes: Sizes, axes: list[str], most: int) -> Sizes:
    """The sizes with these axes grown by equal amounts as far as the budget and the use of each go."""
    if not axes:
        return sizes
    bounds = {axis: useful_rank(pattern, sizes, axis) for axis in axes}

    def grown(more: int) -> Sizes:
        return {**sizes, **{axis: min(sizes[axis] + more, max(sizes[axis], bounds[axis])) for axis in axes}}

    low, high = 0, max(bounds.values())
    while low < high:
        middle = (low + high + 1) // 2
        if stored_numbers(pattern, grown(middle)) <= most:
            low = middle
        else:
            high = middle - 1
    return grown(low)


def useful_rank(pattern: Pattern, sizes: Mapping[str, int], rank: str) -> int:
    """A size of a rank axis beyond which it adds no matrices.

    For every value of the axes shared with the rest, a core is a matrix with `rank` as one side: the other
    side bounds it for two cores, and the product of all but the largest for more.
    """
    cores = [set(axes) for _, axes in pattern.cores if rank in axes]
    others = []
    for core in cores:
        rest = set().union(*(c for c in cores if c is not core))
        others.append(math.prod(sizes[axis] for axis in core - rest))
    if len(cores) == 2:
        return max(1, min(others))
    shared = set().union(*(a & b for a, b in itertools.combinations(cores, 2))) - {rank}
    return math.prod(sorted(others)[:-1]) * math.prod(sizes[axis] for axis in shared)


def _spread(sizes: Mapping[str, int]) -> float:
    """How uneven a split is; ranks do not count much, as they are what the budget leaves."""
    logs = [math.log(size) for size in sizes.values()]
    return max(logs) - min(logs)


def _too_small(
    name: str, pattern: Pattern, m: int, n: int, splits: list[Sizes], wanted: Wanted
) -> BudgetError | FitError:
    ranks = {axis: (wanted.sizes or {}).get(axis, 1) for axis in pattern.ranks}
    least = min((stored_numbers(pattern, {**split, **ranks}) for split in splits), default=0)
    if wanted.budget is None or least > m * n:
        return FitError(
            f"{name} {m}×{n}: the smallest member stores {least} numbers, more than the {m * n} of dense",
            needed=least,
        )
    smallest = round_up(Fraction(least, m * n))
    return BudgetError(
        f"{name} {m}×{n}: budget {wanted.budget:g} is below the smallest member ({least} numbers, "
        f"E = {least / (m * n):.4g}); ask for budget={smallest!r} or more",
        budget=wanted.budget,
        smallest=smallest,
    )
