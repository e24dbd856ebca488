"""A program as a table: what each part stores and costs, repeated layers as one line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from onematrix.programs.block_matrix import Block
from onematrix.programs.counts import Work, works
from onematrix.programs.joins import Join
from onematrix.programs.part import ONE
from onematrix.programs.program import Program
from onematrix.programs.schedule import Row
from onematrix.reports.bundling import Bundle, Shown, bundle_items
from onematrix.reports.folding import fold_parts, match_parts, rows_of, written_parts
from onematrix.structures.algebra import Transposed
from onematrix.structures.base import Structure
from onematrix.structures.identity import Scaled
from onematrix.structures.tree import leaves, stored_numbers

LINES = 36  # of a table that is folded
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Line:
    """One line: a part, or the parts of a module or of repeated layers together.

    label: the part's name, or 12 × h.*; parts: how many it stands for; reads: columns of its blocks but `one`,
    those with most stored numbers first.
    stored_numbers, index_bytes: a tensor counts at its first part; tied: some tensor was counted before.
    """

    label: str
    parts: int
    shape: str
    structure: str
    reads: tuple[str, ...]
    stored_numbers: int
    index_bytes: int
    tied: bool
    work: Work

    @property
    def heavy(self) -> bool:
        """Whether anything is stored or multiplied."""
        return bool(self.stored_numbers or self.work.multiply_adds or self.tied)


def table_lines(
    program: Program, sizes: Sizes, zoom: str | None = None, fold: bool = True, limit: int = LINES
) -> list[Line]:
    """The lines of a program's table, in the order of the schedule.

    sizes: every named size of the program. zoom: only parts whose name fits this pattern, "encoder.layer.0.*".
    fold: equal layers are one line and modules are put together until `limit` lines are left; else one line per
    part. Raises ProgramError for a zoom that fits nothing, ShapeError for a size that is missing.
    """
    lines = part_lines(program, sizes)
    names = written_parts(program) if zoom is None else match_parts(program, zoom)
    if not fold:
        return [lines[name] for name in names]
    items = [i for i in fold_parts(program, names) if not isinstance(i, str) or lines[i].heavy]
    return [_line(item, lines) for item in bundle_items(items, limit, open_repeats=False)]


def part_lines(program: Program, sizes: Sizes) -> dict[str, Line]:
    """Part → its line, for every part the schedule writes."""
    work: dict[str | None, Work] = {}
    for name, one in works(program.schedule, program, sizes):
        work[name] = work.get(name, Work()) + one
    blocks: dict[str, list[Block]] = {}
    reads: dict[str, dict[str, int]] = {}
    said: dict[str, list[str]] = {}
    for name, (_, row, sums) in rows_of(program):
        blocks.setdefault(name, []).extend(block for terms in sums for _, block in terms)
        for column, block in (term for terms in sums for term in terms if term[0] != ONE):
            held = reads.setdefault(name, {})
            held[column] = max(held.get(column, 0), stored_numbers(block.structure))
        said.setdefault(name, []).append(describe_row(row, [[b for _, b in terms] for terms in sums]))
    lines: dict[str, Line] = {}
    counted: set[int] = set()
    for name, found in blocks.items():
        stored, index, tied = _new_numbers(found, counted)
        lines[name] = Line(
            name, 1, " × ".join(map(str, program.parts[name].shape)), "; ".join(dict.fromkeys(said[name])),
            _heaviest(reads.get(name, {})), stored, index, tied, work[name],
        )  # fmt: skip
    return lines


def _heaviest(reads: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(sorted(reads, key=lambda column: -reads[column]))


def _new_numbers(blocks: Sequence[Block], counted: set[int]) -> tuple[int, int, bool]:
    """(floating-point numbers, bytes of indices) of tensors not counted before, and whether some were."""
    stored, index, tied = 0, 0, False
    own: set[int] = set()
    for block in blocks:
        for _, tensor in leaves(block.structure):
            tied = tied or (id(tensor) in counted and id(tensor) not in own)
            if id(tensor) not in counted:
                stored += tensor.numel() if tensor.is_floating_point() else 0
                index += 0 if tensor.is_floating_point() else tensor.numel() * tensor.element_size()
            own.add(id(tensor))
            counted.add(id(tensor))
    return stored, index, tied


def describe_row(row: Row | None, sums: Sequence[Sequence[Block]]) -> str:
    """The right side of a row in words: dense 48×16 + column, relu."""
    said = [_say_sum(blocks) for blocks in sums]
    join = None if row is None else row.join
    if isinstance(join, Join) and join.pattern is not None:
        text = f'"{join.pattern}"'
    elif join is not None and join.name != "hadamard":
        text = str(join)
    else:
        text = " ∘ ".join(filter(None, said))
    activation = "" if row is None or row.activation.name == "identity" else str(row.activation)
    return ", ".join(filter(None, (text, activation)))


def _say_sum(blocks: Sequence[Block]) -> str:
    """What a sum multiplies by; blocks that store nothing are named only where no other does."""
    storing = [b for b in blocks if next(leaves(b.structure), None) is not None]
    return " + ".join(dict.fromkeys(describe_structure(b.structure) for b in storing or blocks))


def describe_structure(structure: Structure) -> str:
    """The name of a block with its shape where it stores a matrix.

    >>> import torch
    >>> from onematrix.structures.dense import Dense
    >>> describe_structure(Transposed(Dense(torch.ones(2, 3))))
    'denseᵀ 3×2'
    """
    m, n = structure.shape
    name = _name(structure)
    return f"{name} {m}×{n}" if n != 1 and next(leaves(structure), None) is not None else name


def _name(structure: Structure) -> str:
    if isinstance(structure, Transposed):
        return f"{_name(structure.inner)}ᵀ"
    return _name(structure.inner) if isinstance(structure, Scaled) else structure.name


def _line(item: Shown, lines: Mapping[str, Line]) -> Line:
    if isinstance(item, str):
        return lines[item]
    if isinstance(item, Bundle):
        return _together(item.label, f"{len(item.parts)} parts", [lines[n] for n in item.parts])
    layers = item.repeat.parts
    made = [lines[name] for layer in layers for name in layer]
    each = sum(map(len, layers[: item.repeat.period]))
    return _together(item.repeat.label, f"{each} parts each", made)


def _together(label: str, shape: str, lines: Sequence[Line]) -> Line:
    named: dict[str, int] = {}
    for line in lines:
        if line.stored_numbers:
            kind = line.structure.split(" ")[0].rstrip(",")
            named[kind] = named.get(kind, 0) + line.stored_numbers
    kinds = sorted(named, key=lambda k: -named[k])
    return replace(
        lines[0],
        label=label,
        parts=len(lines),
        shape=shape,
        structure=", ".join(kinds[:3]) + (", …" if len(kinds) > 3 else ""),
        reads=(),
        stored_numbers=sum(line.stored_numbers for line in lines),
        index_bytes=sum(line.index_bytes for line in lines),
        tied=any(line.tied for line in lines),
        work=reduce(Work.__add__, (line.work for line in lines)),
    )
