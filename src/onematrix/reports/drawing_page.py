"""A drawing as a page by itself: the picture, a caption, and a table whose rows point at the blocks."""

import html
from collections.abc import Mapping, Sequence

from onematrix.reports.embedding import inline_svg
from onematrix.reports.grid import block_id
from onematrix.reports.panels import Panel
from onematrix.reports.style import HEAD, STYLE
from onematrix.reports.tables import Link, Table
from onematrix.structures.tree import effective_weight, index_bytes, stored_numbers

POINTING = """
figure{position:sticky;top:0;z-index:1}figure svg{max-height:70vh}
svg g[id^="block-"]:hover path,svg g:target path{stroke:#e0004d!important;stroke-width:2.5!important}
td a{color:inherit}
"""


def drawing_page(svg: str, rows: Sequence[Mapping[str, object]], caption: str, title: str) -> str:
    """The page. A click on a block's name frames it in the picture; the pointer on a block tells its numbers."""
    name = html.escape(title or "One matrix")
    return (
        f"{HEAD}<title>{name}</title><style>{STYLE}{POINTING}</style>\n<h1>{name}</h1>\n"
        f"<figure>{inline_svg(svg)}<figcaption>{html.escape(caption)}</figcaption></figure>\n"
        f'<div class="wide">{Table.from_rows(rows).to_html()}</div>\n</html>\n'
    )


def panel_rows(panels: Sequence[Panel], svg: str) -> list[dict[str, object]]:
    """One row of the table per block, which leads to the block in the picture."""
    return [_row(panel, *place, svg) for panel in panels for place in panel.blocks]


def _row(panel: Panel, row: str, column: str, svg: str) -> dict[str, object]:
    block, place, label = panel.blocks[row, column], block_id(panel, row, column), f"{row} ← {column}"
    m, n = block.shape
    fixed = isinstance(m, int) and isinstance(n, int) and m * n
    return {
        "matrix": panel.name,
        "block": Link(label, f"#{place}") if f'id="{place}"' in svg else label,
        "structure": block.name,
        "shape": f"{m} × {n}",
        "stored numbers": stored_numbers(block),
        "E": effective_weight(block) if fixed else None,
        "index bytes": index_bytes(block),
    }
