"""Embeddings, gathers and masks by place."""

from collections.abc import Sequence
from typing import Any

import torch

from onematrix.converters.arithmetic import joined, select
from onematrix.converters.builder import Builder, Unsupported
from onematrix.converters.layout import align, arrange, last_axis, one_axis, reorder, squeezed, view
from onematrix.converters.operators import OPERATORS, operator
from onematrix.converters.rearrangements import picked
from onematrix.converters.result import Result, uniform
from onematrix.converters.values import BATCH, Value
from onematrix.programs.block_matrix import Block
from onematrix.structures.embedding import Embedding


@operator("embedding")
def embedding(
    b: Builder, result: Result, weight: Value, index: Value, padding: int = -1, *rest: object
) -> Value:
    """The columns of a table that one-hot vectors pick."""
    held = weight.tensor
    if held is None or (weight.dims != ((0,), (1,)) and held.dim() != 2):
        raise Unsupported("its table is computed")
    classes, width = held.shape
    if 1 in (classes, width):
        raise Unsupported("a table with one row or column")
    index = b.written(index)
    axes = index.axes or (1,)
    key = ("one_hot", index.column, classes)
    if key not in b.constants:
        source = b.take(index.column)
        b.constants[key] = b.row(
            (*axes, classes), torch.int64, [source], join="one_hot", kind="index", stem=f"{b.stem}.classes"
        )
    table = Embedding(b.tensor(weight), padding)
    part = b.row((*axes, width), weight.dtype, [(b.constants[key], Block(table, on="last"))])
    made = Value(part, (*axes, width), (*index.dims, (len(axes),)), weight.dtype)
    return made if index.axes else squeezed(b, made)


@operator("index_select")
def index_select(b: Builder, result: Result, x: Value, dim: int, index: Value) -> Value:
    return index_tensor(b, result, x, [None] * (dim % x.rank) + [index])


@operator("index.Tensor", "_unsafe_index.Tensor")
def index_tensor(b: Builder, result: Result, x: Value, indices: Sequence[Value | None]) -> Value:
    """Places that are fixed, that count up, or (beside the batch) that each sample chooses."""
    given = [(d, v) for d, v in enumerate(indices) if v is not None]
    if len(given) == 1 and given[0][1].tensor is not None and not given[0][1].tensor.dtype.is_floating_point:
        return _fixed(b, x, *given[0])
    if all(v.ticks for _, v in given):
        return _counted(b, result, x, given)
    if [d for d, _ in given] == [0, 1] and given[0][1].ticks and given[0][1].has_batch:
        return _chosen(b, result, x, given[1][1])
    raise Unsupported("places are chosen by numbers of the network")


def _fixed(b: Builder, x: Value, dim: int, index: Value) -> Value:
    held = index.tensor
    assert held is not None, "a buffer"
    if held.dtype == torch.bool:
        raise Unsupported("a mask of fixed places")
    sizes = [x.dimension(i) for i in range(x.rank)]
    places = held.reshape(-1)
    whole = sizes[dim]
    assert isinstance(whole, int), "fixed places of a fixed size"
    x = picked(b, x, dim, torch.where(places < 0, places + whole, places))
    return view(b, x, [*sizes[:dim], *held.shape, *sizes[dim + 1 :]])


def _counted(b: Builder, result: Result, x: Value, given: Sequence[tuple[int, Value]]) -> Value:
    """x[…, 0 1 2 …, …]: each indexed dimension goes where its counter runs."""
    rank = max(v.rank for _, v in given)
    lines: list[tuple[Any, ...]] = [()] * rank
    for dim, ticks in given:
        dims = ((),) * (rank - ticks.rank) + ticks.dims
        (place,) = [i for i, line in enumerate(dims) if line]
        if lines[place] or ticks.dimension(place - rank + ticks.rank) != x.dimension(dim):
            raise Unsupported("counters meet, or do not run to the end")
        lines[place] = x.dims[dim]
    chosen = [d for d, _ in given]
    adjacent = chosen == list(range(chosen[0], chosen[-1] + 1))
    rest = [d for d in range(x.rank) if d not in chosen]
    before = [x.dims[d] for d in rest if adjacent and d < chosen[0]]
    behind = [x.dims[d] for d in rest if not adjacent or d > chosen[0]]
    return x.with_dims((*before, *lines, *behind))


