"""Repeated layers of a program: found by the numbers in the names of parts and by equal text of their rows."""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onematrix.errors import ProgramError
from onematrix.programs.part import ONE
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop, Row, Step, loop_matrices, walk
from onematrix.programs.text import print_structure
from onematrix.structures.base import Structure
from onematrix.structures.tree import leaves

NUMBERED = re.compile(r"_?(\d+)((?:_\d+)?)")  # "3", or "3_2": the second row that a layer itself writes
LONGEST = 8  # layers of a pattern that comes again and again


@dataclass(frozen=True)
class Repeat:
    """Layers of equal rows, one after the other.

    prefix: what their names begin with, "encoder.layer"; numbers: of the layers, in order; period: how many
    different layers come again and again; items: of the first `period` layers, folded themselves.
    parts: the names of all layers, each layer in the order of its rows.
    """

    prefix: str
    numbers: tuple[str, ...]
    period: int
    items: tuple["Item", ...]
    parts: tuple[tuple[str, ...], ...]

    @property
    def times(self) -> int:
        """How often the shown layers stand in the program."""
        return len(self.numbers) // self.period

    @property
    def label(self) -> str:
        """12 × encoder.layer.*, or with the numbers where others of the same prefix are not folded with them."""
        shown = self.numbers[: self.period]
        inner = shown[0] if self.period == 1 else "{" + ",".join(shown) + "}"
        return f"{self.times} × {self.prefix}.{inner if self.period > 1 else '*'}".removeprefix(".")


Item = str | Repeat


def fold_parts(program: Program, names: Sequence[str]) -> list[Item]:
    """The parts in their order, with every run of equal layers as one Repeat at the place of its first part."""
    return _fold(list(names), (), row_texts(program))


def unfolded(items: Sequence[Item]) -> list[str]:
    """The parts shown: of a repeat those of its first layers."""
    return [n for item in items for n in ([item] if isinstance(item, str) else unfolded(item.items))]


def match_parts(program: Program, zoom: str) -> list[str]:
    """Written parts whose name fits the pattern. Raises ProgramError naming what there is.

    "encoder.layer.0.*" also fits the rows the layer itself writes: encoder.layer.0 and encoder.layer.0_2.
    """
    names = written_parts(program)
    own = re.compile(re.escape(zoom.removesuffix(".*")) + r"(_\d+)?")
    found = [n for n in names if fnmatch.fnmatchcase(n, zoom) or (zoom.endswith(".*") and own.fullmatch(n))]
    if not found:
        heads = list(dict.fromkeys(".".join(n.split(".")[:2]) for n in names))
        more = ", …" if len(heads) > 12 else ""
        raise ProgramError(
            f"zoom {zoom!r} fits none of {len(names)} parts; names begin with {', '.join(heads[:12])}{more}",
            parts=len(names),
        )
    return found


def written_parts(program: Program) -> list[str]:
    """Every part some row or map of a loop writes, in the order of the schedule."""
    return list(dict.fromkeys(name for name, _ in rows_of(program)))


def rows_of(program: Program) -> Iterator[tuple[str, tuple[str, Row | None, Sequence[Any]]]]:
    """(part, (role, row, sums)) of every row of a step ("row") and of a loop's maps ("init", "feed", …)."""
    for node in walk(program.schedule):
        if isinstance(node, Step):
            yield from ((row.part, ("row", row, row.sums)) for row in node.rows)
        elif isinstance(node, Loop):
            for role, matrix in loop_matrices(node):
                yield from ((name, (role, None, (tuple(matrix.row(name)),))) for name in matrix.rows)


def row_texts(program: Program) -> dict[str, str]:
    """Part → its rows as text, tensors by shape and dtype; columns between «» so that they can be renamed."""
    texts: dict[str, list[str]] = {name: [] for name in program.parts}
    known: dict[int, str] = {}
    for name, (role, row, sums) in rows_of(program):
        part = program.parts[name]
        said = [role, str(part.shape), part.kind, str(part.dtype)]
        said += [str(row.activation), str(row.join)] if row is not None else []
        for blocks in sums:
            said += [f"«{column}» {block.on} {_say(block.structure, known)}" for column, block in blocks]
            said.append("∘")
        texts[name].append(" ".join(said))
    return {name: "\n".join(lines) for name, lines in texts.items()}


def _say(structure: Structure, known: dict[int, str]) -> str:
    if id(structure) not in known:
        tensors = {id(t): f"{t.dtype}{list(t.shape)}" for _, t in leaves(structure)}
        known[id(structure)] = print_structure(structure, tensors)
    return known[id(structure)]


def _fold(names: list[str], inside: tuple[str, ...], texts: Mapping[str, str]) -> list[Item]:
    """inside: the words all names begin with and whose numbers are settled."""
    layers: dict[tuple[str, ...], dict[str, list[str]]] = {}  # prefix → number → names
    place: dict[str, tuple[str, ...]] = {}
    for name in names:
        if (key := _layer(name, len(inside))) is not None:
            prefix, number = key
            layers.setdefault(prefix, {}).setdefault(number, []).append(name)
            place[name] = prefix
    items: list[Item] = []
    done: set[tuple[str, ...]] = set()
    for name in names:
        prefix = place.get(name)
        if prefix is None:
            items.append(name)
        elif prefix not in done:
            done.add(prefix)
            items += _fold_layers(prefix, layers[prefix], texts)
    return items


def _layer(name: str, after: int) -> tuple[tuple[str, ...], str] | None:
    """(words before, number) of the first number among the words after the settled ones."""
    words = name.split(".")
    for i in range(after, len(words)):
        found = NUMBERED.fullmatch(words[i])
        if found and (not found[2] or i == len(words) - 1):
            return tuple(words[:i]), found[1]
    return None


def _fold_layers(
    prefix: tuple[str, ...], layers: Mapping[str, list[str]], texts: Mapping[str, str]
) -> list[Item]:
    numbers = list(layers)
    signs = [_sign(layers[n], texts) for n in numbers]
    items: list[Item] = []
    at = 0
    while at < len(numbers):
        period, times = _longest_run(signs, at)
        shown = [layers[n] for n in numbers[at : at + period]]
        inner = [item for names in shown for item in _fold(names, (*prefix, ""), texts)]
        if times == 1 or sum(map(len, shown)) * (times - 1) < 2:
            items += inner
        else:
            run = tuple(numbers[at : at + period * times])
            parts = tuple(tuple(layers[n]) for n in run)
            items.append(Repeat(".".join(prefix), run, period, tuple(inner), parts))
        at += period * times
    return items


def _sign(names: Sequence[str], texts: Mapping[str, str]) -> tuple[str, ...]:
    """The rows of a layer with its own parts named by their order, and all others alike."""
    own = {name: str(i) for i, name in enumerate(names)} | {ONE: ONE}
    return tuple(re.sub("«([^»]*)»", lambda m: own.get(m[1], "outside"), texts[n]) for n in names)


def _longest_run(signs: Sequence[Any], at: int) -> tuple[int, int]:
    """(period, times) that covers most layers from here on; (1, 1) where nothing comes again."""
    best = (1, 1)
    for period in range(1, min(LONGEST, (len(signs) - at) // 2) + 1):
        times = 1
        while signs[at + period * times : at + period * (times + 1)] == signs[at : at + period]:
            times += 1
        if times > 1 and period * times > best[0] * best[1]:
            best = (period, times)
    return best
