"""om.draw: a program, block matrix, step or structure as a picture of its matrix."""

import html
from dataclasses import replace
from pathlib import Path
from typing import Any

from onematrix.errors import OneMatrixError
from onematrix.programs.block_matrix import BlockMatrix
from onematrix.programs.part import ONE, Part
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop, Node, Row, Seq, Step
from onematrix.records.files import write_text
from onematrix.reports.cells import colour_of, kind_of
from onematrix.reports.figures import FORMATS, LOOK, new_figure, require_matplotlib, save, targets
from onematrix.reports.grid import AREAS, Panel, draw_panel, frame
from onematrix.reports.tables import Table
from onematrix.structures.base import Structure
from onematrix.structures.tree import index_bytes, stored_numbers

NAMES = ("G", "H", "K", "L")
Drawable = Program | BlockMatrix | Step | Structure


def draw(what: Drawable, path: str | Path, *, area: str = "size", title: str = "") -> list[Path]:
    """Draw a matrix as a grid of blocks: parts with sizes on both sides, colour by structure.

    Non-zeros are visible in sparse blocks, low-rank blocks show their two thin factors, the activation
    stands right of its row, H beside G. Sides grow with the square root of a part's width (area="size");
    area="bytes": the area of each block is proportional to its stored bytes; "equal": all cells alike.
    path: .svg, .png, .html (a page with the picture and a table), or without suffix for SVG and PNG.
    Gives the paths written. Raises OneMatrixError for other suffixes and things that have no matrix.
    """
    if area not in AREAS:
        raise OneMatrixError(f"draw: area {area!r} is unknown; there are: {', '.join(AREAS)}")
    panels, parts, caption = _panels(what)
    path = Path(path)
    if path.suffix == ".html":
        return [_page(panels, parts, caption, path, area, title)]
    paths = targets(path, (*FORMATS, ".html"))
    return _paint(panels, parts, caption, paths, area, title)


def _panels(what: Drawable) -> tuple[list[Panel], dict[str, Part], str]:
    if isinstance(what, Structure):
        m, n = what.fixed_shape
        parts = {"y": Part((m,)), "x": Part((n,))}
        e = stored_numbers(what) / (m * n)
        caption = (
            f"{what.name} {m}×{n}: {stored_numbers(what):,} numbers, E = {100 * e:.3g} %, "
            f"{index_bytes(what):,} index bytes"
        )
        return [Panel(what.name, ("y",), ("x",), {("y", "x"): what}, {})], parts, caption
    if isinstance(what, BlockMatrix):
        return [_panel("G", {key: block.structure for key, block in what}, what.parts, {})], what.parts, ""
    if isinstance(what, Step):
        return _merge([what]), what.parts, _say_step(what)
    if isinstance(what, Program):
        return _merge(what.steps()), what.parts, describe_schedule(what.schedule)
    raise OneMatrixError(
        f"draw: a Program, BlockMatrix, Step or Structure was needed, got {type(what).__name__}"
    )


def _merge(steps: list[Step]) -> list[Panel]:
    """One panel per matrix of the equation, over all steps; a second one where steps differ at a place."""
    grids: list[tuple[int, dict[tuple[str, str], Structure], dict[str, str]]] = []
    for step in steps:
        for index in range(len(step.matrices)):
            blocks = {
                (row.part, column): block.structure
                for row in step.rows
                if len(row.sums) > index
                for column, block in row.sums[index]
            }
            notes = {row.part: _note(row, index) for row in step.rows}
            same = next((g for g in grids if g[0] == index and _agree(g[1], blocks)), None)
            if same is None:
                grids.append((index, blocks, notes))
            else:
                same[1].update(blocks)
                same[2].update(notes)
    parts = {name: part for step in steps for name, part in step.parts.items()}
    several = {i for i in range(4) if sum(g[0] == i for g in grids) > 1}
    named = []
    for number, (index, blocks, notes) in enumerate(grids):
        before = sum(g[0] == index for g in grids[: number + 1])
        named.append(
            _panel(NAMES[min(index, 3)] + (f" {before}" if index in several else ""), blocks, parts, notes)
        )
    return named


def _agree(a: dict[tuple[str, str], Structure], b: dict[tuple[str, str], Structure]) -> bool:
    return all(a[key] is b[key] for key in a.keys() & b.keys())


def _note(row: Row, index: int) -> str:
    if index == 0 and row.activation.name != "identity":
        return str(row.activation)
    if index == 1 and row.join is not None and row.join.name != "hadamard":
        return str(row.join)
    return ""


def _panel(
    name: str, blocks: dict[tuple[str, str], Structure], parts: dict[str, Part], notes: dict[str, str]
) -> Panel:
    reads, writes = {c for _, c in blocks}, {r for r, _ in blocks}
    shown = (
        reads | writes if reads - {ONE} <= writes else reads
    )  # a map of a state into itself is drawn square
    columns = [n for n in parts if n in shown and n != ONE] + ([ONE] if ONE in reads else [])
    rows = [n for n in parts if n in writes]
    return Panel(name, tuple(rows), tuple(columns), blocks, {k: v for k, v in notes.items() if v})


