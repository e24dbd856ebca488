"""Curves with their spread over seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any, NamedTuple

from onematrix.errors import OneMatrixError
from onematrix.reports.figures import LINES, LOOK, new_figure, require_matplotlib, save, targets
from onematrix.reports.tables import Table

Run = tuple[Sequence[float], Sequence[float]]
MARKS = "osD^vP*"
SPREADS = {
    "range": "Line: mean of the runs; band: smallest to largest run.",
    "deviation": "Line: mean of the runs; band: one standard deviation to each side.",
}
MANY = 20  # points of a line that carries no marks


class Point(NamedTuple):
    """The runs at one place: mean of x, and lower end, mean and upper end of y."""

    x: float
    low: float
    middle: float
    high: float


def curves(
    series: Mapping[str, Sequence[Run]],
    path: str | Path,
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    title: str = "",
    spread: str = "range",
) -> list[Path]:
    """Name → runs (x, y), one per seed: the mean as a line, and a band over the runs.

    spread: "range", from the least to the largest run, or "deviation", one standard deviation of the runs to
    each side; the picture says which. Writes SVG and PNG (or the one named) and the CSV it was drawn from;
    gives the pictures' paths. Points of different runs are averaged where they stand at the same place of
    their run. What cannot be drawn (values that are not finite, or not positive on a logarithmic axis) leaves
    a gap, and the picture says how many. Raises OneMatrixError when no point can be drawn.
    """
    if spread not in SPREADS:
        raise OneMatrixError(f"curves: spread {spread!r} is unknown; there are: {', '.join(SPREADS)}")
    runs = _check(series, Path(path).name if isinstance(path, str | Path) else str(path))
    paths = targets(path)
    visible = {name: _hide(found, log_x, log_y) for name, found in runs.items()}
    total, hidden = _count(runs, lambda y: True), _count(visible, math.isnan)
    if hidden == total:
        raise OneMatrixError(
            f"curves {paths[0].name}: none of {total} points can be drawn: all are nan, infinite, "
            "or not positive on a logarithmic axis"
        )
    with require_matplotlib().rc_context(LOOK):
        figure = new_figure(5.8, 3.9)
        axes = figure.add_axes((0.12, 0.2, 0.85, 0.7))
        for number, (name, found) in enumerate(visible.items()):
            _line(axes, name, _bands(found, spread), number)
        axes.set(xlabel=x_label, ylabel=y_label, title=title)
        if log_x:
            axes.set_xscale("log")
            _label_logarithmic(axes.xaxis)
        if log_y:
            axes.set_yscale("log")
            _label_logarithmic(axes.yaxis)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        figure.text(0.02, 0.01, _note(runs, spread, hidden), fontsize=7.5, color="#444444")
        save(figure, paths)
    _table(runs, x_label, y_label).write_csv(paths[0].with_suffix(".csv"))
    return paths


def _check(series: Mapping[str, Sequence[Run]], who: str) -> dict[str, list[Run]]:
    """The series that have points. Raises OneMatrixError when there are none, or x and y differ in length."""
    if not isinstance(series, Mapping):
        raise OneMatrixError(f"curves {who}: a mapping name → runs was needed, got {type(series).__name__}")
    for name, runs in series.items():
        for run in runs:
            if len(run) != 2 or not all(hasattr(values, "__len__") for values in run):
                raise OneMatrixError(
                    f"curves {who}: {name!r}: a run is a pair (x values, y values), got {run!r}"
                )
            if len(run[0]) != len(run[1]):
                raise OneMatrixError(f"curves: {name!r} has {len(run[0])} x and {len(run[1])} y values")
    kept = {name: [run for run in runs if len(run[0])] for name, runs in series.items()}
    if not any(kept.values()):
        raise OneMatrixError(f"curves {who}: no series has a point; nothing to draw")
    return {name: runs for name, runs in kept.items() if runs}


def _count(series: Mapping[str, Sequence[Run]], counts: Callable[[float], bool]) -> int:
    return sum(counts(y) for runs in series.values() for run in runs for y in run[1])


def _hide(runs: Sequence[Run], log_x: bool, log_y: bool) -> list[Run]:
    """The runs with nan in place of every y that cannot be drawn."""

    def visible(x: float, y: float) -> bool:
        return math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x) and (y > 0 or not log_y)

    return [(xs, [y if visible(x, y) else math.nan for x, y in zip(xs, ys, strict=True)]) for xs, ys in runs]


def _bands(runs: Sequence[Run], spread: str = "range") -> list[Point]:
    """One point per place of a run, over the runs that reach it; nan where none can be drawn there."""
    points = []
    for i in range(max(len(x) for x, _ in runs)):
        x = mean(float(run[0][i]) for run in runs if len(run[0]) > i)
        y = [float(run[1][i]) for run in runs if len(run[1]) > i and math.isfinite(run[1][i])]
        points.append(Point(x, *_ends(y, spread)) if y else Point(x, math.nan, math.nan, math.nan))
    return points


def _ends(y: Sequence[float], spread: str) -> tuple[float, float, float]:
    middle, wide = mean(y), pstdev(y)
    return (min(y), middle, max(y)) if spread == "range" else (middle - wide, middle, middle + wide)


def _line(axes: Any, name: str, points: Sequence[Point], number: int) -> None:
    x, low, middle, high = zip(*points, strict=True)
    colour, mark = LINES[number % len(LINES)], MARKS[number % len(MARKS)]
    axes.plot(x, middle, color=colour, label=name, marker=None if len(x) > MANY else mark, markersize=4)
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _label_logarithmic(axis: Any) -> None:
    """Plain numbers as labels; 1, 2 and 5 of each power of ten where there are few powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    least, most = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if most / least < 1000 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def _note(runs: Mapping[str, Sequence[Run]], spread: str, hidden: int) -> str:
    most = max(len(found) for found in runs.values())
    least = min(len(found) for found in runs.values())
    how_many = f"{most}" if least == most else f"{least} to {most}"
    said = "One run per line." if most == 1 else f"{SPREADS[spread]} {how_many} runs each."
    return said + (f" Points not drawn (nan, infinite, not positive): {hidden}." if hidden else "")


def _table(series: Mapping[str, Sequence[Run]], x_label: str, y_label: str) -> Table:
    rows = [
        {"series": name, "run": number, x_label: x, y_label: y}
        for name, runs in series.items()
        for number, run in enumerate(runs)
        for x, y in zip(*run, strict=True)
    ]
    return Table.from_rows(rows)
