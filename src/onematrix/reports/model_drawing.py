"""A folded program drawn as one block matrix: cells, labels, and a frame around layers that repeat."""

from collections.abc import Mapping, Sequence
from typing import Any

from onematrix.errors import ShapeError
from onematrix.programs.part import ONE, Part
from onematrix.programs.schedule import Loop, Node, Seq, Step
from onematrix.reports.cells import Box, draw_cell, draw_ground
from onematrix.reports.grid import FREE, GAP, NOTE, SLOPE, THIN, shrink
from onematrix.reports.model_picture import Entry, Grid, Unit, size_text
from onematrix.reports.palette import colour_of
from onematrix.structures.base import Structure
from onematrix.structures.sizes import size_names
from onematrix.structures.tree import stored_bytes

BAND = 0.26  # inches above a frame for its name
PATTERN = 4_000_000  # entries of a block whose non-zeros are shown one by one
DOTS = 120  # pixels of a pattern per inch
FONT = 8.0
LETTER = 0.064  # inches of a letter of that size
FRAME = "#1F3A5F"


class Layout:
    """Where every row and column stands, in inches; y points down."""

    def __init__(self, grid: Grid, parts: Mapping[str, Part], area: str) -> None:
        self.side = _sides(grid, parts, area)
        self.left = _running([(u, 0.0) for u in grid.columns], self.side)
        bands = {i: sum(f.first == i for f in grid.frames) * BAND for i in range(len(grid.rows))}
        self.top = _running([(u, bands[i]) for i, u in enumerate(grid.rows)], self.side)
        last_row, last_column = grid.rows[-1], grid.columns[-1]
        self.width = self.left[last_column.name] + self.side[last_column.name]
        self.height = self.top[last_row.name] + self.side[last_row.name]
        self.labels = {u.name: _label(u, parts) for u in (*grid.rows, *grid.columns)}
        self.label_width = 0.25 + LETTER * max(
            *(len(self.labels[u.name]) for u in grid.rows), *(len(f.label) + 3 for f in grid.frames), 4
        )
        self.label_height = 0.25 + SLOPE * LETTER * max(len(self.labels[u.name]) for u in grid.columns)
        lean = 0.65 * LETTER * max(len(self.labels[u.name]) for u in grid.columns[-3:])
        self.note_width = max(0.3 + LETTER * max(map(len, grid.notes.values()), default=0), lean)

    def cell(self, row: str, column: str) -> Box:
        """The rectangle of a cell."""
        return Box(self.left[column], self.top[row], self.side[column], self.side[row])

    @property
    def extent(self) -> tuple[float, float]:
        """(width, height) with labels."""
        return self.label_width + self.width + self.note_width, self.label_height + self.height + 0.15


def _sides(grid: Grid, parts: Mapping[str, Part], area: str) -> dict[str, float]:
    """Side of each unit: by the square root of its size, or by its number of rows; room for a label."""
    units = {u.name: u for u in (*grid.columns, *grid.rows)}
    count = len(units)
    least, most = (0.3, 1.2) if count <= 12 else (0.24, 0.7) if count <= 24 else (0.2, 0.42)
    sizes = {name: _number(parts[u.parts[0]]) for name, u in units.items() if u.single}
    largest = max(sizes.values(), default=1.0)
    sides = {}
    for name, unit in units.items():
        share = (sizes[name] / largest) ** 0.5 if unit.single else min(1.0, 0.2 + 0.05 * len(unit.parts))
        sides[name] = least + (most - least) * (share if area == "size" else 0.3)
    return sides | ({ONE: THIN} if ONE in units else {})


def _number(part: Part) -> float:
    product = 1.0
    for size in part.shape:
        product *= size if isinstance(size, int) else FREE
    return product


def _running(units: Sequence[tuple[Unit, float]], side: Mapping[str, float]) -> dict[str, float]:
    places, at = {}, 0.0
    for unit, before in units:
        at += before
        places[unit.name] = at
        at += side[unit.name]
    return places


def _label(unit: Unit, parts: Mapping[str, Part]) -> str:
    return f"{unit.label}  {size_text(unit, parts)}".rstrip()


def draw_grid(axes: Any, grid: Grid, layout: Layout, area: str, ids: Mapping[tuple[str, str], str]) -> None:
    """Draw the matrix; one unit of the axes is one inch. ids: (row, column) → id of the cell in an SVG."""
    axes.set_xlim(-layout.label_width, layout.width + layout.note_width)
    axes.set_ylim(layout.height + 0.15, -layout.label_height)
    axes.set_aspect("equal")
    axes.axis("off")
    draw_ground(axes, Box(0, 0, layout.width, layout.height), "white", "#888888", order=0)
    _draw_rules(axes, grid, layout)
    units = {u.name: u for u in (*grid.columns, *grid.rows)}
    most = max((stored_bytes(*(e.structure for e in found)) for found in grid.cells.values()), default=0)
    for (row, column), entries in grid.cells.items():
        cell = layout.cell(row, column)
        box = shrink([e.structure for e in entries], cell, most) if area == "bytes" else cell.inside(GAP)
        _draw_entries(axes, entries, units[row], units[column], box, cell)
        _draw_handle(axes, cell, ids[row, column])
    _draw_frames(axes, grid, layout)
    _write_labels(axes, grid, layout)
    axes.set_autoscale_on(False)


