"""om.draw: a program, block matrix, step or structure as a picture of its matrix."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onematrix.errors import OneMatrixError
from onematrix.programs.block_matrix import BlockMatrix
from onematrix.programs.part import Part
from onematrix.programs.program import Program
from onematrix.programs.schedule import Step
from onematrix.records.files import write_text
from onematrix.reports.drawing_page import drawing_page, panel_rows
from onematrix.reports.figures import FORMATS, LOOK, new_figure, render, require_matplotlib, save, targets
from onematrix.reports.grid import AREAS, SCALES, block_id, draw_panel, frame
from onematrix.reports.heat_map import caption_of, paint_values
from onematrix.reports.legend import draw_legend, legend_entries
from onematrix.reports.model_figure import draw_model
from onematrix.reports.model_picture import has_layers
from onematrix.reports.panels import (
    Panel,
    describe_schedule,
    describe_step,
    make_panels,
    matrix_panel,
    number_panels,
)
from onematrix.structures.base import Structure
from onematrix.structures.tree import effective_weight, index_bytes, stored_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawable = Program | BlockMatrix | Step | Structure
WIDEST = 15.0  # inches of panels side by side


@dataclass(frozen=True)
class Picture:
    """What a picture shows: panels over parts, or a single structure; a caption and a title."""

    panels: Sequence[Panel]
    parts: Mapping[str, Part]
    caption: str
    area: str
    title: str

    @property
    def titles(self) -> dict[str, str]:
        """Id of a block's place → what is told about it."""
        return {
            block_id(panel, row, column): describe_block(panel.name, row, column, block)
            for panel in self.panels
            for (row, column), block in panel.blocks.items()
        }


def draw(
    what: Drawable,
    path: str | Path,
    *,
    area: str = "size",
    title: str = "",
    zoom: str | None = None,
    fold: bool = True,
) -> list[Path]:
    """Draw a matrix as a grid of blocks: parts with sizes on both sides, colour by structure.

    Non-zeros are visible in sparse blocks, low-rank blocks show their two thin factors, the activation
    stands right of its row, H beside G; a single structure is drawn with its values. Sides grow with the
    square root of a part's size (area="size"); area="bytes": the area of each block is proportional to its
    stored bytes; "equal": all parts alike. path: .svg, .png, .html (a page with the picture and a table), or
    without suffix for SVG and PNG. Gives the paths written; equal input gives equal bytes.

    A program converted from a module, or with layers that repeat, is one block matrix over all its parts: equal
    layers are drawn once, in a frame that says how often they stand there, and rows of one module together until
    about 40 rows are left. zoom: only the parts whose name fits, "encoder.layer.0.*". fold=False: every part.
    Raises OneMatrixError for other suffixes, things that have no matrix, matrices without a block, and a zoom
    that fits nothing.
    """
    if area not in AREAS:
        raise OneMatrixError(f"draw: area {area!r} is unknown; there are: {', '.join(AREAS)}")
    require_matplotlib()
    if isinstance(what, Program) and (zoom is not None or has_layers(what)):
        return draw_model(what, path, area, title, zoom, fold)
    if zoom is not None:
        raise OneMatrixError(f"draw: zoom={zoom!r} names parts of a program, got {type(what).__name__}")
    picture = _picture(what, area, title)
    paths = targets(path, (*FORMATS, ".html"))
    with require_matplotlib().rc_context(LOOK):
        if paths[0].suffix == ".html":
            bare = replace(picture, caption="", title="")
            svg = render(_paint(what, bare), "svg", picture.titles).decode()
            rows = panel_rows(picture.panels, svg)
            return [write_text(paths[0], drawing_page(svg, rows, picture.caption, title))]
        return save(_paint(what, picture), paths, picture.titles)


