"""Curves with their spread over seeds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from onematrix.errors import OneMatrixError
from onematrix.reports.figures import LINES, LOOK, new_figure, require_matplotlib, save, targets
from onematrix.reports.tables import Table

Run = tuple[Sequence[float], Sequence[float]]
MARKS = "osD^vP*"


def curves(
    series: Mapping[str, Sequence[Run]],
    path: str | Path,
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    title: str = "",
) -> list[Path]:
    """Name → runs (x, y), one per seed: the mean as a line, the band from least to largest run.

    Writes SVG and PNG (or the one named) and the CSV it was drawn from; gives the pictures' paths. Points of
    different runs are averaged where they stand at the same place of their run. Values that are not finite
    leave a gap. Raises OneMatrixError when there is nothing to draw.
    """
    paths = targets(path)
    shown = {name: [run for run in runs if len(run[0])] for name, runs in series.items()}
    shown = {name: runs for name, runs in shown.items() if runs}
    if not shown:
        raise OneMatrixError(f"curves {Path(path).name}: no series has a point; nothing to draw")
    for name, runs in shown.items():
        if bad := next((run for run in runs if len(run[0]) != len(run[1])), None):
            raise OneMatrixError(f"curves: {name!r} has {len(bad[0])} x and {len(bad[1])} y values")
    with require_matplotlib().rc_context(LOOK):
        figure = new_figure(5.6, 3.6)
        axes = figure.add_subplot()
        for number, (name, runs) in enumerate(shown.items()):
            _line(axes, name, _bands(runs), LINES[number % len(LINES)], MARKS[number % len(MARKS)])
        if log_x:
            axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(alpha=0.25)
        axes.set_title(title)
        axes.legend(frameon=False)
        save(figure, paths)
    _table(shown, x_label, y_label).write_csv(Path(path).with_suffix(".csv"))
    return paths


def _bands(runs: Sequence[Run]) -> list[tuple[float, float, float, float]]:
    """(x, least, mean, largest) per place of a run, over the runs that reach it."""
    bands = []
    for i in range(max(len(x) for x, _ in runs)):
        x = mean(run[0][i] for run in runs if len(run[0]) > i)
        y = [run[1][i] for run in runs if len(run[1]) > i and math.isfinite(run[1][i])]
        bands.append((x, min(y), mean(y), max(y)) if y else (x, math.nan, math.nan, math.nan))
    return bands


def _line(
    axes: object, name: str, bands: list[tuple[float, float, float, float]], colour: str, mark: str
) -> None:
    x, low, middle, high = zip(*bands, strict=True)
    many = len(x) > 20
    axes.plot(x, middle, color=colour, label=name, marker=None if many else mark, markersize=4)  # type: ignore[attr-defined]
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)  # type: ignore[attr-defined]


def _table(series: Mapping[str, Sequence[Run]], x_label: str, y_label: str) -> Table:
    rows = [
        {"series": name, "run": number, x_label: x, y_label: y}
        for name, runs in series.items()
        for number, run in enumerate(runs)
        for x, y in zip(*run, strict=True)
    ]
    return Table.from_rows(rows)
