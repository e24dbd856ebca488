"""A single structure as a picture of its entries."""

from typing import TYPE_CHECKING

import numpy as np

from onematrix.reports.figures import new_figure
from onematrix.reports.patterns import entries, shrink_values
from onematrix.structures.base import Structure
from onematrix.structures.tree import effective_weight, index_bytes, stored_numbers

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

PIXELS = 400  # of the longer side
LONG, SHORT = 4.0, 0.8  # inches of the longer and, at least, of the shorter side
NOT_FINITE = "#FFD400"


def caption_of(structure: Structure) -> str:
    """Name, shape, stored numbers, E and index bytes."""
    m, n = structure.fixed_shape
    return (
        f"{structure.name} {m}×{n}: {stored_numbers(structure):,} numbers, "
        f"E = {100 * effective_weight(structure):.3g} %, {index_bytes(structure):,} index bytes"
    )


def paint_values(structure: Structure, title: str = "", caption: str = "") -> "Figure | None":
    """Red above zero, blue below, white at zero; None where the entries are not to be had (meta, very large)."""
    values = entries(structure)
    if values is None or 0 in values.shape:
        return None
    m, n = values.shape
    scale = LONG / max(m, n)
    width, height = max(SHORT, n * scale), max(SHORT, m * scale)
    figure = new_figure(max(4.2, width + 1.6), height + 1.2)
    w, h = figure.get_size_inches()
    axes = figure.add_axes((0.5 / w, 0.75 / h, width / w, height / h))
    shown = shrink_values(values, PIXELS)
    most = float(np.nanmax(np.abs(shown))) if np.isfinite(shown).any() else 0.0
    image = axes.imshow(
        shown, cmap=_colours(), vmin=-(most or 1.0), vmax=most or 1.0, aspect="auto", interpolation="nearest",
        extent=(0, n, m, 0),
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(True)
    axes.set_xticks([0, n])
    axes.set_yticks([0, m])
    figure.colorbar(image, cax=figure.add_axes(((0.65 + width) / w, 0.75 / h, 0.12 / w, height / h)))
    figure.text(0.02, 0.99, title or structure.name.replace("_", "-"), fontsize=12, weight="bold", va="top")
    lines = [
        *([caption] if caption else []),
        _say_zeros(values),
        *([_say_pixels(values)] if max(m, n) > PIXELS else []),
    ]
    figure.text(0.02, 0.0, "\n".join(lines), fontsize=7.5, color="#444444", va="bottom", linespacing=1.3)
    return figure


def _colours() -> "Colormap":
    import matplotlib

    return matplotlib.colormaps["RdBu_r"].with_extremes(bad=NOT_FINITE)


def _say_zeros(values: np.ndarray) -> str:
    bad = int((~np.isfinite(values)).sum())
    said = f"{np.count_nonzero(values):,} of {values.size:,} entries are not zero"
    return said + (f", {bad:,} are not finite (yellow)" if bad else "")


def _say_pixels(values: np.ndarray) -> str:
    return f"{values.shape[0]:,}×{values.shape[1]:,} entries; a pixel shows the largest magnitude it covers."