def _draw_entries(axes: Any, entries: Sequence[Entry], row: Unit, column: Unit, box: Box, cell: Box) -> None:
    if row.single and column.single and len(entries) == 1:
        _draw_block(axes, entries[0], box, cell)
    elif row.single and column.single:
        for i, entry in enumerate(entries):  # read several times by one row: side by side
            w = box.width / len(entries)
            part = Box(box.left + i * w, box.top, w, box.height)
            _draw_block(axes, entry, part, part)
    else:
        colour = "#F2F2F2"
        draw_ground(axes, box, colour, "#BBBBBB")
        for entry in entries:
            _draw_small(axes, entry, box, len(row.parts), len(column.parts))
    if any(e.factor for e in entries):
        _mark_factor(axes, cell, all(e.factor for e in entries))


def _draw_block(axes: Any, entry: Entry, box: Box, cell: Box) -> None:
    """A pattern has as many pixels as are seen, so that none is lost between them."""
    pixels = max(16, round(DOTS * max(box.width, box.height)))
    draw_cell(axes, _fixed(entry.structure), box, cell, most=PATTERN, pixels=pixels)


def _draw_small(axes: Any, entry: Entry, box: Box, rows: int, columns: int) -> None:
    w, h = box.width / columns, box.height / rows
    place = Box(box.left + entry.column * w, box.top + entry.row * h, max(w, 0.02), max(h, 0.02))
    colour = colour_of(entry.structure)
    draw_ground(axes, place, colour, colour, order=1.5)


def _mark_factor(axes: Any, cell: Box, alone: bool) -> None:
    """A ring in the corner of blocks that are factors: filled white where no summand stands beside."""
    from matplotlib.patches import Circle

    radius = min(0.035, 0.22 * min(cell.width, cell.height))
    centre = (cell.left + cell.width - 1.6 * radius, cell.top + cell.height - 1.6 * radius)
    face = "white" if alone else "#FFD9E6"
    axes.add_patch(Circle(centre, radius, facecolor=face, edgecolor=NOTE, linewidth=0.8, zorder=4))


def _fixed(structure: Structure) -> Structure:
    """With free sizes as they are drawn, so that a pattern is seen; as it is where they do not fit."""
    names = size_names(*structure.shape)
    try:
        return structure.at(**dict.fromkeys(names, FREE)) if names else structure
    except ShapeError:  # "time - 16" is no size at FREE
        return structure


def _draw_rules(axes: Any, grid: Grid, layout: Layout) -> None:
    style = {"color": "#E3E3E3", "linewidth": 0.5, "zorder": 0.5}
    for unit in grid.rows:
        top, bottom = layout.top[unit.name], layout.top[unit.name] + layout.side[unit.name]
        axes.plot([0, layout.width], [top, top], **style)
        axes.plot([0, layout.width], [bottom, bottom], **style)
    for unit in grid.columns[1:]:
        axes.plot([layout.left[unit.name]] * 2, [0, layout.height], **style)


def _draw_handle(axes: Any, cell: Box, name: str) -> None:
    from matplotlib.patches import Rectangle

    handle = Rectangle(cell[:2], cell.width, cell.height, facecolor="none", edgecolor="none", zorder=5)
    handle.set_gid(name)
    axes.add_patch(handle)


def _draw_frames(axes: Any, grid: Grid, layout: Layout) -> None:
    from matplotlib.patches import Rectangle

    for number, frame in enumerate(grid.frames):
        first, last = grid.rows[frame.first].name, grid.rows[frame.last].name
        left, top = layout.left[first], layout.top[first]
        width = layout.left[last] + layout.side[last] - left
        height = layout.top[last] + layout.side[last] - top
        box = {"facecolor": "none", "edgecolor": FRAME, "linewidth": 1.6, "zorder": 3.5}
        axes.add_patch(Rectangle((left, top), width, height, **box))
        band = {"facecolor": FRAME + "0D", "edgecolor": "none", "zorder": 0.2}
        axes.add_patch(Rectangle((0, top), layout.width, height, **band))
        inner = sum(f.first == frame.first for f in grid.frames[number + 1 :])
        y = top - (0.5 + inner) * BAND
        axes.text(
            -0.08, y, frame.label, ha="right", va="center", fontsize=FONT + 0.5, weight="bold", color=FRAME
        )
        line = {"color": FRAME, "linewidth": 1.6}
        axes.plot([-0.04, -0.04], [top, top + height], clip_on=False, **line)


def _write_labels(axes: Any, grid: Grid, layout: Layout) -> None:
    for unit in grid.rows:
        y = layout.top[unit.name] + layout.side[unit.name] / 2
        axes.text(-0.08, y, layout.labels[unit.name], ha="right", va="center", fontsize=FONT)
        if note := grid.notes.get(unit.name):
            axes.text(layout.width + 0.08, y, note, ha="left", va="center", fontsize=FONT, color=NOTE)
    turned = {"rotation": 50, "rotation_mode": "anchor", "ha": "left", "va": "center"}
    for unit in grid.columns:
        x = layout.left[unit.name] + layout.side[unit.name] / 2
        axes.text(x, -0.08, layout.labels[unit.name], fontsize=FONT, **turned)


def describe_size(node: Node) -> str:
    """How many steps and loops a schedule has, in a few words."""
    steps, loops = _count(node)
    return f"{steps:,} steps" + (f" and {loops} loop{'s' * (loops > 1)}" if loops else "")


def _count(node: Node) -> tuple[int, int]:
    if isinstance(node, Step):
        return 1, 0
    children = node.body if isinstance(node, Seq) else (node.body,)
    found = [_count(child) for child in children]
    return sum(s for s, _ in found), sum(n for _, n in found) + isinstance(node, Loop)
