"""Attention on the lowered program: softmax(Q Kᵀ) V as torch's scaled dot product attention.

Only without a mask: where every key is masked the softmax is nan, and torch's kernel gives 0 instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from onematrix.compiler.products import unscaled
from onematrix.programs.joins import contraction_axes
from onematrix.programs.program import Program
from onematrix.programs.wiring import Wired, WiredLoop, WiredRow, WiredSeq, WiredStep


@dataclass(frozen=True)
class Attention:
    """The row of the result; the rows it takes the place of; axes of queries, keys, values, and of the result.

    Each as (batch axes, sequence axis, feature axis), positions counted without the batch.
    """

    result: str
    inner: tuple[str, str]
    operands: tuple[WiredRow, WiredRow]
    queries: tuple[tuple[int, ...], int, int]
    keys: tuple[tuple[int, ...], int, int]
    values: tuple[tuple[int, ...], int, int]
    output: tuple[tuple[int, ...], int, int]


def find_attention(program: Program, uses: dict[str, int]) -> dict[str, Attention]:
    """Result part → attention, and each inner part → the same."""
    rows = {row.part: row for row in _rows(program.wiring)}
    found: dict[str, Attention] = {}
    for row in rows.values():
        attention = _match(row, rows, uses)
        if attention is not None:
            found |= dict.fromkeys((attention.result, *attention.inner), attention)
    return found


def _rows(wired: Wired) -> list[WiredRow]:
    if isinstance(wired, WiredStep):
        return list(wired.rows)
    if isinstance(wired, WiredSeq):
        return [row for child in wired.body for row in _rows(child)]
    return _rows(wired.body) if isinstance(wired, WiredLoop) else []


def _pattern(row: WiredRow) -> tuple[list[list[str]], list[str]] | None:
    pattern = getattr(row.join, "pattern", None)
    if pattern is None or row.activation is not None or len(row.sums) != 2:
        return None
    return contraction_axes(pattern)


def _passed(row: WiredRow, place: int) -> str | None:
    wires = row.sums[place]
    return wires[0].column if len(wires) == 1 and wires[0].passes else None


def _match(result: WiredRow, rows: dict[str, WiredRow], uses: dict[str, int]) -> Attention | None:
    outer, weights = _pattern(result), rows.get(_passed(result, 0) or "")
    if outer is None or weights is None or uses.get(weights.part) != 1 or weights.join is not None:
        return None
    if weights.activation is None or weights.activation.name != "softmax":
        return None
    scores = rows.get(_passed(weights, 0) or "")
    inner = None if scores is None else _pattern(scores)
    if scores is None or inner is None or uses.get(scores.part) != 1:
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
    if [set(a), set(b), set(v), set(o)] != wanted:
        return None

    def axes(names: list[str], sequence: str, feature: str) -> tuple[tuple[int, ...], int, int]:
        return tuple(names.index(x) for x in batch), names.index(sequence), names.index(feature)

    return Attention(
        result.part,
        (weights.part, scores.part),
        (scores, result),
        axes(a, q, d),
        axes(b, key, d),
        axes(v, key, e),
        axes(o, q, e),
    )


def held_back(program: Program, found: Mapping[str, Attention], uses: Mapping[str, int]) -> dict[str, float]:
    """Queries and keys that are a ratio times something for their attention alone, which takes the ratio itself."""
    rows = {row.part: row for row in _rows(program.wiring)}
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
    rows = {row.part: row for row in _rows(program.wiring)}
    lines = []
    for row in rows.values():
        if _pattern(row) is None or row.part in found:
            continue
        weights = rows.get(_passed(row, 0) or "")
        if weights is not None and weights.activation is not None and weights.activation.name == "softmax":
            lines.append(
                f"{row.part!r}: no attention kernel: its scores are masked, read elsewhere or of other axes"
            )
    return lines
