"""Programs, steps and block matrices as panels: one grid of blocks per matrix of the equation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onematrix.errors import OneMatrixError
from onematrix.programs.block_matrix import BlockMatrix
from onematrix.programs.part import ONE, Part
from onematrix.programs.schedule import Loop, Node, Row, Seq, Step
from onematrix.programs.text import print_structure
from onematrix.structures.base import Structure
from onematrix.structures.tree import leaves

NAMES = ("G", "H", "K", "L")
LONGEST = 8  # steps of a sequence that are said one by one
Place = tuple[str, str]


@dataclass(frozen=True)
class Panel:
    """One grid: its name, rows and columns (parts), blocks, and what is written right of each row."""

    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    blocks: Mapping[Place, Structure]
    notes: Mapping[str, str]
    number: int = 0
    crowd: int = 0  # parts of the largest panel of the picture: all panels have one scale


@dataclass
class _Grid:
    """A panel under construction: rows of equal meaning from several steps."""

    index: int
    rows: dict[str, dict[str, Structure]]
    notes: dict[str, str]

    def takes(self, other: "_Grid") -> bool:
        """Whether the other's rows are those of this one, wherever both have them."""
        shared = self.rows.keys() & other.rows.keys()
        return self.index == other.index and all(
            self.notes[name] == other.notes[name] and _same_row(self.rows[name], other.rows[name])
            for name in shared
        )


def make_panels(steps: Sequence[Step]) -> list[Panel]:
    """One panel per matrix of the equation, over all steps; a further one where steps differ at a row."""
    grids: list[_Grid] = []
    for step in steps:
        for index in range(len(step.matrices)):
            grid = _grid(step, index)
            known = next((g for g in grids if g.takes(grid)), None)
            if known is None:
                grids.append(grid)
            else:
                known.rows |= grid.rows
                known.notes |= grid.notes
    parts = {name: part for step in steps for name, part in step.parts.items()}
    return number_panels([_panel(grid, _name(grid, grids), parts) for grid in grids if grid.rows])


def matrix_panel(matrix: BlockMatrix) -> Panel:
    """The panel of a block matrix by itself."""
    rows: dict[str, dict[str, Structure]] = {}
    for (row, column), block in matrix:
        rows.setdefault(row, {})[column] = block.structure
    return _panel(_Grid(0, rows, dict.fromkeys(rows, "")), "G", matrix.parts)


def number_panels(panels: Sequence[Panel]) -> list[Panel]:
    """The panels with their numbers and the common scale. Raises OneMatrixError where no row has a block."""
    if not any(panel.rows and panel.columns for panel in panels):
        raise OneMatrixError("draw: a matrix with at least one block was needed, got none")
    crowd = max(len({*panel.rows, *panel.columns}) for panel in panels)
    return [replace(panel, number=i, crowd=crowd) for i, panel in enumerate(panels)]


def _grid(step: Step, index: int) -> _Grid:
    rows = {
        row.part: {
            column: block.structure for column, block in (row.sums[index] if len(row.sums) > index else ())
        }
        for row in step.rows
        if index == 0 or len(row.sums) > index
    }
    return _Grid(index, rows, {row.part: _note(row, index) for row in step.rows if row.part in rows})


def _same_row(a: Mapping[str, Structure], b: Mapping[str, Structure]) -> bool:
    return a.keys() == b.keys() and all(_meaning(a[column]) == _meaning(b[column]) for column in a)


def _meaning(structure: Structure) -> str:
    """Equal for structures of the same form over the same tensors."""
    return print_structure(structure, {id(tensor): str(id(tensor)) for _, tensor in leaves(structure)})


def _name(grid: _Grid, grids: Sequence[_Grid]) -> str:
    alike = [g for g in grids if g.index == grid.index]
    name = NAMES[min(grid.index, 3)]
    return name if len(alike) == 1 else f"{name} {alike.index(grid) + 1}"


def _note(row: Row, index: int) -> str:
    if index == 0 and row.activation.name != "identity":
        return str(row.activation)
    if index == 1 and row.join is not None and row.join.name != "hadamard":
        return str(row.join)
    return ""


def _panel(grid: _Grid, name: str, parts: Mapping[str, Part]) -> Panel:
    """A map of a state into itself is drawn square, with columns for parts nothing reads."""
    blocks = {(row, column): s for row, found in grid.rows.items() for column, s in found.items()}
    reads, writes = {column for _, column in blocks}, set(grid.rows)
    shown = reads | writes if reads - {ONE} <= writes else reads
    columns = [n for n in parts if n in shown and n != ONE] + ([ONE] if ONE in reads else [])
    rows = [n for n in parts if n in writes]
    return Panel(name, tuple(rows), tuple(columns), blocks, {k: v for k, v in grid.notes.items() if v})


def describe_schedule(node: Node) -> str:
    """The schedule in words, for a caption."""
    if isinstance(node, Step):
        return describe_step(node)
    if isinstance(node, Seq):
        said: list[tuple[str, int]] = []
        for child in node.body:
            text = describe_schedule(child)
            count = said.pop()[1] + 1 if said and said[-1][0] == text else 1
            said.append((text, count))
        texts = [text if count == 1 else f"{count} × ({text})" for text, count in said]
        return (
            ", then ".join(texts)
            if len(texts) <= LONGEST
            else f"{len(texts)} steps: {texts[0]}, …, {texts[-1]}"
        )
    inner = describe_schedule(node.body)
    if node.over is None:
        return f"{node.times} × ({inner})" if node.times is not None else f"until still: ({inner})"
    back = ", backwards" if node.reverse else ""
    ticks = "" if node.ticks is None else f" ({node.ticks} ticks)"
    return f"over {node.over}{ticks}{back}: {inner}{_say_maps(node)}"


def describe_step(step: Step) -> str:
    """The rows a step writes and the form of its equation."""
    rows = [row.part for row in step.rows]
    which = ", ".join(rows) if len(rows) <= 4 else f"{len(rows)} rows"
    return f"{which} ← {'σ(Gx) ∘ Hx' if len(step.matrices) > 1 else 'σ(Gx)'}"


def _say_maps(loop: Loop) -> str:
    """What a tick is fed, what outlives it, and what is stacked over all of them."""
    said = {
        "fed": [f"{row} from {column}" for (row, column), _ in loop.feeds or ()],
        "carried": list(loop.carry.rows) if loop.carry is not None else [],
        "stacked": [f"{row} from {column}" for (row, column), _ in loop.outputs or ()],
    }
    return "".join(f"; {what}: {', '.join(names)}" for what, names in said.items() if names)
