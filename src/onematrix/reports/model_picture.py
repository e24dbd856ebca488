"""A whole program as one block matrix: its rows and columns, folded, and what stands in each cell."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from onematrix.programs.part import ONE, Part
from onematrix.programs.program import Program
from onematrix.programs.schedule import Row
from onematrix.reports.bundling import Group, Shown, bundle_items, parts_shown
from onematrix.reports.folding import fold_parts, match_parts, rows_of, unfolded, written_parts
from onematrix.structures.base import Structure

ROWS = 40  # of a folded picture
MOST = 1500  # of one that is not
NOTES = 2  # activations and joins that are named beside rows drawn as one


@dataclass(frozen=True)
class Unit:
    """A row and column of the picture: a part, or the parts of a module together."""

    name: str
    label: str
    parts: tuple[str, ...]

    @property
    def single(self) -> bool:
        """Whether it is one part."""
        return len(self.parts) == 1


@dataclass(frozen=True)
class Entry:
    """A block in a cell, at the places of its row and column among the parts of the cell's units.

    factor: it stands in H, or a further matrix: the row multiplies or joins its sums.
    """

    structure: Structure
    row: int
    column: int
    factor: bool


@dataclass(frozen=True)
class Frame:
    """Rows `first` to `last` are equal layers that stand there several times."""

    label: str
    first: int
    last: int
    depth: int


@dataclass(frozen=True)
class Grid:
    """The picture's content. cells: (row, column) by the names of units → entries; scope: all parts it stands for."""

    scope: frozenset[str]
    rows: tuple[Unit, ...]
    columns: tuple[Unit, ...]
    cells: Mapping[tuple[str, str], tuple[Entry, ...]]
    notes: Mapping[str, str]
    frames: tuple[Frame, ...]


def has_layers(program: Program) -> bool:
    """Whether a program is drawn as one folded matrix: converted from a module, or with layers that repeat."""
    names = written_parts(program)
    return bool(program.source_names) or len(unfolded(fold_parts(program, names))) < len(names)


def model_grid(program: Program, zoom: str | None = None, fold: bool = True) -> Grid:
    """The rows to draw, at most about ROWS of them where folded, and the blocks between them.

    Raises ProgramError for a zoom that fits nothing, and for more than MOST rows.
    """
    from onematrix.errors import ProgramError

    names = written_parts(program) if zoom is None else match_parts(program, zoom)
    items: list[Shown] = list(names)
    if fold:
        items = bundle_items(fold_parts(program, names), ROWS)
    elif len(names) > MOST:
        raise ProgramError(
            f"draw: {len(names)} rows do not fit into one picture, {MOST} do; use fold=True, or zoom=",
            rows=len(names),
        )
    units: list[Unit] = []
    frames: list[Frame] = []
    _lay_out(items, units, frames, _plain(zoom), 0)
    owner = {part: (unit, i) for unit in units for i, part in enumerate(unit.parts)}
    return _fill(program, set(names), units, frames, owner, _stand_ins(items))


def _lay_out(items: Sequence[Shown], units: list[Unit], frames: list[Frame], prefix: str, depth: int) -> None:
    for item in items:
        if isinstance(item, Group):
            first, repeat = len(units), item.repeat
            place = len(frames)
            inside = f"{repeat.prefix}." if repeat.period > 1 else f"{repeat.prefix}.{repeat.numbers[0]}"
            _lay_out(item.items, units, frames, inside.removeprefix("."), depth + 1)
            frames.insert(place, Frame(repeat.label, first, len(units) - 1, depth))
        else:
            name = item if isinstance(item, str) else item.label
            units.append(Unit(name, _short(name, prefix), tuple(parts_shown(item))))


def _plain(zoom: str | None) -> str:
    """What all names of a zoom begin with, where it ends in .* and has no other wildcard."""
    prefix = (zoom or "").removesuffix(".*")
    return prefix if zoom and zoom != prefix and not set(prefix) & set("*?[") else ""


def _short(name: str, prefix: str) -> str:
    """The name without the words its frame tells; the last words of a long one."""
    if prefix and name.startswith(prefix):
        rest = name.removeprefix(prefix)
        return rest if rest.startswith(".") else ".".join(prefix.split(".")[-2:]) + rest
    words = name.split(".")
    while len(".".join(words)) > 34 and len(words) > 2:
        words = words[1:]
    return name if ".".join(words) == name else "…" + ".".join(words)


def _stand_ins(items: Sequence[Shown]) -> dict[str, str]:
    """Part of a layer that is not shown → the part of the shown layer it is equal to."""
    found: dict[str, str] = {}
    for item in items:
        if isinstance(item, Group):
            layers, period = item.repeat.parts, item.repeat.period
            for i, layer in enumerate(layers[period:]):
                found |= dict(zip(layer, layers[i % period], strict=True))
            found |= _stand_ins(item.items)
    return found


def _resolve(name: str, stand_ins: Mapping[str, str]) -> str:
    while name in stand_ins:
        name = stand_ins[name]
    return name


def _fill(
    program: Program,
    scope: set[str],
    units: Sequence[Unit],
    frames: Sequence[Frame],
    owner: Mapping[str, tuple[Unit, int]],
    stand_ins: Mapping[str, str],
) -> Grid:
    outside: dict[str, Unit] = {}
    cells: dict[tuple[str, str], dict[tuple[str, str, int], Entry]] = {}
    notes: dict[str, list[str]] = {}
    for part, row, number, column, structure in _places(program, scope):
        target, read = _resolve(part, stand_ins), _resolve(column, stand_ins)
        unit, i = owner[target]
        if target == part and row is not None:
            notes.setdefault(unit.name, []).extend(_notes(row))
        if read not in owner:
            outside.setdefault(read, Unit(read, "1" if read == ONE else _short(read, ""), (read,)))
        source, j = owner.get(read) or (outside[read], 0)
        found = cells.setdefault((unit.name, source.name), {})
        found.setdefault((target, read, number), Entry(structure, i, j, number > 0))
    one = [outside.pop(ONE)] if ONE in outside else []
    columns = [*outside.values(), *units, *one]
    said = {name: list(dict.fromkeys(texts)) for name, texts in notes.items()}
    return Grid(
        frozenset(scope),
        tuple(units),
        tuple(columns),
        {place: tuple(found.values()) for place, found in cells.items()},
        {n: ", ".join(t[:NOTES]) + (", …" if len(t) > NOTES else "") for n, t in said.items() if t},
        tuple(frames),
    )


def _places(program: Program, scope: set[str]) -> Iterator[tuple[str, Row | None, int, str, Structure]]:
    """(part, row, number of the matrix, column, structure) of every block of the rows in scope."""
    for part, (_, row, sums) in rows_of(program):
        if part in scope:
            for number, terms in enumerate(sums):
                yield from ((part, row, number, column, block.structure) for column, block in terms)


def _notes(row: Row) -> list[str]:
    said = [] if row.activation.name == "identity" else [str(row.activation)]
    if row.join is not None:
        said.append("∘" if row.join.name == "hadamard" else str(row.join))
    return said


def size_text(unit: Unit, parts: Mapping[str, Part]) -> str:
    """The shape of a part, or how many parts stand together."""
    if unit.parts == (ONE,):
        return ""
    return "×".join(map(str, parts[unit.parts[0]].shape)) if unit.single else f"{len(unit.parts)} rows"
