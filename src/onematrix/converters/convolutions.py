"""Convolutions and transposed convolutions: one banded block each, the bias a column."""

from collections.abc import Sequence

from onematrix.converters.builder import Builder, Unsupported, last_block
from onematrix.converters.layout import ordered, reshaped
from onematrix.converters.operators import operator
from onematrix.converters.result import Result
from onematrix.converters.sizes import product
from onematrix.converters.values import BATCH, Value
from onematrix.programs.block_matrix import Block
from onematrix.programs.part import ONE
from onematrix.structures.algebra import Transposed
from onematrix.structures.base import Structure
from onematrix.structures.convolution import Convolution
from onematrix.structures.identity import Ones
from onematrix.structures.per_axis import PerAxis
from onematrix.structures.sizes import Size

Integers = Sequence[int] | int


def _each(numbers: Integers, n: int) -> list[int]:
    listed = [numbers] if isinstance(numbers, int) else list(numbers)
    return listed * n if len(listed) == 1 else listed


def _text(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def _convolution(
    b: Builder,
    weight: Value,
    sizes: Sequence[Size],
    stride: Integers,
    padding: Sequence[tuple[int, int]],
    dilation: Integers,
    groups: int,
) -> Convolution:
    held, n = weight.tensor, len(sizes)
    shape = tuple(weight.dimension(i) for i in range(weight.rank))
    if held is None or (shape != tuple(held.shape) and held.numel() != _count(shape)):
        raise Unsupported("its kernel is computed")
    kernel = b.tensor(weight)
    if shape != tuple(held.shape):
        kernel = kernel.reshape([int(s) for s in shape])
    named = dict(zip(("height", "width", "depth"), sizes, strict=False))
    return Convolution(
        kernel,
        **named,  # type: ignore[arg-type]
        stride=_text(_each(stride, n)),
        padding=_text([p for pair in padding for p in pair]),
        dilation=_text(_each(dilation, n)),
        groups=groups,
    )


def _count(shape: Sequence[Size]) -> int:
    total = 1
    for size in shape:
        total *= int(size)
    return total


def framed(b: Builder, x: Value, n: int) -> tuple[Value, list[Size]]:
    """The value over a part whose last axes are channels and n spatial dimensions, and its axes before them."""
    dims = x.dims[x.rank - n - 1 :]
    if any(BATCH in dim for dim in dims):
        raise Unsupported("it runs along the batch")
    x = ordered(b, x)
    inner = sum(len(dim) for dim in x.dims[x.rank - n - 1 :])
    return x, list(x.axes[: len(x.axes) - inner])


def spatial_row(
    b: Builder, x: Value, n: int, a: Structure, bias: Value | None, result: Result, channels: int
) -> Value:
    """A x + b over channels and space, in the shape of the result."""
    x, before = framed(b, x, n)
    sizes = result.sizes[len(result.sizes) - n :]
    wanted = product((channels, *sizes)), product([x.dimension(x.rank - 1 - n + i) for i in range(n + 1)])
    if a.shape != wanted:
        raise Unsupported(f"its sizes {a.shape} are not written as the graph's {wanted}")
    shown = [s for s in (channels, *sizes) if s != 1]
    axes = [*before, *shown]
    terms = [(x.column, last_block(a, before))]
    if bias is not None:
        if bias.tensor is None:
            raise Unsupported("its bias is computed")
        column = b.column(bias)
        inner = product(sizes)
        spread = column if inner == 1 else PerAxis((column, Ones(inner, 1)))
        terms.append((ONE, _everywhere(spread, before)))
    part = b.row(axes, x.dtype, terms)
    place, lines = len(before), []
    for size in (channels, *sizes):
        lines.append(() if size == 1 else (place,))
        place += size != 1
    return Value(part, tuple(axes), (*x.dims[: x.rank - n - 1], *lines), x.dtype)


def _everywhere(column: Structure, before: Sequence[Size]) -> Block:
    if before and column.shape[0] == 1:
        return Block(PerAxis((Ones(product(before), 1), column)))
    return Block(column, on="last")


def _write(
    b: Builder,
    result: Result,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Integers,
    padding: Integers | str,
    dilation: Integers,
    groups: int,
) -> Value:
    n = weight.rank - 2
    if x.rank != n + 2:
        raise Unsupported("its input has no batch")
    sizes = [x.dimension(x.rank - n + i) for i in range(n)]
    kernel = [int(weight.dimension(2 + i)) for i in range(n)]
    dilations = _each(dilation, n)
    if padding == "same":
        whole = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pairs = [(w // 2, w - w // 2) for w in whole]
    elif padding == "valid":
        pairs = [(0, 0)] * n
    else:
        assert not isinstance(padding, str), "same or valid"
        pairs = [(p, p) for p in _each(padding, n)]
    a = _convolution(b, weight, sizes, stride, pairs, dilations, groups)
    return spatial_row(b, x, n, a, bias, result, int(weight.dimension(0)))


@operator("conv1d", "conv2d", "conv3d")
def convolve(
    b: Builder,
    result: Result,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Integers = 1,
    padding: Integers | str = 0,
    dilation: Integers = 1,
    groups: int = 1,
) -> Value:
    return _write(b, result, x, weight, bias, stride, padding, dilation, groups)


@operator("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolve_back(
    b: Builder,
    result: Result,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Integers = 1,
    padding: Integers = 0,
    output_padding: Integers = 0,
    groups: int = 1,
    dilation: Integers = 1,
) -> Value:
    """The transpose of the convolution from the result's frame to the input's."""
    n = weight.rank - 2
    if x.rank != n + 2:
        raise Unsupported("its input has no batch")
    sizes = result.sizes[len(result.sizes) - n :]
    pairs = [(p, p) for p in _each(padding, n)]
    forward = _convolution(b, weight, sizes, stride, pairs, dilation, groups)
    found, wanted = forward.output_sizes, [x.dimension(x.rank - n + i) for i in range(n)]
    if found != wanted:
        raise Unsupported(f"its frame {list(sizes)} gives {found}, not {wanted}")
    return spatial_row(b, x, n, Transposed(forward), bias, result, int(result.sizes[1]))


@operator("convolution")
def convolution(
    b: Builder,
    result: Result,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Integers,
    padding: Integers,
    dilation: Integers,
    transposed: bool,
    output_padding: Integers,
    groups: int,
) -> Value:
    if transposed:
        return convolve_back(b, result, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _write(b, result, x, weight, bias, stride, padding, dilation, groups)


def with_axes(b: Builder, x: Value, n: int) -> Value:
    """The value over a part whose last n axes are the last n dimensions, those of size 1 too."""
    if any(BATCH in dim for dim in x.dims[x.rank - n :]):
        raise Unsupported("it runs along the batch")
    x = ordered(b, x)
    inner = sum(len(dim) for dim in x.dims[x.rank - n :])
    before = x.axes[: len(x.axes) - inner]
    sizes = [x.dimension(x.rank - n + i) for i in range(n)]
    x = reshaped(b, x, (*before, *sizes)) if x.axes != (*before, *sizes) else x
    lines = [(len(before) + i,) for i in range(n)]
    return x.with_dims((*x.dims[: x.rank - n], *lines))
