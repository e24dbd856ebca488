"""How a ratio is measured: candidate and peer in turn, in one process, with a 95 % interval."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

SAMPLE_SECONDS = 0.02  # one timing repeats the call for about so long
PAIRS = 21


@dataclass(frozen=True)
class Ratio:
    """How many times faster the candidate is than its peer: median and 95 % interval over the pairs."""

    median: float
    low: float
    high: float
    candidate_seconds: float
    peer_seconds: float
    pairs: int

    def meets(self, target: float) -> bool:
        """Whether even the lower end of the interval reaches the target."""
        return self.low >= target


def compare(
    candidate: Callable[[], object], peer: Callable[[], object], pairs: int = PAIRS, calls: int | None = None
) -> Ratio:
    """Time of the peer ÷ time of the candidate, over `pairs` timings of both taken in alternating order.

    calls: calls per timing, for tests; by default as many as fill SAMPLE_SECONDS.
    """
    if pairs < 10:
        raise ValueError(f"compare: at least 10 pairs are needed for a 95 % interval, got {pairs}")
    repeats = [calls or _calls(f) for f in (candidate, peer)]
    times = []
    for number in range(pairs):
        sides = [(0, candidate), (1, peer)]
        seconds = [0.0, 0.0]
        for side, function in sides if number % 2 == 0 else reversed(sides):
            seconds[side] = seconds_per_call(function, repeats[side])
        times.append(seconds)
    ratios = [theirs / ours for ours, theirs in times]
    low, high = median_interval(ratios)
    ours, theirs = (statistics.median(t[side] for t in times) for side in (0, 1))
    return Ratio(statistics.median(ratios), low, high, ours, theirs, pairs)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The narrowest order statistics around the median that hold it with probability ≥ 95 %.

    Of n values, Binomial(n, 1/2) lie below the median: no assumption on their distribution.

    >>> median_interval([5, 1, 4, 2, 3, 6, 7, 8, 9, 10])
    (2, 9)
    """
    from scipy.stats import binom

    ordered, n = sorted(values), len(values)
    cut = max(k for k in range(n // 2) if 2 * binom.cdf(k, n, 0.5) <= 0.05)
    return ordered[cut], ordered[n - 1 - cut]


def time_call(function: Callable[[], object], timings: int = 11) -> float:
    """Median seconds of one call."""
    calls = _calls(function)
    return statistics.median(seconds_per_call(function, calls) for _ in range(timings))


def conditions(pairs: int = PAIRS) -> str:
    """Threads, load and versions: the line above every table."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return (
        f"{torch.get_num_threads()} thread(s), load {load:.2f}, torch {torch.__version__}, float32, "
        f"{pairs} alternating pairs; ratio = peer ÷ candidate, median [95 % interval]"
    )


def row(name: str, ratio: Ratio, target: float, floor_seconds: float) -> str:
    """One line of a table; the floor is the time of the matrix products alone on prepared operands."""
    return (
        f"{name:<34}{ratio.candidate_seconds * 1e3:9.3f} ms{ratio.peer_seconds * 1e3:10.3f} ms"
        f"{ratio.median:8.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
        f"{target:8.2f}  {'met' if ratio.meets(target) else 'NOT met':<8}"
        f"{ratio.candidate_seconds / floor_seconds:6.2f} × floor"
    )


HEAD = f"{'':<34}{'candidate':>12}{'peer':>13}{'ratio':>8}{'':<16}{'target':>7}"


def _calls(function: Callable[[], object]) -> int:
    function()
    return max(1, round(SAMPLE_SECONDS / max(seconds_per_call(function, 2), 1e-7)))


def clock() -> float:
    """Seconds of the clock, once a GPU in use has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_per_call(function: Callable[[], object], calls: int) -> float:
    """Mean seconds of a call, over so many."""
    start = clock()
    for _ in range(calls):
        function()
    return (clock() - start) / calls