def describe_schedule(node: Node) -> str:
    """The schedule in words, for a caption."""
    if isinstance(node, Step):
        return _say_step(node)
    if isinstance(node, Seq):
        said: list[tuple[str, int]] = []
        for child in node.body:
            text = describe_schedule(child)
            if said and said[-1][0] == text:
                said[-1] = (text, said[-1][1] + 1)
            else:
                said.append((text, 1))
        return ", then ".join(text if count == 1 else f"{count} × ({text})" for text, count in said)
    inner = describe_schedule(node.body)
    if node.over is not None:
        return f"{'backwards ' if node.reverse else ''}over {node.length}: {inner}{_say_carry(node)}"
    return f"{node.times} × ({inner})" if node.times is not None else f"until still: ({inner})"


def _say_step(step: Step) -> str:
    rows = [row.part for row in step.rows]
    which = ", ".join(rows) if len(rows) <= 4 else f"{len(rows)} rows"
    return f"{which} ← {'σ(Gx) ∘ Hx' if len(step.matrices) > 1 else 'σ(Gx)'}"


def _say_carry(loop: Loop) -> str:
    names = list(loop.carry.rows) if loop.carry is not None else []
    return f"; carried: {', '.join(names)}" if names else ""


def _paint(
    panels: list[Panel], parts: dict[str, Part], caption: str, paths: list[Path], area: str, title: str
) -> list[Path]:
    crowd = max(len({*panel.rows, *panel.columns}) for panel in panels)
    panels = [replace(panel, crowd=crowd) for panel in panels]
    with require_matplotlib().rc_context(LOOK):
        frames = [frame(panel, parts, area) for panel in panels]
        rows = _shelves(frames)
        width = max(sum(frames[i][0] for i in row) for row in rows)
        height = sum(max(frames[i][1] for i in row) for row in rows)
        foot = 0.95
        figure = new_figure(width, height + foot)
        top = height + foot
        for row in rows:
            left = 0.0
            tall = max(frames[i][1] for i in row)
            for i in row:
                w, h = frames[i]
                place = (left / width, (top - h) / (height + foot), w / width, h / (height + foot))
                draw_panel(figure.add_axes(place), panels[i], parts, area)
                left += w
            top -= tall
        _legend(figure, panels, width, height + foot)
        figure.text(
            0.01, 0.05 / (height + foot), _wrap(caption, width), fontsize=7, color="#444444", va="bottom"
        )
        if title:
            figure.suptitle(title, y=1.0, va="bottom")
        return save(figure, paths)


def _shelves(frames: list[tuple[float, float]], widest: float = 15.0) -> list[list[int]]:
    """Panels side by side as long as they fit into the width, then a new row."""
    rows: list[list[int]] = [[]]
    for i, (width, _) in enumerate(frames):
        if rows[-1] and sum(frames[j][0] for j in rows[-1]) + width > widest:
            rows.append([])
        rows[-1].append(i)
    return rows


def _wrap(text: str, width: float) -> str:
    import textwrap

    lines = textwrap.wrap(text, max(40, int(width * 18)))
    return "\n".join([*lines[:3], "…"] if len(lines) > 4 else lines)


def _legend(figure: Any, panels: list[Panel], width: float, height: float) -> None:
    from matplotlib.patches import Patch

    kinds = {kind_of(s): colour_of(s) for panel in panels for s in panel.blocks.values()}
    handles = [Patch(color=colour, label=name.replace("_", "-")) for name, colour in kinds.items()]
    columns = max(1, min(len(handles), int(width / 1.2)))
    figure.legend(
        handles=handles,
        loc="lower left",
        ncol=columns,
        frameon=False,
        fontsize=8,
        bbox_to_anchor=(0.0, 0.42 / height),
        handlelength=1.2,
        columnspacing=1.2,
    )


def _page(
    panels: list[Panel], parts: dict[str, Part], caption: str, path: Path, area: str, title: str
) -> Path:
    """A page with the picture and a table of the blocks; needs nothing else."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        svg = _paint(panels, parts, caption, [Path(folder) / "a.svg"], area, "")[0].read_text(
            encoding="utf-8"
        )
    rows = [
        {
            "matrix": panel.name,
            "block": f"{r} ← {c}",
            "structure": s.name,
            "shape": " × ".join(map(str, s.shape)),
            "stored numbers": stored_numbers(s),
            "index bytes": index_bytes(s),
        }
        for panel in panels
        for (r, c), s in panel.blocks.items()
    ]
    name = html.escape(title or "One matrix")
    style = (
        "body{font:15px system-ui;margin:2rem}table{border-collapse:collapse}td,th{padding:.2rem .8rem;"
        "border-bottom:1px solid #ccc;text-align:left}td.n{text-align:right}svg{max-width:100%;height:auto}"
    )
    text = (
        f"<!doctype html><meta charset=utf-8><title>{name}</title><style>{style}</style><h1>{name}</h1>"
        f"{svg[svg.index('<svg') :]}<p>{html.escape(caption)}</p>{Table.from_rows(rows).to_html()}\n"
    )
    targets(path, (".html",))
    return write_text(path, text)
