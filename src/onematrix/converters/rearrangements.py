"""Views, transposes, slices, joins of tensors end to end: changes of layout, and symbolic selection blocks."""

from collections.abc import Sequence

import torch

from onematrix.converters.builder import Builder, Term, Unsupported, last_block
from onematrix.converters.layout import along, ordered, view
from onematrix.converters.operators import operator
from onematrix.converters.result import Result, broadcast, uniform
from onematrix.converters.sizes import BATCH_NAME, add, product, subtract
from onematrix.converters.values import BATCH, Spread, Value
from onematrix.programs.block_matrix import Block
from onematrix.structures.algebra import Transposed
from onematrix.structures.per_axis import PerAxis
from onematrix.structures.permutation import Selection
from onematrix.structures.sizes import Size
from onematrix.structures.window import Window

END = 2**62  # torch writes an open end of a slice as the largest integer


@operator(
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", "pixel_unflatten"
)
def viewed(b: Builder, result: Result, x: Value, *sizes: object) -> Value:
    return view(b, x, result.sizes)


@operator("permute", "movedim", "swapaxes")
def permute(b: Builder, result: Result, x: Value, order: Sequence[int]) -> Value:
    return x.with_dims(tuple(x.dims[i] for i in order))


@operator("transpose.int")
def transpose(b: Builder, result: Result, x: Value, i: int, j: int) -> Value:
    dims = list(x.dims)
    dims[i], dims[j] = dims[j], dims[i]
    return x.with_dims(tuple(dims))


@operator("t", "numpy_T", "mT")
def transposed(b: Builder, result: Result, x: Value) -> Value:
    return x if x.rank < 2 else transpose(b, result, x, -1, -2)


@operator("unsqueeze")
def unsqueeze(b: Builder, result: Result, x: Value, dim: int) -> Value:
    place = dim if dim >= 0 else dim + x.rank + 1
    return x.with_dims((*x.dims[:place], (), *x.dims[place:]))


@operator("squeeze")
def squeeze(b: Builder, result: Result, x: Value, dims: int | Sequence[int] | None = None) -> Value:
    if dims is None:
        chosen = set(range(x.rank))
    else:
        chosen = {d % x.rank for d in ([dims] if isinstance(dims, int) else dims)}
    return x.with_dims(tuple(dim for i, dim in enumerate(x.dims) if dim or i not in chosen))


@operator("expand", "expand_as", "broadcast_to")
def expand(b: Builder, result: Result, x: Value, *sizes: object, **options: object) -> Value:
    return x.with_dims(broadcast(x.dims, result.sizes))


@operator("repeat", "tile")
def repeat(b: Builder, result: Result, x: Value, *sizes: object) -> Value:
    (counts,) = sizes
    assert isinstance(counts, list | tuple), "a list of repetitions"
    dims = ((),) * (len(counts) - x.rank) + x.dims
    repeated = [((), (BATCH,))[n == BATCH_NAME] if n in (1, BATCH_NAME) else (Spread(n),) for n in counts]
    return x.with_dims(tuple((*r, *d) for r, d in zip(repeated, dims, strict=True)))


@operator("repeat_interleave.self_int")
def repeat_interleave(
    b: Builder, result: Result, x: Value, count: int, dim: int | None = None, **options: object
) -> Value:
    if dim is None:
        raise Unsupported("it flattens")
    place = dim % x.rank
    dims = tuple((*d, Spread(count)) if i == place else d for i, d in enumerate(x.dims))
    return x.with_dims(dims)


@operator("slice.Tensor", "narrow")
def slice_(
    b: Builder,
    result: Result,
    x: Value,
    dim: int = 0,
    start: Size | None = None,
    end: Size | None = None,
    step: int = 1,
) -> Value:
    """x[start : end : step] along one dimension; the number of entries is known from the graph."""
    place = dim % x.rank
    size, rows = x.dimension(place), result.sizes[place]
    if rows == size and step == 1:
        return x
    first: Size = 0 if start is None else start
    if isinstance(first, int) and first < 0:
        first = add(size, first)
    return window(b, x, place, rows, first, step)