def _picture(what: Drawable, area: str, title: str) -> Picture:
    """Raises OneMatrixError for what has no matrix."""
    parts: Mapping[str, Part]
    if isinstance(what, Structure):
        m, n = what.fixed_shape
        parts = {"y": Part((m,)), "x": Part((n,))}
        panel = Panel(what.name, ("y",), ("x",), {("y", "x"): what}, {})
        return Picture(number_panels([panel]), parts, caption_of(what), area, title)
    if isinstance(what, BlockMatrix):
        panels, parts, caption = number_panels([matrix_panel(what)]), what.parts, ""
    elif isinstance(what, Step):
        panels, parts, caption = make_panels([what]), what.parts, describe_step(what)
    elif isinstance(what, Program):
        panels, parts, caption = make_panels(what.steps()), what.parts, _describe_program(what)
    else:
        raise OneMatrixError(
            f"draw: a Program, BlockMatrix, Step or Structure was needed, got {type(what).__name__}"
        )
    return Picture(panels, parts, f"{caption}. {SCALES[area]}" if caption else SCALES[area], area, title)


def _describe_program(program: Program) -> str:
    names = f"In: {', '.join(program.inputs)}; out: {', '.join(program.outputs)}"
    return f"{describe_schedule(program.schedule)}. {names}"


def describe_block(matrix: str, row: str, column: str, block: Structure) -> str:
    """One line about a block, shown when the pointer rests on it."""
    m, n = block.shape
    text = f"{matrix}: {row} ← {column}, {block.name} {m}×{n}, {stored_numbers(block):,} numbers"
    if isinstance(m, int) and isinstance(n, int):
        text += f", E = {100 * effective_weight(block):.3g} %"
    return text + (f", {index_bytes(block):,} index bytes" if index_bytes(block) else "")


def _paint(what: Drawable, picture: Picture) -> "Figure":
    values = paint_values(what, picture.title, picture.caption) if isinstance(what, Structure) else None
    return values or _paint_panels(picture)


def _paint_panels(picture: Picture) -> "Figure":
    frames = [frame(panel, picture.parts, picture.area) for panel in picture.panels]
    shelves = _shelves(frames)
    width = max(4.2, *(sum(frames[i][0] for i in shelf) for shelf in shelves))
    entries = legend_entries(block for panel in picture.panels for block in panel.blocks.values())
    columns = max(1, min(len(entries), int(width / 2.6)))
    lines = textwrap.wrap(picture.caption, int(width * 16.5))
    legend = 0.2 * -(-len(entries) // columns) + 0.1
    foot, head = legend + 0.145 * len(lines) + 0.1, 0.4 if picture.title else 0.0
    height = head + sum(max(frames[i][1] for i in shelf) for shelf in shelves) + foot
    figure = new_figure(width, height)
    if picture.title:
        figure.text(0.01, 1 - 0.1 / height, picture.title, fontsize=13, weight="bold", va="top")
    _place_panels(figure, picture, frames, shelves, head)
    draw_legend(figure, entries, columns, foot / height)
    figure.text(0.01, 0.0, "\n".join(lines), fontsize=7.5, color="#444444", va="bottom", linespacing=1.3)
    return figure


def _place_panels(
    figure: "Figure",
    picture: Picture,
    frames: Sequence[tuple[float, float]],
    shelves: Sequence[Sequence[int]],
    head: float,
) -> None:
    width, height = figure.get_size_inches()
    top = height - head
    for shelf in shelves:
        left = 0.0
        for i in shelf:
            w, h = frames[i]
            axes = figure.add_axes((left / width, (top - h) / height, w / width, h / height))
            draw_panel(axes, picture.panels[i], picture.parts, picture.area)
            left += w
        top -= max(frames[i][1] for i in shelf)


def _shelves(frames: Sequence[tuple[float, float]]) -> list[list[int]]:
    """Panels side by side as long as they fit into the width, then a new row."""
    rows: list[list[int]] = [[]]
    for i, (width, _) in enumerate(frames):
        if rows[-1] and sum(frames[j][0] for j in rows[-1]) + width > WIDEST:
            rows.append([])
        rows[-1].append(i)
    return rows
