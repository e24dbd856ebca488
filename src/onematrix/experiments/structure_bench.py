"""onematrix bench structures: structured products beside the dense layer of their size, over n and batch."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from onematrix.errors import VerificationError
from onematrix.kernels.structured_choice import freeze
from onematrix.records.timing import Ratio, compare
from onematrix.reports.figures import LINES, new_figure, save, targets
from onematrix.reports.tables import Table
from onematrix.structures.base import STRUCTURES, Structure

TOLERANCE = 1e-4
SIZES, BATCHES = (256, 1024, 4096), (1, 16, 256)
QUICK_SIZES, QUICK_BATCHES = (64, 256), (1, 16)
PANELS = 4  # of the chart, side by side
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


@dataclass(frozen=True)
class Case:
    """A structure and its size as a share of n."""

    name: str
    option: str
    size: Callable[[int], dict[str, object]]

    def draw(self, n: int) -> Structure:
        """A random member n × n, always the same."""
        options: dict[str, object] = self.size(n)
        return STRUCTURES[self.name].random(n, n, generator=torch.Generator().manual_seed(0), **options)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.name} {self.option}"


def _root(n: int) -> int:
    """The divisor of n nearest to √n."""
    return min((d for d in range(1, n + 1) if n % d == 0), key=lambda d: abs(math.log(d * d / n)))


CASES = (
    Case("low_rank", "r=n/16", lambda n: {"rank": max(1, n // 16)}),
    Case("block_tensor_train", "r=1", lambda n: {"rank": 1}),
    Case("block_tensor_train", "r=4", lambda n: {"rank": 4}),
    Case("monarch", "b=4, E=0.5", lambda n: {"blocks": 4, "budget": 0.5}),
    Case("blast", "b=4, r=n/8", lambda n: {"blocks": (4, 4), "rank": n // 8}),
    Case("kronecker", "√n ⊗ √n", lambda n: {"left": (_root(n), _root(n))}),
    Case("csr", "E=0.05", lambda n: {"budget": 0.05}),
    Case("toeplitz", "", lambda n: {}),
)


@dataclass(frozen=True)
class Line:
    """One measured row: seconds ÷ dense of the structure's own product, and of what `freeze` chose.

    low and high: the 95 % interval of `ratio`. form: "own" or "dense".
    """

    case: str
    n: int
    batch: int
    dense_milliseconds: float
    ratio: float
    low: float
    high: float
    form: str
    chosen: float
    chosen_low: float

    def facts(self) -> dict[str, object]:
        """The row as JSON holds it."""
        return dict(vars(self))

    def __str__(self) -> str:
        return (
            f"{self.case:<26}n = {self.n:<6}batch {self.batch:<6}dense {self.dense_milliseconds:9.3f} ms   "
            f"own {self.ratio:6.2f} [{self.low:.2f}, {self.high:.2f}]   chosen {self.chosen:6.2f} ({self.form})"
        )


def measure_structures(
    sizes: Sequence[int] = SIZES,
    batches: Sequence[int] = BATCHES,
    pairs: int = 11,
    only: str = "",
    calls: int | None = None,
) -> Iterator[Line]:
    """Every case whose name contains `only`, at every size and batch. Raises VerificationError when one is wrong."""
    for case in CASES:
        if only.lower() not in str(case).lower():
            continue
        for n in sizes:
            a = case.draw(n)
            dense = a.to_dense().contiguous()
            for batch in batches:
                yield _measure(case, a, dense, batch, pairs, calls)


def _measure(case: Case, a: Structure, dense: Tensor, batch: int, pairs: int, calls: int | None) -> Line:
    n = dense.shape[1]
    x = torch.randn(batch, n, generator=torch.Generator().manual_seed(1))
    check(f"{case}, n = {n}, batch {batch}", a.matmul(x), functional.linear(x, dense))
    chosen = freeze(a, batch)
    check(f"{case}, n = {n}, batch {batch}, {chosen.name}", chosen.matmul(x), functional.linear(x, dense))
    with torch.no_grad():
        ratio, best = (_against(s, x, dense, pairs, calls) for s in (a, chosen))
    form = "own" if chosen is a else chosen.name
    low, high = 1 / ratio.high, 1 / ratio.low
    return Line(
        str(case).strip(),
        n,
        batch,
        ratio.peer_seconds * 1e3,
        1 / ratio.median,
        low,
        high,
        form,
        1 / best.median,
        1 / best.high,
    )


def _against(a: Structure, x: Tensor, dense: Tensor, pairs: int, calls: int | None) -> Ratio:
    return compare(lambda: a.matmul(x), lambda: functional.linear(x, dense), pairs, calls)


def check(who: str, ours: Tensor, theirs: Tensor) -> None:
    """Raise VerificationError unless the product is the dense one: nothing wrong is timed."""
    error = float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))
    if not error <= TOLERANCE:
        raise VerificationError(
            f"{who}: relative error {error:.2e}, allowed {TOLERANCE:.0e}; no time is reported", error=error
        )


def grid(lines: Sequence[Line], chosen: bool = False) -> Table:
    """Seconds ÷ dense: a row per n and batch, a column per structure."""
    rows: dict[tuple[int, int], dict[str, object]] = {}
    for line in lines:
        row = rows.setdefault((line.n, line.batch), {"n": line.n, "batch": line.batch})
        row[line.case] = f"{line.chosen if chosen else line.ratio:.2f}"
    return Table.from_rows(rows[key] for key in sorted(rows))


def break_even(lines: Sequence[Line]) -> Table:
    """Per structure and n the batch from which its own product takes less time than dense.

    Between two measured batches by a straight line through the logarithms.
    """
    rows: dict[str, dict[str, object]] = {}
    for (case, n), points in _curves(lines).items():
        crossing = crosses(points)
        text = "never" if crossing is None else f"{crossing:.0f}"
        rows.setdefault(case, {"structure": case})[f"n = {n}"] = text
    return Table.from_rows(rows.values())


def crosses(points: Sequence[tuple[int, float]]) -> float | None:
    """The batch from which on (batch, ratio) stays below 1; None where it ends above.

    >>> crosses([(1, 4.0), (16, 0.25)])
    4.0
    """
    ordered = sorted(points)
    if ordered[-1][1] >= 1:
        return None
    at = next((i for i in range(len(ordered) - 1, -1, -1) if ordered[i][1] >= 1), None)
    if at is None:
        return float(ordered[0][0])
    (b0, r0), (b1, r1) = ordered[at], ordered[at + 1]
    share = math.log(r0) / math.log(r0 / r1)
    return round(math.exp(math.log(b0) + share * math.log(b1 / b0)), 6)


def _curves(lines: Sequence[Line]) -> dict[tuple[str, int], list[tuple[int, float]]]:
    curves: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for line in lines:
        curves.setdefault((line.case, line.n), []).append((line.batch, line.ratio))
    return curves


def draw_lines(lines: Sequence[Line], path: Path) -> list[Path]:
    """A panel per structure: seconds ÷ dense against the batch, a line per n, a ring at each break-even point."""
    curves, cases = _curves(lines), list(dict.fromkeys(line.case for line in lines))
    sizes, batches = (sorted({getattr(line, f) for line in lines}) for f in ("n", "batch"))
    across = min(PANELS, len(cases))
    down = math.ceil(len(cases) / across)
    figure = new_figure(2.6 * across + 0.6, 2.3 * down + 0.5)
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(cases) :]:
        axes.set_visible(False)
    for axes, case in zip(panels.flat, cases, strict=False):
        axes.set(title=case, xscale="log", yscale="log")
        axes.axhline(1.0, color="grey", linewidth=0.8)
        for n, colour in zip(sizes, LINES, strict=False):
            points = sorted(curves.get((case, n), []))
            axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=3, label=f"n = {n}")
            crossing = crosses(points)
            if crossing is not None and crossing > points[0][0]:
                axes.plot([crossing], [1.0], "o", markersize=8, fillstyle="none", color=colour)
        axes.minorticks_off()
        axes.set_xticks(batches, [str(b) for b in batches])
        axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    panels.flat[0].legend(fontsize=7, frameon=False)
    figure.supxlabel("vectors per product (batch)")
    figure.supylabel("seconds ÷ dense (below 1: faster)", x=0.0)
    figure.subplots_adjust(left=0.8 / (2.6 * across), bottom=0.5 / (2.3 * down), top=0.92, hspace=0.3)
    return save(figure, targets(path))
