"""A block matrix as a grid: parts along both sides, a block in each place, the activation of each row."""

from collections.abc import Mapping, Sequence
from typing import Any

from onematrix.programs.part import ONE, Part
from onematrix.reports.cells import Box, draw_cell, draw_ground
from onematrix.reports.panels import Panel
from onematrix.structures.base import Structure
from onematrix.structures.tree import stored_bytes

THIN = 0.16  # width of the column of the constant 1, in inches
NARROW = 0.3  # least side of any other part: room for its label
GAP = 0.018  # between neighbouring blocks
SCALES = {
    "size": "Sides grow with the square root of a part's size; the smallest are enlarged.",
    "bytes": "Areas of blocks are proportional to stored bytes; a dot stores nothing or almost nothing.",
    "equal": "All parts are drawn alike.",
}
AREAS = tuple(SCALES)
FREE = 8  # a free size is drawn as if it were this
SLOPE = 0.77  # sine of the 50 degrees by which column labels are turned
LETTER = 0.078  # width of a letter of a label
NOTE = "#8A1538"


def lengths(panel: Panel, parts: Mapping[str, Part], area: str) -> dict[str, float]:
    """Side of each part in the picture, in inches: by the square root of its size, kept readable."""
    names = [*dict.fromkeys([*panel.columns, *panel.rows])]
    sizes = {name: _number(parts[name]) for name in names}
    largest = max(sizes.values())
    unit = 0.19 if panel.crowd > 8 else 0.34 if panel.crowd > 5 else 0.8
    side = {name: max(NARROW, unit * (0.35 + 1.65 * (size / largest) ** 0.5)) for name, size in sizes.items()}
    if area != "size":
        side = dict.fromkeys(names, max(0.38, unit * 1.2))
    return side | ({ONE: THIN} if ONE in side else {})


def _number(part: Part) -> float:
    product = 1.0
    for size in part.shape:
        product *= size if isinstance(size, int) else FREE
    return product


def describe_part(name: str, part: Part) -> str:
    """The label of a part: name and size."""
    size = "×".join(str(s) for s in part.shape)
    return "1" if name == ONE else f"{name}  {size}"


def extent(panel: Panel, parts: Mapping[str, Part], area: str) -> tuple[float, float]:
    """(width, height) of the grid itself, in inches."""
    side = lengths(panel, parts, area)
    return sum(side[c] for c in panel.columns), sum(side[r] for r in panel.rows)


def frame(panel: Panel, parts: Mapping[str, Part], area: str) -> tuple[float, float]:
    """(width, height) of the grid with its labels, in inches."""
    width, height = extent(panel, parts, area)
    above = _label_height(panel, parts) + 0.35
    return _label_width(panel, parts) + width + _note_width(panel, parts), above + height + 0.12


def block_id(panel: Panel, row: str, column: str) -> str:
    """The id of a block's place in an SVG file."""
    return f"block-{panel.number}-{panel.rows.index(row)}-{panel.columns.index(column)}"


def draw_panel(axes: Any, panel: Panel, parts: Mapping[str, Part], area: str) -> None:
    """Draw the grid with its labels; one unit of the axes is one inch, y points down."""
    width, height = extent(panel, parts, area)
    axes.set_xlim(-_label_width(panel, parts), width + _note_width(panel, parts))
    axes.set_ylim(height + 0.12, -_label_height(panel, parts) - 0.35)
    axes.set_aspect("equal")
    axes.axis("off")
    draw_ground(axes, Box(0, 0, width, height), "white", "#888888", order=0)
    places = _places(panel, parts, area)
    _draw_rules(axes, panel, places, width, height)
    most = max((stored_bytes(s) for s in panel.blocks.values()), default=0)
    for (row, column), block in panel.blocks.items():
        cell = places[row, column]
        draw_cell(axes, block, _shrink(block, cell, most) if area == "bytes" else cell.inside(GAP), cell)
        _draw_handle(axes, cell, block_id(panel, row, column))
    _write_labels(axes, panel, parts, places, width)
    axes.text(
        0, -_label_height(panel, parts) - 0.05, panel.name, ha="left", va="bottom", fontsize=13, weight="bold"
    )
    axes.set_autoscale_on(False)


def _places(panel: Panel, parts: Mapping[str, Part], area: str) -> dict[tuple[str, str], Box]:
    side = lengths(panel, parts, area)
    places, top = {}, 0.0
    for row in panel.rows:
        left = 0.0
        for column in panel.columns:
            places[row, column] = Box(left, top, side[column], side[row])
            left += side[column]
        top += side[row]
    return places


def _draw_rules(axes: Any, panel: Panel, places: Mapping[Any, Box], width: float, height: float) -> None:
    style = {"color": "#DDDDDD", "linewidth": 0.6, "zorder": 0.5}
    for row in panel.rows[1:]:
        top = places[row, panel.columns[0]].top
        axes.plot([0, width], [top, top], **style)
    for column in panel.columns[1:]:
        left = places[panel.rows[0], column].left
        axes.plot([left, left], [0, height], **style)


def _draw_handle(axes: Any, cell: Box, name: str) -> None:
    """An empty rectangle over the cell that a page can point at."""
    from matplotlib.patches import Rectangle

    handle = Rectangle(cell[:2], cell.width, cell.height, facecolor="none", edgecolor="none", zorder=5)
    handle.set_gid(name)
    axes.add_patch(handle)


def _write_labels(
    axes: Any, panel: Panel, parts: Mapping[str, Part], places: Mapping[Any, Box], width: float
) -> None:
    for row in panel.rows:
        cell = places[row, panel.columns[0]]
        y = cell.top + cell.height / 2
        axes.text(-0.08, y, describe_part(row, parts[row]), ha="right", va="center", fontsize=8.5)
        if note := panel.notes.get(row):
            axes.text(width + 0.08, y, note, ha="left", va="center", fontsize=8.5, color=NOTE)
    for column in panel.columns:
        cell = places[panel.rows[0], column]
        turned = {"rotation": 50, "rotation_mode": "anchor", "ha": "left", "va": "center"}
        x, label = cell.left + cell.width / 2, describe_part(column, parts[column])
        axes.text(x, -0.08, label, fontsize=8.5, **turned)


def _label_width(panel: Panel, parts: Mapping[str, Part]) -> float:
    return 0.2 + LETTER * max(len(describe_part(r, parts[r])) for r in panel.rows)


def _label_height(panel: Panel, parts: Mapping[str, Part]) -> float:
    return 0.2 + SLOPE * LETTER * max(len(describe_part(c, parts[c])) for c in panel.columns)


def _note_width(panel: Panel, parts: Mapping[str, Part]) -> float:
    """Room for the notes, and for the last column's label, which leans over the edge."""
    longest = max((len(note) for note in panel.notes.values()), default=0)
    lean = 0.65 * LETTER * len(describe_part(panel.columns[-1], parts[panel.columns[-1]]))
    return max(0.2 + LETTER * longest, lean + 0.1)


def _shrink(block: Structure, cell: Box, most: int) -> Box:
    return shrink([block], cell, most)


def shrink(blocks: Sequence[Structure], cell: Box, most: int) -> Box:
    """A rectangle in the middle of the cell whose area is proportional to the stored bytes; a dot for none."""
    share = max(0.1, (stored_bytes(*blocks) / most) ** 0.5 if most else 0.0)
    width, height = cell.width - 2 * GAP, cell.height - 2 * GAP
    w, h = width * share, height * share
    return Box(cell.left + (cell.width - w) / 2, cell.top + (cell.height - h) / 2, w, h)
