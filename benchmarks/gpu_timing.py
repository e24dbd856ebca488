"""Times on a GPU: events around alternating calls, graphs replayed, rows of one table."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from measure import PAIRS, median_interval

Call = Callable[[], object]
SAMPLE_SECONDS = 0.01  # one timing repeats the call for about so long


@dataclass(frozen=True)
class Row:
    """One candidate against one peer. Seconds of one call; replay: of its CUDA graph. floor: what no call beats."""

    name: str
    seconds: float
    replay: float | None
    peer: str
    peer_seconds: float
    peer_replay: float | None
    ratio: float  # candidate ÷ peer, both called, median over the pairs
    low: float
    high: float
    floor: float | None = None
    notes: list[str] = field(default_factory=list)

    def cells(self) -> list[str]:
        """As the table shows it, in microseconds."""
        best = self.seconds if self.replay is None else min(self.seconds, self.replay)
        over = "" if self.floor is None else f"{best / self.floor:.2f}"
        ratio = f"{self.ratio:.2f} [{self.low:.2f}, {self.high:.2f}]"
        times = (self.seconds, self.replay, self.peer_seconds, self.peer_replay, self.floor)
        ours, graph, theirs, their_graph, floor = ("" if t is None else f"{t * 1e6:.1f}" for t in times)
        return [
            self.name,
            ours,
            graph,
            self.peer,
            theirs,
            their_graph,
            ratio,
            floor,
            over,
            "; ".join(self.notes),
        ]


HEAD = (
    "| case | ours µs | its graph | peer | peer µs | its graph | ours ÷ peer [95 %] "
    "| floor µs | best ÷ floor | notes |"
)


def table(rows: Sequence[Row]) -> str:
    """Markdown; ours ÷ peer is of calls, best ÷ floor of the faster of call and replay."""
    return "\n".join([HEAD, "|---" * 10 + "|", *(f"| {' | '.join(row.cells())} |" for row in rows)])


def seconds_of(function: Call, calls: int, device: str) -> float:
    """Seconds of one call, by events of the device; by the clock of the CPU there."""
    if device != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def calls_of(function: Call, device: str) -> int:
    """As many as fill a timing, after two calls that may compile."""
    for _ in range(2):
        function()
    return max(1, min(1000, round(SAMPLE_SECONDS / max(seconds_of(function, 2, device), 1e-7))))


def time_once(function: Call, device: str, timings: int = 11) -> float:
    """Median seconds of one call."""
    calls = calls_of(function, device)
    return statistics.median(seconds_of(function, calls, device) for _ in range(timings))


def time_pair(ours: Call, peer: Call, device: str, pairs: int = PAIRS) -> tuple[float, float, list[float]]:
    """Median seconds of both, called in alternating order, and ours ÷ peer of every pair."""
    calls = [calls_of(function, device) for function in (ours, peer)]
    times = []
    for number in range(pairs):
        sides = [(0, ours), (1, peer)]
        found = [0.0, 0.0]
        for side, function in sides if number % 2 == 0 else reversed(sides):
            found[side] = seconds_of(function, calls[side], device)
        times.append(found)
    medians = [statistics.median(t[side] for t in times) for side in (0, 1)]
    return medians[0], medians[1], [a / b for a, b in times]


def replayed(function: Call, device: str) -> Call | str:
    """The replay of the function's CUDA graph, or why there is none."""
    if device != "cuda":
        return "no graph off CUDA"
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        return graph.replay
    except Exception as error:
        torch.cuda.synchronize()
        return f"no graph: {type(error).__name__}: {str(error).splitlines()[0][:80]}"


def compare(
    name: str,
    ours: Call,
    peer_name: str,
    peer: Call,
    device: str,
    floor: float | None = None,
    pairs: int = PAIRS,
    graphs: bool = True,
) -> Row:
    """One row: both called, and both replayed as graphs where that is possible."""
    first, second, ratios = time_pair(ours, peer, device, pairs)
    notes, replays = [], list[float | None]()
    for who, function in (("ours", ours), ("peer", peer)):
        replay = replayed(function, device) if graphs else "no graph asked for"
        if isinstance(replay, str):
            notes += [f"{who}: {replay}"] if graphs and device == "cuda" else []
            replays.append(None)
        else:
            replays.append(time_once(replay, device))
    ratio, (low, high) = statistics.median(ratios), median_interval(ratios)
    return Row(name, first, replays[0], peer_name, second, replays[1], ratio, low, high, floor, notes)


def bandwidth(device: str, numbers: int = 1 << 28) -> float:
    """Bytes per second of a copy, read and written, of 1 GB: the floor of what moves memory."""
    source = torch.randn(numbers, device=device)
    copy = torch.empty_like(source)
    return 8 * numbers / time_once(lambda: copy.copy_(source), device)


def product_rate(device: str, n: int = 8192, dtype: torch.dtype = torch.bfloat16) -> float:
    """Multiply-adds per second of a large product of random numbers."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return n**3 / time_once(lambda: torch.mm(a, b, out=out), device)


def gradients(run: Callable[[], Tensor], given: Sequence[Tensor], back: Tensor) -> tuple[Tensor, ...]:
    """Forward, then the gradients of all that is given."""
    return torch.autograd.grad(run(), given, back, allow_unused=True, materialize_grads=True)
