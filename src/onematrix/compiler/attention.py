"""Attention on the lowered program: softmax(c Q Kᵀ + mask) V as torch's scaled dot product attention.

Where every key is masked the softmax is nan, and torch's kernel gives 0 instead. So a softmax with a mask is taken
only where the mask is known to show every query a key: causal masks, and bands that hold its own place
(`masks`). The softmax that gives 0 itself ("safe_softmax") is taken under any mask.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onematrix.compiler.masks import HIDDEN, Band, Masks
from onematrix.compiler.products import unscaled
from onematrix.programs.joins import contraction_axes
from onematrix.programs.program import Program
from onematrix.programs.wiring import Wire, Wired, WiredRow, WiredSeq, WiredStep, every_row
from onematrix.structures.identity import Identity

Axes = tuple[tuple[int, ...], int, int]


@dataclass(frozen=True)
class Mask:
    """A mask as the program computes it: wires of a row; shown: the boolean that shows a key, None: added."""

    row: WiredRow
    wires: tuple[Wire, ...]
    shown: bool | None


@dataclass(frozen=True)
class Scores:
    """From a softmax down to the product of queries and keys: the rows passed, the factor, and what is masked."""

    product: WiredRow
    passed: tuple[str, ...] = ()
    scale: float = 1.0
    band: Band | None = None
    mask: Mask | None = None


@dataclass(frozen=True)
class Attention:
    """The row of the result; the rows it takes the place of; axes of queries, keys, values, result and scores.

    Each as (batch axes, sequence axis, feature axis), positions counted without the batch; of the scores queries
    are the sequence and keys the feature.
    """

    result: str
    inner: tuple[str, ...]
    operands: tuple[WiredRow, WiredRow]
    queries: Axes
    keys: Axes
    values: Axes
    output: Axes
    scored: Axes
    scores: Scores


def find_attention(
    program: Program, uses: dict[str, int], bands: bool = True, never_empty: bool = False
) -> dict[str, Attention]:
    """Result part → attention, and each inner part → the same. bands: masks that are known are used as such.

    never_empty: every softmax is taken as one that leaves no row without a key.
    """
    every = every_row(program.wiring)
    rows = {row.part: row for row in every}
    written = Counter(row.part for row in every)
    once = {name: row for name, row in rows.items() if written[name] == 1 and name not in program.inputs}
    masks = Masks(program, once if bands else {})
    found: dict[str, Attention] = {}
    for row in rows.values():
        attention = _match(row, rows, uses, masks, never_empty)
        if attention is not None:
            found |= dict.fromkeys((attention.result, *attention.inner), attention)
    return found | _unread(program, found, every)


def _unread(
    program: Program, found: Mapping[str, Attention], every: Sequence[WiredRow]
) -> dict[str, Attention]:
    """Rows only the scores of attentions read, such as those of a mask that is known; they need no code."""
    if not found:
        return {}
    rows = {row.part: row for row in every}
    results = {attention.result for attention in found.values()}
    inner = found.keys() - results
    readers = Counter(name for row in every if row.part not in inner for name in _read(row, found))
    readers.update([*program.outputs, *_loop_reads(program.wiring)])
    waiting = [(name, found[part]) for part in inner for name in _columns(rows[part])]
    dropped: dict[str, Attention] = {}
    while waiting:
        name, owner = waiting.pop()
        if readers[name] or name in found or name in dropped or name not in rows:
            continue
        dropped[name] = owner
        below = _columns(rows[name])
        readers.subtract(below)
        waiting += [(column, owner) for column in below]
    return dropped


def _columns(row: WiredRow) -> list[str]:
    return [wire.column for wires in row.sums for wire in wires]


def _read(row: WiredRow, found: Mapping[str, Attention]) -> list[str]:
    """What the code of a row reads; of an attention its queries, keys and values, and a mask that is not known."""
    attention = found.get(row.part)
    if attention is None:
        return _columns(row)
    scores, result = attention.operands
    mask = () if attention.scores.mask is None else attention.scores.mask.wires
    return [wire.column for wires in (*scores.sums, result.sums[1], mask) for wire in wires]


def _loop_reads(wired: Wired) -> set[str]:
    """Parts the maps of loops read."""
    if isinstance(wired, WiredStep):
        return set()
    if isinstance(wired, WiredSeq):
        return {name for child in wired.body for name in _loop_reads(child)}
    maps = (*wired.init, *wired.feeds, *wired.outputs, *wired.carry)
    own = {wire.column for row in maps for wires in row.sums for wire in wires}
    valid = {wired.loop.valid} if wired.loop.valid is not None else set()
    return own | valid | _loop_reads(wired.body)


def _pattern(row: WiredRow) -> tuple[list[list[str]], list[str]] | None:
    pattern = getattr(row.join, "pattern", None)
    if pattern is None or row.activation is not None or len(row.sums) != 2:
        return None
    return contraction_axes(pattern)


def _passed(row: WiredRow, place: int) -> str | None:
    wires = row.sums[place]
    return wires[0].column if len(wires) == 1 and wires[0].passes else None


# From the softmax to the product.


class _Descent:
    """Follows scores down through scales and masks; every part on the way is read once."""

    def __init__(
        self, rows: Mapping[str, WiredRow], uses: Mapping[str, int], masks: Masks, safe: bool
    ) -> None:
        self.rows, self.uses, self.masks, self.safe = rows, uses, masks, safe
        self.parts = masks.program.parts

    def find(self, weights: WiredRow) -> Scores | None:
        scores = Scores(weights)
        wires: Sequence[Wire] | None = weights.sums[0]
        row = weights
        while wires is not None:
            step = self.sum(row, wires, scores)
            if step is None:
                return None
            name, scores = step
            row = self.rows[name]
            scores = replace(scores, product=row, passed=(*scores.passed, name))
            if _pattern(row) is not None:
                return scores if self.shows(row.part, scores) else None
            wires, scores = self.row(row, scores)
        return None

    def shows(self, name: str, scores: Scores) -> bool:
        """Whether every query sees a key."""
        *_, queries, keys = self.parts[name].shape
        band = scores.band
        if band is None or queries == keys:
            return band is None or band == Band(None, 0) or None not in (band.before, band.after)
        return band == Band(None, 0)

    def sum(self, row: WiredRow, wires: Sequence[Wire], scores: Scores) -> tuple[str, Scores] | None:
        """The term of a sum that leads to the product; the others are a mask."""
        for place, wire in enumerate(wires):
            ratio, a = unscaled(self.masks.program.structures[wire.slot])
            name, rest = wire.column, (*wires[:place], *wires[place + 1 :])
            same = isinstance(a, Identity) and name in self.rows and self.uses.get(name) == 1
            if not same or self.parts[name].shape != self.parts[row.part].shape or wire.spread:
                continue
            if not self.leads(name):
                continue
            masked = self.added(row, rest, scores) if rest else scores
            return None if masked is None else (name, replace(masked, scale=masked.scale * ratio))
        return None

    def leads(self, name: str, steps: int = 8) -> bool:
        """Whether there is a product some steps below this part."""
        level, seen = {name}, set[str]()
        for _ in range(steps):
            rows = [self.rows[part] for part in level - seen if part in self.rows]
            if any(_pattern(row) is not None for row in rows):
                return True
            seen |= level
            level = {column for row in rows for column in _columns(row)}
        return False

    def added(self, row: WiredRow, rest: tuple[Wire, ...], scores: Scores) -> Scores | None:
        band = self.masks.added(rest, self.parts[row.part].shape)
        return self.masked(scores, band, Mask(row, rest, None))

    def masked(self, scores: Scores, band: Band | None, mask: Mask) -> Scores | None:
        if scores.mask is not None or scores.scale <= 0:
            return None
        if band is not None:
            return replace(scores, band=band if scores.band is None else _both(band, scores.band))
        plain = self.safe and scores.band is None and (mask.shown is not None or scores.scale == 1)
        return replace(scores, mask=mask) if plain else None

    def row(self, row: WiredRow, scores: Scores) -> tuple[Sequence[Wire] | None, Scores]:
        """The sum of a row that leads on, and what the row does to it; None where it is nothing known."""
        shape = self.parts[row.part].shape
        if row.activation is not None:
            scaled = row.activation.name == "times" and row.join is None
            factor = row.activation.arguments[0] if scaled else 1.0
            return (row.sums[0] if scaled else None), replace(scores, scale=scores.scale * factor)
        if row.join is None:
            return row.sums[0], scores
        name = row.join.name
        if name in ("divide", "hadamard"):
            number = self.masks.number(row.sums[1], shape)
            if number is None or number == 0:
                return None, scores
            factor = number if name == "hadamard" else 1 / number
            return row.sums[0], replace(scores, scale=scores.scale * factor)
        return self.select(row, scores) if name == "select" else (None, scores)

    def select(self, row: WiredRow, scores: Scores) -> tuple[Sequence[Wire] | None, Scores]:
        shape = self.parts[row.part].shape
        for place, shown in ((1, True), (2, False)):
            number = self.masks.number(row.sums[3 - place], shape)
            if number is not None and number <= HIDDEN:
                band = self.masks.selected(row.sums[0], shape, shown)
                masked = self.masked(scores, band, Mask(row, row.sums[0], shown))
                return (None, scores) if masked is None else (row.sums[place], masked)
        return None, scores


def _both(a: Band, b: Band) -> Band:
    """The places both show."""

    def least(one: int | None, other: int | None) -> int | None:
        return min((side for side in (one, other) if side is not None), default=None)

    return Band(least(a.before, b.before), least(a.after, b.after))


def _match(
    result: WiredRow, rows: Mapping[str, WiredRow], uses: Mapping[str, int], masks: Masks, never_empty: bool
) -> Attention | None:
    outer, weights = _pattern(result), rows.get(_passed(result, 0) or "")
    if outer is None or weights is None or uses.get(weights.part) != 1 or weights.join is not None:
        return None
    if weights.activation is None or weights.activation.name not in ("softmax", "safe_softmax"):
        return None
    safe = never_empty or weights.activation.name == "safe_softmax"
    scores = _Descent(rows, uses, masks, safe).find(weights)
    inner = None if scores is None else _pattern(scores.product)
    if scores is None or inner is None:
        return None
    (a, b), s = inner
    (p, v), o = outer
    if len(p) != len(s) or len(set(s)) != len(s) or len(set(p)) != len(p):
        return None
    named = dict(zip(p, s, strict=True))  # the result's axis names in terms of those of the scores
    v, o = ([named.get(x, f"{x}'") for x in axes] for axes in (v, o))
    key = s[-1]
    shared = set(a) & set(b)
    features, batch = shared - set(s), [x for x in s if x in shared]
    query = [x for x in s[:-1] if x not in shared]
    ends = [x for x in v if x not in batch and x != key]
    if len(features) != 1 or len(query) != 1 or len(ends) != 1 or key in a or len(batch) > 1:
        return None
    if any(len(set(axes)) != len(axes) for axes in (a, b, v, o)):
        return None
    (d,), (q,), (e,) = features, query, ends
    wanted = [{*batch, q, d}, {*batch, key, d}, {*batch, key, e}, {*batch, q, e}]
    if [set(a), set(b), set(v), set(o)] != wanted or (scores.band is not None and s[-2] != q):
        return None

    def axes(names: list[str], sequence: str, feature: str) -> Axes:
        return tuple(names.index(x) for x in batch), names.index(sequence), names.index(feature)

    return Attention(
        result.part,
        (weights.part, *scores.passed),
        (scores.product, result),
        axes(a, q, d),
        axes(b, key, d),
        axes(v, key, e),
        axes(o, q, e),
        axes(s, q, key),
        scores,
    )


def held_back(program: Program, found: Mapping[str, Attention], uses: Mapping[str, int]) -> dict[str, float]:
    """Queries and keys that are a ratio times something for their attention alone, which takes the ratio itself."""
    rows = {row.part: row for row in every_row(program.wiring)}
    ratios: dict[str, float] = {}
    for attention in found.values():
        for name in scaled_parts(attention):
            row = rows.get(name)
            if row is None or row.join is not None or row.activation is not None or uses.get(name) != 1:
                continue
            common = {unscaled(program.structures[wire.slot])[0] for wire in row.sums[0]}
            if len(common) == 1 and common != {1.0}:
                ratios[name] = common.pop()
    return ratios


def scaled_parts(attention: Attention) -> list[str]:
    """The parts of queries and keys, where they are read as they are."""
    scores = attention.operands[0]
    return [name for place in (0, 1) if (name := _passed(scores, place)) is not None]


def refused_attention(program: Program, found: Mapping[str, Attention]) -> list[str]:
    """Of every product with a softmax that is no attention of torch's kernel, a line."""
    rows = {row.part: row for row in every_row(program.wiring)}
    lines = []
    for row in rows.values():
        if _pattern(row) is None or row.part in found:
            continue
        weights = rows.get(_passed(row, 0) or "")
        if weights is None or weights.activation is None:
            continue
        if weights.activation.name in ("softmax", "safe_softmax"):
            lines.append(
                f"{row.part!r}: no attention kernel: its scores are masked, read elsewhere or of other axes"
            )
    return lines
