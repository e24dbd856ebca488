"""Code for blocks that only move numbers: reshapes, slices, repetitions and permutations of axes."""

from collections.abc import Mapping

from onematrix.compiler.code import size_text
from onematrix.programs.part import Part
from onematrix.programs.wiring import Wire
from onematrix.structures.algebra import (
    BlockDiagonal,
    HorizontalStack,
    Product,
    Sum,
    Transposed,
    VerticalStack,
)
from onematrix.structures.averaging import Mean
from onematrix.structures.base import Structure
from onematrix.structures.identity import Identity, Ones, Scaled
from onematrix.structures.per_axis import PerAxis
from onematrix.structures.window import Window


def moves(a: Structure) -> bool:
    """Whether the structure only moves numbers, in a way torch's views can."""
    if isinstance(a, PerAxis):
        return all(
            isinstance(t, Identity)
            or (isinstance(t, Window) and t.pace == 1 and _within(t))
            or (isinstance(t, Ones) and t.columns == 1)
            for t in a.axes
        )
    return isinstance(a, Identity)


def shares(a: Structure) -> bool:
    """Whether A x may lie in the memory of x, or in one number read many times: not to be written, nor given away.

    >>> [shares(a) for a in (Window(2, 5, 1), Transposed(Mean(3)), Product(Ones(2, 2), Window(2, 5, 1)))]
    [True, True, False]
    """
    if isinstance(a, PerAxis):
        repeats = any(isinstance(t, Ones) and t.columns == 1 for t in a.axes)
        return repeats or all(map(shares, a.axes))
    if isinstance(a, Transposed):
        return isinstance(a.inner, Mean | Transposed | PerAxis) or shares(a.inner)
    if isinstance(a, Sum | BlockDiagonal | VerticalStack | HorizontalStack):
        return len(a.terms) == 1 and shares(a.terms[0])
    if isinstance(a, Product | Scaled):
        return shares(a.left if isinstance(a, Product) else a.inner)
    return isinstance(a, Identity | Window)


def _within(t: Window) -> bool:
    return all(isinstance(size, int) for size in (t.rows, t.columns, t.start))


def view_text(a: Structure, x: str, wire: Wire, source: Part, sizes: Mapping[str, str]) -> str:
    """The value A x as views of x; `moves(a)` must hold."""
    names = dict(sizes)
    kept = [size_text(size, names) for size in source.shape[: wire.kept]]
    batch, before = f"{x}.shape[0]", 1 + len(kept)
    if isinstance(a, PerAxis):
        text = _axes(a, x, [batch, *kept], before, names)
        if wire.tail is None:
            return f"{text}.flatten({before})"
    else:
        text = x
    tail = [size_text(size, names) for size in ((a.shape[0],) if wire.tail is None else wire.tail)]
    return f"{text}.reshape({', '.join([batch, *['1'] * wire.spread, *kept, *tail])})"


def _axes(a: PerAxis, x: str, lead: list[str], before: int, names: dict[str, str]) -> str:
    text = f"{x}.reshape({', '.join([*lead, *(size_text(t.shape[1], names) for t in a.axes)])})"
    for i, t in enumerate(a.axes):
        if isinstance(t, Window) and t.rows != t.columns:
            text += f".narrow({before + i}, {t.start}, {t.rows})"
    if any(isinstance(t, Ones) for t in a.axes):
        wide = [size_text(t.shape[0], names) if isinstance(t, Ones) else "-1" for t in a.axes]
        text += f".expand({', '.join(['-1'] * before + wide)})"
    if a.order:
        text += f".permute({', '.join(map(str, [*range(before), *(before + i for i in a.places)]))})"
    return text
