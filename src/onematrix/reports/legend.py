"""The legend of a drawing: one entry per kind of matrix, with what its blocks store together."""

from collections.abc import Iterable, Mapping
from typing import Any

from onematrix.reports.palette import colour_of, kind_of
from onematrix.structures.base import Structure
from onematrix.structures.tree import stored_numbers


def legend_entries(blocks: Iterable[Structure]) -> dict[str, str]:
    """Text → colour, one entry per kind of matrix with what its blocks store together."""
    kinds: dict[str, list[Structure]] = {}
    for block in blocks:
        kinds.setdefault(kind_of(block), []).append(block)
    return {
        f"{name.replace('_', '-')}: {_count(len(blocks))}, {stored_numbers(*blocks):,} numbers": colour_of(
            blocks[0]
        )
        for name, blocks in kinds.items()
    }


def _count(blocks: int) -> str:
    return "1 block" if blocks == 1 else f"{blocks:,} blocks"


def draw_legend(figure: Any, entries: Mapping[str, str], columns: int, top: float) -> None:
    """Write the legend into a figure, its upper edge at `top` of the figure's height."""
    from matplotlib.patches import Patch

    figure.legend(
        handles=[Patch(color=colour, label=text) for text, colour in entries.items()],
        loc="upper left",
        bbox_to_anchor=(0.0, top),
        ncol=columns,
        frameon=False,
        fontsize=8.5,
        handlelength=1.2,
        columnspacing=1.6,
    )
