"""Pooling and interpolation: averages are matrices per axis, maxima a join."""

from collections.abc import Sequence
from typing import Any

from onematrix.converters.builder import Builder, Unsupported
from onematrix.converters.convolutions import with_axes
from onematrix.converters.elementwise import times_number
from onematrix.converters.layout import along, squeezed
from onematrix.converters.operators import OPERATORS
from onematrix.converters.result import Result
from onematrix.converters.values import Value
from onematrix.structures.averaging import Mean
from onematrix.structures.resampling import Resampling

Integers = Sequence[int] | int


def _each(numbers: Integers | None, n: int, default: list[int]) -> list[int]:
    if numbers is None or (not isinstance(numbers, int) and not numbers):
        return default
    listed = [numbers] if isinstance(numbers, int) else list(numbers)
    return listed * n if len(listed) == 1 else listed


def _max_pool(n: int, pair: bool) -> Any:
    def write(
        b: Builder,
        result: Result,
        x: Value,
        kernel: Integers,
        stride: Integers | None = None,
        padding: Integers = 0,
        dilation: Integers = 1,
        ceil: bool = False,
    ) -> Value | list[Value]:
        kernels = _each(kernel, n, [])
        numbers = [
            *kernels,
            *_each(stride, n, kernels),
            *_each(padding, n, []),
            *_each(dilation, n, []),
            int(ceil),
        ]
        x = with_axes(b, x, n)
        sizes = result.sizes[len(result.sizes) - n :]
        axes = (*x.axes[: len(x.axes) - n], *sizes)
        part = b.row(axes, x.dtype, [b.take(x.column)], join=f"max_pool({' '.join(map(str, numbers))})")
        found = squeezed(b, Value(part, axes, x.dims, x.dtype))
        return [found] if pair else found

    return write


def _avg_pool(n: int) -> Any:
    def write(
        b: Builder,
        result: Result,
        x: Value,
        kernel: Integers,
        stride: Integers | None = None,
        padding: Integers = 0,
        ceil: bool = False,
        counts_padding: bool = True,
        divisor: int | None = None,
    ) -> Value:
        kernels = _each(kernel, n, [])
        strides, paddings = _each(stride, n, kernels), _each(padding, n, [0] * n)
        if divisor is not None and (ceil or any(paddings)):
            raise Unsupported("it divides windows that are cut by a number")
        whole = 1
        for i in range(n):
            place = x.rank - n + i
            rows, columns = result.sizes[len(result.sizes) - n + i], x.dimension(place)
            if isinstance(rows, str) or isinstance(columns, str):
                raise Unsupported("a spatial size is free")
            whole *= kernels[i]
            a = Resampling("average", rows, columns, kernels[i], strides[i], paddings[i], counts_padding)
            if rows != columns or kernels[i] > 1:
                x = along(b, x, place, a)
        return x if divisor is None else times_number(b, x, whole / divisor)

    return write


def _adaptive(n: int) -> Any:
    def write(b: Builder, result: Result, x: Value, sizes: Integers) -> Value:
        for i in range(n):
            place = x.rank - n + i
            rows, columns = result.sizes[len(result.sizes) - n + i], x.dimension(place)
            if rows == columns:
                continue
            if rows == 1:
                x = along(b, x, place, Mean(columns))
            elif isinstance(rows, int) and isinstance(columns, int):
                x = along(b, x, place, Resampling("adaptive", rows, columns))
            else:
                raise Unsupported("a spatial size is free")
        return x

    return write


def _adaptive_max(n: int) -> Any:
    def write(b: Builder, result: Result, x: Value, sizes: Integers) -> list[Value]:
        kernels = []
        for i in range(n):
            rows, columns = result.sizes[len(result.sizes) - n + i], x.dimension(x.rank - n + i)
            if isinstance(rows, str) or isinstance(columns, str) or columns % rows:
                raise Unsupported("its windows differ in size")
            kernels.append(columns // rows)
        return [_max_pool(n, False)(b, result, x, kernels)]

    return write


def _interpolation(n: int, kind: str) -> Any:
    def write(b: Builder, result: Result, x: Value, sizes: Any, *rest: Any) -> Value:
        corners = kind in ("linear", "cubic") and bool(rest[0])
        factors = next((v for v in rest if isinstance(v, list | tuple)), None)
        name = f"{kind}-corners" if corners else kind
        for i in range(n):
            place = x.rank - n + i
            rows, columns = result.sizes[len(result.sizes) - n + i], x.dimension(place)
            if isinstance(rows, str) or isinstance(columns, str):
                raise Unsupported("a spatial size is free")
            above, below = (1 / factors[i]).as_integer_ratio() if factors else (0, 1)
            x = along(b, x, place, Resampling(name, rows, columns, numerator=above, denominator=below))
        return x

    return write


for _n in (1, 2, 3):
    OPERATORS[f"max_pool{_n}d"] = _max_pool(_n, pair=False)
    OPERATORS[f"max_pool{_n}d_with_indices"] = _max_pool(_n, pair=True)
    OPERATORS[f"avg_pool{_n}d"] = _avg_pool(_n)
    OPERATORS[f"adaptive_avg_pool{_n}d"] = _adaptive(_n)
    OPERATORS[f"adaptive_max_pool{_n}d"] = _adaptive_max(_n)
    OPERATORS[f"upsample_nearest{_n}d.vec"] = _interpolation(_n, "nearest")
    OPERATORS[f"_upsample_nearest_exact{_n}d.vec"] = _interpolation(_n, "nearest-exact")
OPERATORS["_adaptive_avg_pool2d"] = _adaptive(2)
OPERATORS["upsample_linear1d.vec"] = _interpolation(1, "linear")
OPERATORS["upsample_bilinear2d.vec"] = _interpolation(2, "linear")
OPERATORS["upsample_trilinear3d.vec"] = _interpolation(3, "linear")
OPERATORS["upsample_bicubic2d.vec"] = _interpolation(2, "cubic")