def window(b: Builder, x: Value, place: int, rows: Size, first: Size, step: int = 1) -> Value:
    """`rows` entries from `first` on, along one dimension."""
    dim = x.dims[place]
    if rows == 0:
        raise Unsupported("it keeps no entry")
    if rows == x.dimension(place) and step == 1:
        return x
    if BATCH in dim:
        raise Unsupported("it takes some samples of the batch")
    if x.number is not None or all(isinstance(a, Spread) for a in dim):
        kept = () if rows == 1 else (Spread(rows),)
        return x.with_dims((*x.dims[:place], kept, *x.dims[place + 1 :]))
    if x.ticks and first == 0 and step == 1 and rows != 1:
        return Value(None, (rows,), x.dims, x.dtype, ticks=True)
    return along(b, x, place, Window(rows, x.dimension(place), first, step))


@operator("select.int")
def select(b: Builder, result: Result, x: Value, dim: int, index: Size) -> Value:
    place = dim % x.rank
    first = add(x.dimension(place), index) if isinstance(index, int) and index < 0 else index
    kept = window(b, x, place, 1, first)
    return kept.with_dims(tuple(d for i, d in enumerate(kept.dims) if i != place))


@operator("split.Tensor", "split.sizes", "split_with_sizes")
def split(b: Builder, result: Result, x: Value, sizes: Size | Sequence[Size], dim: int = 0) -> list[Value]:
    place = dim % x.rank
    whole = x.dimension(place)
    if not isinstance(sizes, list | tuple):
        if not isinstance(whole, int) or not isinstance(sizes, int):
            raise Unsupported("the number of pieces is not fixed")
        sizes = [min(sizes, whole - at) for at in range(0, whole, sizes)]
    pieces, at = [], 0
    for size in sizes:
        pieces.append(window(b, x, place, size, at))
        at = add(at, size)  # type: ignore[assignment]
    return pieces


