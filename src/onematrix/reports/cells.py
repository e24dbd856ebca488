"""The inside of a block in a picture: filled, thin factors, a diagonal line, or the pattern of its entries."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from onematrix.structures.base import Structure
from onematrix.structures.identity import Scaled, Zero
from onematrix.structures.low_rank import LowRank

COLOURS = {
    "dense": "#4C78A8",
    "low_rank": "#E4863A",
    "csr": "#2E8B57",
    "csc": "#57A773",
    "masked": "#7FB069",
    "block_sparse": "#1B7F79",
    "diagonal": "#B5446E",
    "identity": "#6B6B6B",
    "ones": "#A0A0A0",
    "zero": "#DDDDDD",
    "permutation": "#8E6BBF",
    "selection": "#A58BD0",
    "product": "#C9A227",
    "sum": "#9C8A3A",
    "transposed": "#7C8798",
    "block_diagonal": "#5E9BC9",
    "vertical_stack": "#8FA9C4",
    "horizontal_stack": "#8FA9C4",
}
PATTERNED = {"csr", "csc", "masked", "block_sparse", "permutation", "selection", "block_diagonal"}
LARGEST = 40_000_000  # entries of a pattern that is looked at
PIXELS = 240  # of a pattern's longer side in the picture


def colour_of(structure: Structure) -> str:
    """The colour of a kind of matrix: fixed for known ones, from the name for others; a scaled one has its own's."""
    name = kind_of(structure)
    if name in COLOURS:
        return COLOURS[name]
    hue = int(hashlib.sha256(name.encode()).hexdigest()[:4], 16) / 0xFFFF
    import colorsys

    r, g, b = (round(255 * v) for v in colorsys.hls_to_rgb(hue, 0.5, 0.45))
    return f"#{r:02X}{g:02X}{b:02X}"


def kind_of(structure: Structure) -> str:
    """The name a legend shows: that of the structure inside, where only a factor stands before it."""
    return kind_of(structure.inner) if isinstance(structure, Scaled) else structure.name


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


def draw_cell(axes: Any, structure: Structure, left: float, top: float, width: float, height: float) -> None:
    """Draw a block into a rectangle whose upper left corner is (left, top); y points down."""
    from matplotlib.patches import Rectangle

    colour, inner = colour_of(structure), structure.inner if isinstance(structure, Scaled) else structure
    box = (left, top, width, height)
    if isinstance(inner, Zero):
        axes.add_patch(
            Rectangle((left, top), width, height, facecolor="#F4F4F4", edgecolor=colour, linewidth=0.5)
        )
        _label(axes, "0", box)
        return
    axes.add_patch(
        Rectangle((left, top), width, height, facecolor=colour + "26", edgecolor=colour, linewidth=0.6)
    )
    if isinstance(inner, LowRank):
        _draw_factors(axes, inner, colour, box)
    elif inner.name in ("identity", "diagonal"):
        axes.plot(
            [left, left + width], [top, top + height], color=colour, linewidth=1.3, solid_capstyle="butt"
        )
    elif inner.name in PATTERNED and (pattern := nonzero_pattern(inner)) is not None:
        _draw_pattern(axes, pattern, colour, box)
    else:
        axes.add_patch(
            Rectangle((left, top), width, height, facecolor=colour, edgecolor="white", linewidth=0.8)
        )
    if text := factor_label(structure):
        _label(axes, text, box)


def _label(axes: Any, text: str, box: Sequence[float]) -> None:
    left, top, width, height = box
    size = max(4.5, min(8.0, 26 * min(width, height)))
    axes.text(
        left + 0.72 * width,
        top + 0.3 * height,
        text,
        ha="center",
        va="center",
        fontsize=size,
        color="#222222",
    )


def _draw_factors(axes: Any, structure: LowRank, colour: str, box: Sequence[float]) -> None:
    """U as a strip at the left, V as a strip at the top, as thick as the rank is to the sizes."""
    from matplotlib.patches import Rectangle

    left, top, width, height = box
    m, n = structure.fixed_shape
    thick = max(0.03, min(width, 0.8 * width * structure.rank / n))
    flat = max(0.03, min(height, 0.8 * height * structure.rank / m))
    axes.add_patch(Rectangle((left, top), min(thick, width), height, facecolor=colour, edgecolor="none"))
    axes.add_patch(Rectangle((left, top), width, min(flat, height), facecolor=colour, edgecolor="none"))


def nonzero_pattern(structure: Structure) -> np.ndarray | None:
    """Where the definition is not zero, as booleans (m, n); None on the meta device or for very large ones."""
    m, n = structure.shape
    if isinstance(m, str) or isinstance(n, str) or m * n > LARGEST:
        return None
    weight = structure.any_weight()
    if weight is not None and weight.device.type == "meta":
        return None
    with torch.no_grad():
        return (structure.to_dense() != 0).cpu().numpy()


def _draw_pattern(axes: Any, pattern: np.ndarray, colour: str, box: Sequence[float]) -> None:
    left, top, width, height = box
    image = shrink_pattern(pattern, PIXELS)
    rgba = np.zeros((*image.shape, 4))
    rgba[..., :3] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    rgba[..., 3] = image
    extent = (left, left + width, top + height, top)
    axes.imshow(rgba, extent=extent, interpolation="nearest", aspect="auto", zorder=2)


def shrink_pattern(pattern: np.ndarray, pixels: int) -> np.ndarray:
    """Opacity per pixel: 1 for an entry that has a pixel of its own; where several share one, the visible share.

    A pixel with any entry is at least 0.25, so that single entries of a large block are seen.
    """
    m, n = pattern.shape
    rows, columns = min(m, pixels), min(n, pixels)
    r, c = np.arange(m) * rows // m, np.arange(n) * columns // n
    counts = np.zeros((rows, columns))
    i, j = np.nonzero(pattern)
    np.add.at(counts, (r[i], c[j]), 1)
    share = counts / np.outer(np.bincount(r, minlength=rows), np.bincount(c, minlength=columns))
    return np.where(counts > 0, np.maximum(0.25, share), 0.0)
