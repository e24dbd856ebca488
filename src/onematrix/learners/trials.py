"""Every structure fitted to one matrix at the same time, within a limit of seconds, then timed in turn."""

import math
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onematrix.errors import FitError, OneMatrixError
from onematrix.learners.fit_table import Candidate
from onematrix.records.timing import seconds_per_call
from onematrix.structures.base import STRUCTURES, Fit, Structure, takes_seconds
from onematrix.structures.tree import index_bytes, stored_numbers

PATIENCE, LINE_EVERY = 2.0, 5.0  # seconds before the first line of progress, and between two
POLL = 0.5  # seconds between two looks at what is done
ROUNDS, SAMPLE_SECONDS = 5, 2e-3  # timings of each product, and how long one of them takes at least
RESERVE = 0.05  # share of the time searches leave for their last step
LEAST_SHARE = 1e-3  # seconds


@dataclass
class Limit:
    """The time all fits share, and how many searches are still to begin."""

    end: float
    workers: int
    searches: int
    lock: threading.Lock

    def share(self) -> float | None:
        """Seconds the next search may take: what is left, over the searches a worker still has before it."""
        with self.lock:
            turns = math.ceil(self.searches / self.workers)
            self.searches -= 1
        left = self.end - time.perf_counter()
        return None if left == math.inf else max(left * (1 - RESERVE) / turns, LEAST_SHARE)


def is_search(cls: type[Structure], weighted: bool) -> bool:
    """Whether its fit needs a share of the time: a search, or with a gram a descent."""
    return takes_seconds(cls) and (weighted or cls.searches)


def fit_all(
    names: Sequence[str],
    dense: Tensor,
    budget: float | None,
    seconds: float | None,
    progress: bool | None,
    options: dict[str, Any],
) -> tuple[list[Candidate], dict[str, OneMatrixError]]:
    """A row per structure that has a member, and the error per structure that has none.

    As many fits at once as torch has threads, one thread each. Exact projections come first; searches share
    what is left of the time. No fit begins after the limit, and no exact projection is cut short.
    """
    searches = {name for name in names if is_search(STRUCTURES[name], options.get("gram") is not None)}
    ordered = sorted(names, key=searches.__contains__)
    threads = torch.get_num_threads()
    end = math.inf if seconds is None else time.perf_counter() + seconds
    limit = Limit(end, threads, len(searches), threading.Lock())
    pool = ThreadPoolExecutor(threads, "onematrix-fit", initializer=torch.set_num_threads, initargs=(1,))
    try:
        tasks = {
            pool.submit(_fit_one, name, name in searches, dense, budget, limit, options): name
            for name in ordered
        }
        _report(tasks, progress)
        found = {name: task.result() for task, name in tasks.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(threads)  # the workers' own setting is also that of threads yet to begin
    rows = [_row(name, fit) for name, fit in found.items() if isinstance(fit, Fit)]
    return rows, {name: fit for name, fit in sorted(found.items()) if isinstance(fit, OneMatrixError)}


def _fit_one(
    name: str, search: bool, dense: Tensor, budget: float | None, limit: Limit, options: dict[str, Any]
) -> Fit | OneMatrixError:
    cls = STRUCTURES[name]
    if search:
        options = {**options, "seconds": limit.share()}
    if time.perf_counter() > limit.end:
        return FitError(f"{name}: not begun within the time limit; give more seconds=", name=name)
    try:
        return cls.fit(dense, budget, **options)
    except OneMatrixError as error:
        return error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        return FitError(f"{name}: its fit takes no option {str(error).rsplit(' ', 1)[-1]}", name=name)


def _row(name: str, fit: Fit) -> Candidate:
    a = fit.structure
    return Candidate(name, fit, stored_numbers(a), index_bytes(a), a.multiply_adds())


def _report(tasks: dict[Future[Fit | OneMatrixError], str], progress: bool | None) -> None:
    """Wait for all; past two seconds say what is still under way. None: only where a terminal listens."""
    begin, due, left = time.perf_counter(), PATIENCE, set(tasks)
    show = sys.stderr.isatty() if progress is None else progress
    while left:
        left = wait(left, timeout=POLL, return_when=FIRST_COMPLETED).not_done
        now = time.perf_counter() - begin
        if show and left and now >= due:
            under_way = ", ".join(name for task, name in tasks.items() if task.running())
            done = f"{len(tasks) - len(left)} of {len(tasks)} structures fitted in {now:.0f} s"
            print(f"fit: {done}; under way: {under_way}", file=sys.stderr, flush=True)
            due = now + LINE_EVERY


def time_products(rows: Sequence[Candidate], dense: Tensor, batch: int) -> tuple[list[Candidate], float]:
    """The rows with the seconds of their products, and those of the dense one; one thread, all in turn."""
    x = torch.randn(
        batch, dense.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float32
    ).to(dense)
    matrix = dense.detach()
    calls: list[Callable[[], object]] = [lambda: functional.linear(x, matrix)]
    calls += [_product(row.fit.structure, x) for row in rows]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with torch.no_grad():
            dense_seconds, *seconds = _medians(calls)
    finally:
        torch.set_num_threads(threads)
    return [replace(row, seconds=took) for row, took in zip(rows, seconds, strict=True)], dense_seconds


def _product(a: Structure, x: Tensor) -> Callable[[], object]:
    return lambda: a.matmul(x)


def _medians(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Median seconds of each call over rounds in which every one has its turn."""
    repeats = [_repeats(call) for call in calls]
    rounds = [[seconds_per_call(c, k) for c, k in zip(calls, repeats, strict=True)] for _ in range(ROUNDS)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def _repeats(call: Callable[[], object]) -> int:
    call()
    return max(1, math.ceil(SAMPLE_SECONDS / max(seconds_per_call(call, 1), 1e-7)))
