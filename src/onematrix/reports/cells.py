"""The inside of a block in a picture: filled, thin factors, a diagonal line, or the pattern of its entries."""

from typing import Any, NamedTuple

import numpy as np

from onematrix.reports.palette import colour_of, kind_of
from onematrix.reports.patterns import nonzero_pattern, shrink_pattern
from onematrix.structures.base import Structure
from onematrix.structures.identity import Scaled, Zero
from onematrix.structures.low_rank import LowRank

PIXELS = 240  # of a pattern's longer side in the picture
LINES = ("identity", "diagonal")
SMALLEST = 0.07  # inches; below that a block is a dot
LETTER = 0.0088  # width of a letter in inches, per point of its size
FILLED = ("dense", "embedding", "column")  # every entry is stored, whatever its value
TINT = "26"  # opacity of a block's ground where it stores nothing, in hexadecimal


class Box(NamedTuple):
    """A rectangle whose upper left corner is (left, top), in inches; y points down."""

    left: float
    top: float
    width: float
    height: float

    def inside(self, margin: float) -> "Box":
        """The rectangle without a margin on all sides."""
        w, h = min(margin, self.width / 4), min(margin, self.height / 4)
        return Box(self.left + w, self.top + h, self.width - 2 * w, self.height - 2 * h)


def factor_label(structure: Structure) -> str:
    """The fixed factor of a scaled block as text: −1, ½, 0.1; empty where there is none.

    >>> from onematrix.structures.identity import Identity
    >>> factor_label(Scaled(Identity(2), -1)), factor_label(Scaled(Identity(2), 1, 2))
    ('−1', '½')
    """
    if not isinstance(structure, Scaled):
        return ""
    known = {(1, 2): "½", (1, 4): "¼", (3, 4): "¾", (-1, 2): "−½"}
    ratio = (structure.numerator, structure.denominator)
    return known.get(ratio, f"{structure.factor:.3g}".replace("-", "−"))


def draw_cell(
    axes: Any, structure: Structure, box: Box, cell: Box, most: int | None = None, pixels: int = PIXELS
) -> None:
    """Draw a block into its rectangle; its factor stands in the upper right of the cell around it.

    most: entries of a matrix whose pattern is shown, larger ones are filled; by default as `entries` says.
    pixels: of the longer side of a pattern. A factor that is wider than its cell is left out.
    """
    inner = structure.inner if isinstance(structure, Scaled) else structure
    colour = colour_of(structure)
    draw_ground(axes, box, colour + TINT, colour)
    if min(box.width, box.height) < SMALLEST:
        draw_ground(axes, box, colour, colour)
    elif isinstance(inner, Zero):
        _write(axes, "0", box)
    elif isinstance(inner, LowRank):
        _draw_factors(axes, inner, colour, box)
    elif inner.name in LINES:
        x, y = [box.left, box.left + box.width], [box.top, box.top + box.height]
        axes.plot(x, y, color=colour, linewidth=1.3, solid_capstyle="butt")
    elif kind_of(inner) in FILLED or (pattern := nonzero_pattern(inner, most)) is None or pattern.all():
        draw_ground(axes, box, colour, colour)
    else:
        _draw_pattern(axes, pattern, colour, box, pixels)
    if (text := factor_label(structure)) and _width(text, cell) < cell.width:
        _write(axes, text, cell, right=True)


def draw_ground(axes: Any, box: Box, face: str, edge: str, order: float = 1.0) -> None:
    """A rectangle with a thin edge."""
    from matplotlib.patches import Rectangle

    ground = Rectangle(box[:2], box.width, box.height, facecolor=face, edgecolor=edge, linewidth=0.5)
    ground.set_zorder(order)
    axes.add_patch(ground)


def _write(axes: Any, text: str, box: Box, right: bool = False) -> None:
    """Text in the middle, or above the diagonal: never on the line of an identity."""
    x, y = (0.7, 0.3) if right else (0.5, 0.5)
    axes.text(
        box.left + x * box.width,
        box.top + y * box.height,
        text,
        ha="center",
        va="center",
        fontsize=_points(box),
        color="#111111",
        clip_on=False,
    )


def _points(box: Box) -> float:
    return max(6.0, min(9.0, 20 * min(box.width, box.height)))


def _width(text: str, box: Box) -> float:
    """Inches a factor is wide."""
    return LETTER * _points(box) * len(text)


def _draw_factors(axes: Any, structure: LowRank, colour: str, box: Box) -> None:
    """U as a strip at the left and V as a strip at the top, as thick as the rank is to the sizes; the rank."""
    from matplotlib.patches import Rectangle

    m, n = structure.fixed_shape
    left, top, width, height = box.inside(0.03)
    gap = 0.02
    thick = min(max(0.035, width * structure.rank / n), 0.45 * width)
    flat = min(max(0.035, height * structure.rank / m), 0.45 * height)
    strips = (
        (left, top + flat + gap, thick, height - flat - gap),
        (left + thick + gap, top, width - thick - gap, flat),
    )
    for x, y, w, h in strips:
        axes.add_patch(Rectangle((x, y), w, h, facecolor=colour, edgecolor="none"))
    rest = Box(left + thick, top + flat, width - thick, height - flat)
    if rest.height > 0.16 and rest.width > 0.5:
        _write(axes, f"rank {structure.rank}", rest)


def _draw_pattern(axes: Any, pattern: np.ndarray, colour: str, box: Box, pixels: int) -> None:
    opacity = shrink_pattern(pattern, pixels)
    if pixels != PIXELS:
        opacity = opacity**0.5  # few large pixels: a thin diagonal is a small share of each
    image = np.empty((*opacity.shape, 4))
    image[..., :3] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    image[..., 3] = opacity
    left, top, width, height = box.inside(0.01)
    extent = (left, left + width, top + height, top)
    axes.imshow(image, extent=extent, interpolation="nearest", aspect="auto", zorder=2)
