"""The figure and the page of a program drawn as one block matrix."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onematrix.programs.program import Program
from onematrix.records.files import write_text
from onematrix.reports.drawing_page import drawing_page
from onematrix.reports.figures import FORMATS, LOOK, new_figure, render, require_matplotlib, save, targets
from onematrix.reports.folding import rows_of
from onematrix.reports.grid import SCALES
from onematrix.reports.legend import draw_legend, legend_entries
from onematrix.reports.model_drawing import Layout, describe_size, draw_grid
from onematrix.reports.model_picture import Entry, Grid, model_grid
from onematrix.reports.model_table import describe_structure
from onematrix.reports.tables import Link
from onematrix.structures.tree import index_bytes, stored_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NARROWEST = 6.0  # inches


def draw_model(
    program: Program, path: str | Path, area: str, title: str, zoom: str | None, fold: bool
) -> list[Path]:
    """Draw a program as one folded block matrix to path, as `draw` says; the paths written."""
    grid = model_grid(program, zoom, fold)
    paths = targets(path, (*FORMATS, ".html"))
    ids = cell_ids(grid)
    titles = {ids[place]: _describe(*place, found) for place, found in grid.cells.items()}
    caption = _caption(program, grid, area, zoom)
    with require_matplotlib().rc_context(LOOK):
        if paths[0].suffix == ".html":
            svg = render(_paint(program, grid, area, "", ""), "svg", titles).decode()
            return [write_text(paths[0], drawing_page(svg, page_rows(grid), caption, title))]
        return save(_paint(program, grid, area, title, caption), paths, titles)


def cell_ids(grid: Grid) -> dict[tuple[str, str], str]:
    """(row, column) of every cell that holds a block → its id in an SVG."""
    rows = {unit.name: i for i, unit in enumerate(grid.rows)}
    columns = {unit.name: j for j, unit in enumerate(grid.columns)}
    return {(row, column): f"block-0-{rows[row]}-{columns[column]}" for row, column in grid.cells}


def page_rows(grid: Grid) -> list[dict[str, object]]:
    """One row of the page's table per cell, which leads to it in the picture."""
    ids = cell_ids(grid)
    return [
        {
            "block": Link(f"{row} ← {column}", f"#{ids[row, column]}"),
            "structures": _kinds(found),
            "blocks": len(found),
            "stored numbers": stored_numbers(*(e.structure for e in found)),
            "index bytes": index_bytes(*(e.structure for e in found)),
        }
        for (row, column), found in grid.cells.items()
    ]


def _kinds(entries: Sequence[Entry]) -> str:
    names = list(dict.fromkeys(describe_structure(e.structure) for e in entries))
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _describe(row: str, column: str, entries: Sequence[Entry]) -> str:
    factor = " (a factor)" if all(e.factor for e in entries) else ""
    numbers = stored_numbers(*(e.structure for e in entries))
    return f"{row} ← {column}{factor}: {_kinds(entries)}, {numbers:,} numbers"


def _caption(program: Program, grid: Grid, area: str, zoom: str | None) -> str:
    names = f"In: {', '.join(program.inputs)}; out: {', '.join(program.outputs)}"
    shown = f"{describe_size(program.schedule)}, {len(program.parts):,} parts"
    shown += f", of them those of {zoom}" if zoom else ""
    said = [f"{shown}. {names}", "Rows read columns"]
    if grid.frames:
        said.append("a frame holds one of equal layers, and reads the one before through its own columns")
    if any(e.factor for found in grid.cells.values() for e in found):
        said.append("a ring marks a factor: what the row multiplies or joins its first sum with")
    return f"{'; '.join([said[0] + '. ' + said[1], *said[2:]])}. {SCALES[area]}"


def _paint(program: Program, grid: Grid, area: str, title: str, caption: str) -> "Figure":
    layout = Layout(grid, program.parts, area)
    w, h = layout.extent
    width = max(NARROWEST, w)
    entries = legend_entries(
        block.structure
        for part, (_, _, sums) in rows_of(program)
        if part in grid.scope
        for terms in sums
        for _, block in terms
    )
    columns = max(1, min(len(entries), int(width / 2.9)))
    lines = textwrap.wrap(caption, int(width * 16.5))
    foot = 0.2 * -(-len(entries) // columns) + 0.2 + 0.145 * len(lines)
    head = 0.4 if title else 0.0
    height = head + h + foot
    figure = new_figure(width, height)
    if title:
        figure.text(0.01, 1 - 0.1 / height, title, fontsize=13, weight="bold", va="top")
    axes = figure.add_axes((0, foot / height, w / width, h / height))
    draw_grid(axes, grid, layout, area, cell_ids(grid))
    draw_legend(figure, entries, columns, foot / height)
    figure.text(0.01, 0.0, "\n".join(lines), fontsize=7.5, color="#444444", va="bottom", linespacing=1.3)
    return figure
