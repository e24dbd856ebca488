"""A block matrix as a grid: parts along both sides, a block in each place, the activation of each row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onematrix.programs.part import ONE, Part
from onematrix.reports.cells import draw_cell
from onematrix.structures.base import Structure
from onematrix.structures.tree import stored_bytes

THIN = 0.16  # width of the column of the constant 1
AREAS = ("size", "bytes", "equal")


@dataclass(frozen=True)
class Panel:
    """One grid: its name, rows and columns (parts), blocks, and what is written right of each row."""

    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    blocks: Mapping[tuple[str, str], Structure]
    notes: Mapping[str, str]
    crowd: int = 0  # parts of the largest panel of the picture: all panels have one scale


def lengths(panel: Panel, parts: Mapping[str, Part], area: str) -> dict[str, float]:
    """Side of each part in the picture, in inches: the square root of its width, kept readable."""
    names = [*dict.fromkeys([*panel.columns, *panel.rows])]
    sizes = {name: _number(parts[name]) for name in names}
    largest = max(sizes.values())
    unit = 0.19 if panel.crowd > 8 else 0.34 if panel.crowd > 5 else 0.8
    side = {}
    for name, size in sizes.items():
        share = (size / largest) ** 0.5 if area == "size" else 1.0
        side[name] = (
            THIN if name == ONE else max(0.3, unit * (0.35 + 1.65 * share) if area == "size" else unit)
        )
    return side


def _number(part: Part) -> float:
    product = 1.0
    for size in part.shape:
        product *= size if isinstance(size, int) else 8  # a free size is drawn as if it were 8
    return product


def describe_part(name: str, part: Part) -> str:
    """The label of a part: name and size."""
    size = "×".join(str(s) for s in part.shape)
    return "1" if name == ONE else f"{name}  {size}"


def extent(panel: Panel, parts: Mapping[str, Part], area: str) -> tuple[float, float]:
    """(width, height) of the grid itself, in inches."""
    side = lengths(panel, parts, area)
    return sum(side[c] for c in panel.columns), sum(side[r] for r in panel.rows)


def draw_panel(axes: Any, panel: Panel, parts: Mapping[str, Part], area: str) -> None:
    """Draw the grid with its labels; one unit of the axes is one inch, y points down."""
    from matplotlib.patches import Rectangle

    side = lengths(panel, parts, area)
    width, height = extent(panel, parts, area)
    most = max((stored_bytes(s) for s in panel.blocks.values()), default=1) or 1
    axes.add_patch(Rectangle((0, 0), width, height, facecolor="white", edgecolor="#999999", linewidth=0.8))
    top = 0.0
    for row in panel.rows:
        left = 0.0
        for column in panel.columns:
            axes.add_patch(
                Rectangle(
                    (left, top), side[column], side[row], facecolor="none", edgecolor="#E3E3E3", linewidth=0.4
                )
            )
            if (block := panel.blocks.get((row, column))) is not None:
                box = _inset(block, left, top, side[column], side[row], most, area)
                draw_cell(axes, block, *box)
            left += side[column]
        axes.text(
            -0.08, top + side[row] / 2, describe_part(row, parts[row]), ha="right", va="center", fontsize=8
        )
        if note := panel.notes.get(row):
            axes.text(
                width + 0.08, top + side[row] / 2, note, ha="left", va="center", fontsize=8, color="#7A1F3D"
            )
        top += side[row]
    left = 0.0
    for column in panel.columns:
        label = describe_part(column, parts[column])
        axes.text(
            left + side[column] / 2,
            -0.08,
            label,
            ha="left",
            va="bottom",
            rotation=50,
            fontsize=8,
            rotation_mode="anchor",
        )
        left += side[column]
    axes.text(
        0, -_label_height(panel, parts) - 0.05, panel.name, ha="left", va="bottom", fontsize=12, weight="bold"
    )
    axes.set_xlim(-_label_width(panel, parts), width + _note_width(panel))
    axes.set_ylim(height + 0.05, -_label_height(panel, parts) - 0.35)
    axes.set_aspect("equal")
    axes.axis("off")


def frame(panel: Panel, parts: Mapping[str, Part], area: str) -> tuple[float, float]:
    """(width, height) of the grid with its labels, in inches."""
    width, height = extent(panel, parts, area)
    return _label_width(panel, parts) + width + _note_width(panel), height + 0.4 + _label_height(panel, parts)


def _label_width(panel: Panel, parts: Mapping[str, Part]) -> float:
    return 0.15 + 0.07 * max(len(describe_part(r, parts[r])) for r in panel.rows)


def _label_height(panel: Panel, parts: Mapping[str, Part]) -> float:
    return 0.15 + 0.056 * max(len(describe_part(c, parts[c])) for c in panel.columns)


def _note_width(panel: Panel) -> float:
    longest = max((len(note) for note in panel.notes.values()), default=0)
    return max(0.15 + 0.07 * longest, 0.45)  # the last column's label leans over the edge


def _inset(
    block: Structure, left: float, top: float, width: float, height: float, most: int, area: str
) -> tuple[float, float, float, float]:
    """With area="bytes" a rectangle in the middle of the cell whose area is proportional to the stored bytes."""
    if area != "bytes":
        return left, top, width, height
    share = max(0.06, (stored_bytes(block) / most) ** 0.5)
    w, h = width * share, height * share
    return left + (width - w) / 2, top + (height - h) / 2, w, h