@operator("chunk")
def chunk(b: Builder, result: Result, x: Value, count: int, dim: int = 0) -> list[Value]:
    whole = x.dimension(dim % x.rank)
    if not isinstance(whole, int):
        raise Unsupported("the size of the pieces is not fixed")
    return split(b, result, x, -(-whole // count), dim)


@operator("unbind.int")
def unbind(b: Builder, result: Result, x: Value, dim: int = 0) -> list[Value]:
    whole = x.dimension(dim % x.rank)
    if not isinstance(whole, int):
        raise Unsupported("the number of pieces is not fixed")
    return [select(b, result, x, dim, i) for i in range(whole)]


@operator("cat", "concatenate", "concat")
def cat(b: Builder, result: Result, values: Sequence[Value], dim: int = 0) -> Value:
    """Side by side: each tensor in its own window of a part that is zero elsewhere."""
    values = [v for v in values if v.rank == len(result.sizes)]
    place = dim % len(result.sizes)
    if result.sizes[place] == 1 or len(values) == 1:
        return values[0]
    if any(BATCH in v.dims[place] for v in values):
        raise Unsupported("it lays samples side by side")
    whole, at, terms = result.sizes[place], 0, []
    shared = _shared_axes(values, place)
    for value in values:
        size = value.dimension(place)
        terms.append(_placed(b, value, place, shared, Window(size, whole, at)))
        at = add(at, size)  # type: ignore[assignment]
    axes, dims, number = [], [], iter(range(len(shared) + 1))
    for i in range(len(result.sizes)):
        if i == place:
            axes.append(whole)
            dims.append((next(number),))
            continue
        line = []
        for atom_is_batch, size in shared[i]:
            line.append(BATCH if atom_is_batch else next(number))
            axes += [] if atom_is_batch else [size]
        dims.append(tuple(line))
    part = b.row(axes, result.dtype, terms)
    return Value(part, tuple(axes), tuple(dims), result.dtype)


Factors = dict[int, list[tuple[bool, Size]]]


class _Numbers(dict[int, list[tuple[bool, Size]]]):
    """Factors per dimension; its length is the number of axes."""

    def __len__(self) -> int:
        return sum(not batch for line in self.values() for batch, _ in line)


def _shared_axes(values: Sequence[Value], place: int) -> _Numbers:
    """Per dimension but `place` its factors (is the batch, size), each dimension one axis beside the batch."""
    found = _Numbers()
    for i in range(values[0].rank):
        if i == place:
            continue
        has = any(BATCH in v.dims[i] for v in values)
        size = values[0].dimension(i)
        if has and size != BATCH_NAME:
            lines = {tuple((a == BATCH, v.size(a)) for a in v.dims[i]) for v in values}
            if len(lines) > 1:
                raise Unsupported("dimensions that hold the batch differ in their factors")
            found[i] = list(lines.pop())
        else:
            found[i] = [(True, BATCH_NAME)] if has else [] if size == 1 else [(False, size)]
    return found


def _placed(b: Builder, value: Value, place: int, shared: _Numbers, slot: Window) -> Term:
    """The block from a value to its window of the whole."""
    sizes = [slot.rows if i == place else value.dimension(i) for i in range(value.rank)]
    value = view(b, value, sizes) if value.part is None else value
    value = ordered(b, value)
    before = [s for i in range(place) for batch, s in shared[i] if not batch]
    behind = [s for i in range(place + 1, value.rank) for batch, s in shared[i] if not batch]
    structure = Transposed(slot)
    inner = product(behind)
    factor = structure if inner == 1 else PerAxis((structure, b.identity(inner)))
    if before and slot.rows == 1 and inner == 1:
        return value.column, Block(PerAxis((b.identity(product(before)), structure)))
    return value.column, last_block(factor, before)


@operator("stack")
def stack(b: Builder, result: Result, values: Sequence[Value], dim: int = 0) -> Value:
    place = dim % len(result.sizes)
    return cat(b, result, [unsqueeze(b, result, v, place) for v in values], place)


def picked(b: Builder, x: Value, place: int, index: Sequence[int] | torch.Tensor) -> Value:
    """Entries at fixed places along one dimension."""
    places = torch.as_tensor(index, dtype=torch.int64)
    size = x.dimension(place)
    if not isinstance(size, int):
        raise Unsupported("it picks fixed places along a free size")
    return along(b, x, place, Selection(places.reshape(-1), size))


@operator("flip")
def flip(b: Builder, result: Result, x: Value, dims: Sequence[int]) -> Value:
    for dim in dims:
        place = dim % x.rank
        size = x.dimension(place)
        if x.dims[place]:
            x = along(b, x, place, Window(size, size, subtract(size, 1), -1))
    return x


@operator("roll")
def roll(b: Builder, result: Result, x: Value, shifts: Sequence[int], dims: Sequence[int]) -> Value:
    if not dims:
        raise Unsupported("it turns the flat tensor")
    for shift, dim in zip(shifts, dims, strict=True):
        place = dim % x.rank
        size = x.dimension(place)
        if not isinstance(size, int):
            raise Unsupported("it turns along a free size")
        x = picked(b, x, place, [(i - shift) % size for i in range(size)])
    return x


@operator("unfold")
def unfold(b: Builder, result: Result, x: Value, dim: int, size: int, step: int) -> Value:
    place = dim % x.rank
    count = result.sizes[place]
    if not isinstance(count, int):
        raise Unsupported("the number of windows is not fixed")
    x = picked(b, x, place, [i * step + k for i in range(count) for k in range(size)])
    sizes = [x.dimension(i) for i in range(x.rank)]
    x = view(b, x, [*sizes[:place], count, size, *sizes[place + 1 :]])
    return x.with_dims((*x.dims[: place + 1], *x.dims[place + 2 :], x.dims[place + 1]))


@operator("im2col")
def im2col(
    b: Builder,
    result: Result,
    x: Value,
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Value:
    """Windows of an image side by side: (batch, channels × taps, places)."""
    n, c = x.dimension(0), x.dimension(1)
    x = pad(b, result, x, [padding[1], padding[1], padding[0], padding[0]])
    counts = []
    for i in range(2):
        size = x.dimension(2 + i)
        if not isinstance(size, int):
            raise Unsupported("a spatial size is free")
        counts.append((size - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1)
        places = [o * stride[i] + k * dilation[i] for k in range(kernel[i]) for o in range(counts[i])]
        x = picked(b, x, 2 + i, places)
    x = view(b, x, [n, c, kernel[0], counts[0], kernel[1], counts[1]])
    return view(b, permute(b, result, x, [0, 1, 2, 4, 3, 5]), result.sizes)


@operator("pixel_shuffle")
def pixel_shuffle(b: Builder, result: Result, x: Value, factor: int) -> Value:
    *lead, c, h, w = (x.dimension(i) for i in range(x.rank))
    assert isinstance(c, int), "channels are fixed"
    n = len(lead)
    x = view(b, x, [*lead, c // factor**2, factor, factor, h, w])
    return view(b, permute(b, result, x, [*range(n), n, n + 3, n + 1, n + 4, n + 2]), result.sizes)


@operator("pixel_unshuffle")
def pixel_unshuffle(b: Builder, result: Result, x: Value, factor: int) -> Value:
    *lead, _, h, w = result.sizes
    n = len(lead)
    channels = x.dimension(n)
    x = view(b, x, [*lead, channels, h, factor, w, factor])
    return view(b, permute(b, result, x, [*range(n), n, n + 2, n + 4, n + 1, n + 3]), result.sizes)


@operator("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(b: Builder, result: Result, x: Value, groups: int) -> Value:
    sizes = [x.dimension(i) for i in range(x.rank)]
    assert isinstance(sizes[1], int), "channels are fixed"
    x = view(b, x, [sizes[0], groups, sizes[1] // groups, *sizes[2:]])
    return view(b, transpose(b, result, x, 1, 2), result.sizes)


@operator("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad2d")
def pad(
    b: Builder,
    result: Result,
    x: Value,
    pads: Sequence[int],
    mode: str | float = "constant",
    value: float | None = None,
) -> Value:
    """Zeros around: a transposed window per dimension; mirrored, clamped or wrapped: a selection."""
    if isinstance(mode, int | float):
        mode, value = "constant", mode
    if mode == "constant" and value:
        return _padded_with(b, result, x, pads, float(value))
    for i in range(len(pads) // 2):
        before, after = pads[2 * i], pads[2 * i + 1]
        if (before, after) != (0, 0):
            x = _pad_one(b, x, x.rank - 1 - i, before, after, mode)
    return x


def _pad_one(b: Builder, x: Value, place: int, before: int, after: int, mode: str) -> Value:
    size = x.dimension(place)
    if min(before, after) < 0:
        x = window(b, x, place, add(size, min(before, 0) + min(after, 0)), max(-before, 0))
        before, after, size = max(before, 0), max(after, 0), x.dimension(place)
    if mode == "constant":
        return along(b, x, place, Transposed(Window(size, add(size, before + after), before)))
    if not isinstance(size, int):
        raise Unsupported("it mirrors along a free size")
    last = size - 1
    rules = {
        "reflect": lambda i: last - abs(last - abs(i)),
        "replicate": lambda i: min(max(i, 0), last),
        "circular": lambda i: i % size,
    }
    return picked(b, x, place, [rules[mode](i) for i in range(-before, size + after)])


def _padded_with(b: Builder, result: Result, x: Value, pads: Sequence[int], value: float) -> Value:
    from onematrix.converters.arithmetic import select as choose

    ones = ordered(b, uniform(1.0, tuple(x.dimension(i) for i in range(x.rank)), torch.bool))
    mask = pad(b, result, ones, pads)
    return choose(b, result, mask, pad(b, result, x, pads), uniform(value, (), x.dtype))
