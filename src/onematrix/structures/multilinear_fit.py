"""The best cores of a multilinear form for a given matrix.

Sums of products of several cores have many local minima, and alternating least squares from a random start
ends in one of them or in a swamp of slow progress. What helps is weight decay λ on all cores, lowered step
by step to zero: decay on the cores of a k-fold product acts on the size a of a component as λ a^(2/k), so
that components enter one after the other, largest first, and none starts in the way of another. The first
λ stands just below the one at which the zero matrix is a minimum: with ‖T‖² spread evenly on r components
that is of the order (‖T‖ ÷ √r)^(2 − 2/k). Axes that every core has number problems of their own, each with its
share of ‖T‖².
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onematrix.structures.base import SECONDS
from onematrix.structures.descent import descend
from onematrix.structures.multilinear import (
    MOST_GRAM,
    Cores,
    Kernel,
    LeastSquares,
    alternate,
    balance,
    gram_numbers,
)

EXACT = 1e-11  # a relative error at which a fit in float64 is called exact
ALIKE = 0.01  # two starts that end so close to each other end the search
# First decay (in units of its scale), factor per stage, stages. On planted BLAST with ranks up to twice the
# block size the first recovers nearly all; the slower second some of those that are left.
SCHEDULES = ((0.03, 0.6, 12), (0.03, 0.75, 20), (0.045, 0.6, 13), (0.015, 0.6, 11))
TWO_CORES = (0.01, 0.3, 5)  # low rank in blocks: no local minima but the least, and one start reaches it
STAGE_STEPS, POLISH_STEPS = 60, 1000
SMALL = 2**14  # numbers of a matrix for which float64 throughout costs nothing


@dataclass(frozen=True)
class Search:
    """How long to search: seconds as a limit (None: none), random starts, and the seed they are drawn with."""

    seconds: float | None = SECONDS
    starts: int = 4
    seed: int = 0


def fit_form(
    kernel: Kernel,
    target: Tensor,
    sizes: Mapping[str, int],
    gram: Tensor | None = None,
    search: Search | None = None,
    given: Sequence[Cores] = (),
) -> list[Tensor]:
    """Cores in float64 with small ½ ‖(A − T) G^½‖², never worse than the best of the given ones.

    target: (m, n). The search ends at an exact fit, when two starts agree to 1 %, or with the time.
    """
    search, scale = search or Search(), float(target.double().square().mean().sqrt())
    if scale == 0:
        return [target.new_zeros(s, dtype=torch.float64) for s in kernel.form.shapes(sizes)]
    problem = _Problem(kernel, target.double() / scale, sizes, gram, search)
    factor = scale ** (1 / len(kernel.form.cores))
    best = problem.polish(*problem.explore([[c / factor for c in cores] for cores in given]))
    return [core * factor for core in problem.exact.unpack(best)]


class _Problem:
    """One target at unit root mean square, in the working precision and in float64."""

    def __init__(
        self, kernel: Kernel, target: Tensor, sizes: Mapping[str, int], gram: Tensor | None, search: Search
    ) -> None:
        self.kernel, self.form, self.sizes, self.search = kernel, kernel.form, dict(sizes), search
        shaped = target.reshape([sizes[c] for c in self.form.output])
        weight = None if gram is None else gram.double() / float(gram.double().diagonal().mean())
        self.exact = LeastSquares(kernel, shaped, sizes, weight)
        dtype = torch.float64 if target.numel() <= SMALL else torch.float32
        weight = None if weight is None else weight.to(dtype)
        self.quick = LeastSquares(kernel, shaped.to(dtype), sizes, weight)
        flat = target.reshape(len(target), -1)
        self.total = 0.5 * float(torch.sum(flat * (flat if weight is None else flat @ weight.double())))
        self.begin = time.perf_counter()
        self.end = math.inf if search.seconds is None else self.begin + search.seconds
        self.generator = torch.Generator().manual_seed(search.seed)

    def error(self, x: Tensor) -> float:
        """Relative error in the norm of the fit; in float64 where float32 could not tell it from zero."""
        error = self._error(self.quick, x)
        return (
            error if error > 1e-3 or self.quick.target.dtype == torch.float64 else self._error(self.exact, x)
        )

    def _error(self, least: LeastSquares, x: Tensor) -> float:
        value = least.value(x.to(least.target.dtype))[0]
        return math.sqrt(max(value, 0.0) / self.total) if self.total > 0 else 0.0

    def explore(self, given: Sequence[Cores]) -> tuple[Tensor, float]:
        """The best point of all starts, with its error."""
        found: list[tuple[float, Tensor]] = []
        for x in self.ends(given):
            found = sorted([*found, (self.error(x), x)], key=lambda pair: pair[0])
            if found[0][0] < 1e-6 or (len(found) > len(given) + 1 and _alike(found[0][0], found[1][0])):
                break
        return found[0][1], found[0][0]

    def ends(self, given: Sequence[Cores]) -> Iterator[Tensor]:
        """Where each start leads: the given ones as they are, then random ones, then the given ones improved."""
        yield from (self.exact.pack(cores) for cores in given)
        schedules = SCHEDULES if len(self.form.cores) > 2 else (TWO_CORES,)
        for number in range(self.search.starts if len(schedules) > 1 else min(1, self.search.starts)):
            if number and time.perf_counter() > self.begin + 0.5 * (self.end - self.begin):
                break
            yield self.follow(*schedules[number % len(schedules)])
        for cores in given:
            if time.perf_counter() < self.begin + 0.75 * (self.end - self.begin):
                yield self.descend(self.quick.pack([self.shake(c) for c in cores]), 2 * STAGE_STEPS)

    def follow(self, first: float, factor: float, stages: int) -> Tensor:
        """From a random start, through weight decay lowered stage by stage."""
        form, count = self.form, len(self.form.cores)
        components = math.prod(self.sizes[c] for c in form.ranks)
        alone = math.prod(self.sizes[c] for c in form.output if all(c in core for core in form.cores))
        scale = math.sqrt(self.quick.target.numel() / (components * alone)) ** (2 - 2 / count)
        x = self.quick.pack(self.random_start())
        leave = self.end - 0.25 * (self.end - time.perf_counter()) if self.end < math.inf else math.inf
        for stage in range(stages):
            now = time.perf_counter()
            self.quick.decay = first * factor**stage * scale
            deadline = now + (leave - now) / (stages - stage) if leave < math.inf else math.inf
            x, _ = descend(self.quick, x, STAGE_STEPS, deadline=deadline, progress=1e-3)
        self.quick.decay = 0.0
        return self.descend(x, STAGE_STEPS)

    def random_start(self) -> list[Tensor]:
        """Gaussian cores at the scale of the target, after three sweeps of least squares where these are small."""
        dtype, target = self.quick.target.dtype, self.quick.target
        cores = [torch.randn(s, generator=self.generator, dtype=torch.float64) for s in self.quick.shapes]
        size = float(self.form.expand(cores).norm()) or 1.0
        factor = (float(target.norm()) / size) ** (1 / len(cores))
        scaled = [(c * factor).to(dtype) for c in cores]
        if max(gram_numbers(self.form, k, self.sizes) for k in range(len(cores))) > MOST_GRAM:
            return scaled
        return alternate(self.kernel, scaled, target, 3, 1e-6)

    def shake(self, core: Tensor) -> Tensor:
        """The core with noise of 1 % of its size, so that components at zero can grow."""
        noise = torch.randn(core.shape, generator=self.generator, dtype=torch.float64)
        return core + 0.01 * core.double().square().mean().sqrt() * noise

    def descend(self, x: Tensor, steps: int) -> Tensor:
        """Plain descent in the working precision."""
        enough = 1e-26 * self.total if x.dtype == torch.float64 else 0.0
        return descend(self.quick, x, steps, deadline=self.end, progress=1e-3, enough=enough)[0]

    def polish(self, x: Tensor, error: float) -> Tensor:
        """The point improved until progress stops; in float64 to the end where the fit may be exact."""
        start = x.double()
        if error <= EXACT:
            return start
        if error > 1e-3:
            end = descend(
                self.quick, x.to(self.quick.target.dtype), POLISH_STEPS, deadline=self.end, progress=5e-4
            )
            x, error = end[0], self.error(end[0])
        if error <= 1e-3:
            self.exact.ridge = 1e-9
            x = self.exact.pack(balance(self.exact.unpack(x.double())))
            enough = EXACT**2 * self.total
            x, _ = descend(self.exact, x, POLISH_STEPS, deadline=self.end, progress=0.01, enough=enough)
        return x.double() if self.error(x) <= self.error(start) else start


def _alike(best: float, next_best: float) -> bool:
    return next_best - best <= ALIKE * best
