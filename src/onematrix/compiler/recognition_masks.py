"""Recognition of masks: a fixed matrix that shows a band of keys, written as the comparison of positions it is.

A mask held in a buffer is numbers, and numbers may change, so only a frozen program looks at them. Every value the
weights alone decide is computed; one that is true, or 0 and else −∞, exactly where −after ≤ i − j ≤ before gives way to
rows that compare positions, which `masks` reads where attention meets them. Nothing is taken on tolerance.
"""

from dataclasses import replace
from fractions import Fraction
from itertools import count

import torch
from torch import Tensor

from onematrix.compiler.attention import find_attention
from onematrix.compiler.canonical import IDENTITY
from onematrix.compiler.constants import evaluate, fixed_values
from onematrix.compiler.graph import Graph, Row, Sum, Term, Value, operands
from onematrix.compiler.masks import HIDDEN, Band
from onematrix.compiler.pipeline import lower
from onematrix.compiler.products import count_uses
from onematrix.compiler.reading import read_program
from onematrix.compiler.rewriting import rewrite
from onematrix.compiler.writing import write_program
from onematrix.kernels.banded_attention import choose_block
from onematrix.programs.activations import Activation
from onematrix.programs.block_matrix import Block
from onematrix.programs.joins import Join
from onematrix.programs.part import Part
from onematrix.programs.program import Program
from onematrix.structures.base import Structure
from onematrix.structures.identity import Identity, Ones
from onematrix.structures.per_axis import PerAxis

SOFTMAX = ("softmax", "safe_softmax")


def recognise_masks(program: Program) -> Program:
    """The same program with its fixed masks that are causal or a band written as positions, where attention gains.

    The program itself where there is none, or where no attention runs over the band it found.
    """
    graph = read_program(program)
    if not any(isinstance(v, Row) and v.activation.name in SOFTMAX for v in graph.values()):
        return program
    found = _constants(graph)
    tensors = evaluate(graph, found, program)
    new = [_written(row, value) for row, value in zip(found, tensors, strict=True)]
    masks: dict[int, Value] = {id(old): row for old, row in zip(found, new, strict=True) if row is not None}
    if not masks:
        return program
    other = write_program(rewrite(graph, masks))
    return other if _bands(other) > _bands(program) else program


def find_band(shown: Tensor) -> Band | None:
    """The band a boolean (…, T, S) shows, the same for all …; None where it shows none, or not its own place.

    >>> find_band(torch.ones(4, 4, dtype=torch.bool).tril())
    Band(before=None, after=0)
    """
    table = shown.reshape(-1, *shown.shape[-2:])
    first = table[0]
    if not torch.equal(table, first.expand_as(table)) or not bool(first.any()):
        return None
    query, key = (torch.arange(size, device=shown.device) for size in first.shape)
    distance = query[:, None] - key
    before, after = int(distance[first].max()), int(-distance[first].min())
    if min(before, after) < 0 or not torch.equal(first, (distance <= before) & (distance >= -after)):
        return None
    return Band(None if before >= len(query) - 1 else before, after)


# The values the weights alone decide.


def _constants(graph: Graph) -> list[Row]:
    """Rows of at least two dimensions that depend on no input, and are read by one that does."""
    fixed = fixed_values(graph)
    read = [v for value in graph.values() if id(value) not in fixed for v in operands(value)]
    found = {id(v): v for v in read if isinstance(v, Row) and id(v) in fixed}
    return [row for row in found.values() if _shaped(row.part)]


def _shaped(part: Part) -> bool:
    return part.dtype in (None, "bool") and len(part.shape) > 1 and 1 not in part.shape[-2:]


def _bands(program: Program) -> int:
    """Attentions that run over a band."""
    lowered = lower(program)
    attentions = find_attention(lowered, count_uses(lowered))
    return len({a.result for a in attentions.values() if a.scores.band is not None})


# A mask as rows.


def _written(row: Row, value: Tensor) -> Row | None:
    """The rows that compare positions; None where the value is no mask that gains."""
    if value.dtype == torch.bool:
        band = _gaining(value, row.part)
        if band is not None:
            return _shown(row, band)
        band = _gaining(~value, row.part)
        return None if band is None else _hidden(row, band)
    low = float(value.min()) if value.numel() else 0.0
    if not low <= HIDDEN or not bool(((value == 0) | (value == low)).all()):
        return None
    band = _gaining(value == 0, row.part)
    return None if band is None else _added(row, band, low)


def _gaining(shown: Tensor, part: Part) -> Band | None:
    band = find_band(shown)
    return band if band is not None and _gains(band, part) else None


def _inner(row: Row) -> Row:
    return replace(row, part=Part(row.part.shape, dtype="bool"), name=f"{row.name}_shown")


def _hidden(row: Row, band: Band) -> Row:
    return replace(row, sums=(_same(_shown(_inner(row), band)),), activation=Activation("not"), join=None)


def _added(row: Row, band: Band, low: float) -> Row:
    """0 where shown, `low` elsewhere."""
    sums = [_same(_shown(_inner(row), band))]
    sums += [_term(_repeated(row.part), _fill(row, x)) for x in (0.0, low)]
    return Row(row.name, row.part, tuple(sums), IDENTITY, Join("select"))


def _gains(band: Band, part: Part) -> bool:
    """Whether the kernels of a band do less than that of a mask."""
    queries, keys = part.shape[-2:]
    if band == Band(None, 0):
        return True
    assert isinstance(queries, int), "the shape of a constant is fixed"
    before = queries - 1 if band.before is None else band.before
    return queries == keys and choose_block(queries, before, band.after or 0) is not None


def _shown(row: Row, band: Band) -> Row:
    """True where i ≥ j − after and j ≥ i − before."""
    part, names = row.part, (f"{row.name}_{number}" for number in count(1))
    whole = Part(part.shape, dtype="int64")
    query, key = (Row(next(names), whole, (_place(row, axis),), IDENTITY, None) for axis in (-2, -1))
    sides = []
    for here, there, reach in ((query, key, band.after), (key, query, band.before)):
        if reach is not None:
            moved = Row(next(names), whole, (_same(here),), Activation("plus", (float(reach),)), None)
            far = moved if reach else here
            sums = (_same(far), _same(there))
            sides.append(Row(next(names), part, sums, IDENTITY, Join("greater_equal")))
    if len(sides) == 1:
        return replace(sides[0], name=row.name)
    return Row(row.name, part, (_same(sides[0]), _same(sides[1])), IDENTITY, Join("both"))


def _place(row: Row, axis: int) -> Sum:
    """The position along an axis, at every place of the part."""
    shape = row.part.shape
    positions = Row(
        f"{row.name}_place{-axis}", Part((shape[axis],), dtype="int64"), ((),), Activation("positions"), None
    )
    axes: list[Structure] = [Ones(size, 1) for size in shape]
    axes[axis] = Identity(shape[axis])
    return _term(PerAxis(tuple(axes)), positions)


def _fill(row: Row, number: float) -> Row:
    name = f"{row.name}_{'hidden' if number else 'seen'}"
    return Row(name, Part((1,)), ((),), Activation("fill", (number, "same")), None)


def _repeated(part: Part) -> PerAxis:
    return PerAxis(tuple(Ones(size, 1) for size in part.shape))


def _same(row: Row) -> Sum:
    return _term(Identity(row.part.features), row)


def _term(a: Structure, value: Value) -> Sum:
    return (Term(Fraction(1), Block(a), value),)