def _chosen(b: Builder, result: Result, x: Value, index: Value) -> Value:
    """x[sample, place of the sample]: one gather per sample."""
    if index.rank != 1 or x.dims[0] != (BATCH,):
        raise Unsupported("places are chosen by numbers of the network")
    x = one_axis(b, x, 1)
    axis = x.dims[1][0]
    assert isinstance(axis, int), "one axis"
    x = reorder(b, x, [axis, *(a for a in range(len(x.axes)) if a != axis)]) if axis else x
    index = b.written(index)
    hot = b.row((1, x.axes[0]), torch.int64, [b.take(index.column)], join="one_hot", kind="index")
    part = b.row((1, *x.axes[1:]), x.dtype, [b.take(x.column)], [b.take(hot)], join="gather")
    made = Value(part, (1, *x.axes[1:]), (*x.dims[:1], (0,), *x.dims[2:]), x.dtype)
    made = squeezed(b, made)
    return made.with_dims((made.dims[0], *made.dims[2:]))


@operator("gather")
def gather(b: Builder, result: Result, x: Value, dim: int, index: Value, **options: object) -> Value:
    """out[…, k, …] = x[…, index[…, k, …], …]."""
    place = dim % x.rank
    order = [i for i in range(x.rank) if i != place] + [place]
    x, index = (v.with_dims(tuple(v.dims[i] for i in order)) for v in (x, index))
    for i in range(x.rank - 1):
        if x.dimension(i) != index.dimension(i):
            raise Unsupported("it gathers from a part of the tensor")
    x, index = last_axis(b, x, x.rank - 1), last_axis(b, index, index.rank - 1)
    whole, count = x.axes[-1], index.axes[-1]
    heads = [_headed(x), _headed(index)]
    found = align(b, heads)
    if [v.axes for v in found.values] != [v.axes for v in heads]:
        raise Unsupported("its dimensions come in different factors")
    lead = found.axes
    parts = []
    for value, size in ((x, whole), (index, count)):
        head = _headed(value)
        targets = _targets(b, found, head, value)
        axes = [*lead, size]
        parts.append(b.row(axes, value.dtype, [arrange(b, value, [*targets, (size, len(value.axes) - 1)])]))
    part = b.row([*lead, count], x.dtype, [b.take(parts[0])], [b.take(parts[1])], join="take")
    dims = [*found.dims, (len(lead),)]
    back = [order.index(i) for i in range(len(order))]
    return squeezed(b, Value(part, (*lead, count), tuple(dims[i] for i in back), x.dtype))


def _headed(value: Value) -> Value:
    """The value without its last dimension and axis, for aligning what is before them."""
    return Value(value.column, value.axes[:-1], value.dims[:-1], value.dtype)


def _targets(b: Builder, found: Any, head: Value, value: Value) -> list[Any]:
    """Axes of the aligned lead as axes of the value."""
    slots: list[Any] = [None] * len(found.axes)
    for result_dim, own in zip(found.dims, head.dims, strict=True):
        for slot, atom in zip(result_dim, own, strict=False):
            if isinstance(slot, int) and slot >= 0 and isinstance(atom, int):
                slots[slot] = atom
    return list(zip(found.axes, slots, strict=True))


def _triangle(lower: bool) -> Any:
    def write(b: Builder, result: Result, x: Value, diagonal: int = 0) -> Value:
        rows, columns = x.dimension(x.rank - 2), x.dimension(x.rank - 1)
        i = Value(None, (rows,), ((0,), ()), torch.int64, ticks=True)
        j = Value(None, (columns,), ((), (0,)), torch.int64, ticks=True)
        shifted = OPERATORS["add.Tensor"](b, Result((rows, 1), torch.int64), i, diagonal)
        mask = joined(b, "less_equal" if lower else "greater_equal", torch.bool, j, shifted)  # type: ignore[arg-type]
        return select(b, result, mask, x, uniform(0.0, (), x.dtype))

    return write


OPERATORS["tril"] = _triangle(lower=True)
OPERATORS["triu"] = _triangle(lower=False)
