"""Sums, means, maxima and running sums along dimensions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from onematrix.converters.arithmetic import joined
from onematrix.converters.builder import Builder, Unsupported, last_block
from onematrix.converters.elementwise import activate, times_number, to_dtype
from onematrix.converters.layout import along, last_axis, without
from onematrix.converters.operators import OPERATORS, operator
from onematrix.converters.rearrangements import cat, window
from onematrix.converters.result import Result
from onematrix.converters.sizes import product, subtract
from onematrix.converters.values import BATCH, Spread, Value
from onematrix.programs.block_matrix import Block
from onematrix.structures.averaging import Cumulative, Mean
from onematrix.structures.base import Structure
from onematrix.structures.identity import Ones
from onematrix.structures.per_axis import PerAxis
from onematrix.structures.sizes import Size

Dims = int | Sequence[int] | None


def places(x: Value, dims: Dims) -> list[int]:
    """The dimensions meant, from the first."""
    if dims is None or dims == []:
        return list(range(x.rank))
    return sorted(d % x.rank for d in ([dims] if isinstance(dims, int) else dims))


def reduce(b: Builder, x: Value, dims: list[int], keep: bool, make: Callable[[Size], Structure]) -> Value:
    """One row with the matrix `make(size)` along each reduced axis; the batch must not be among them."""
    x = b.written(x)
    gone = sorted(a for d in dims for a in x.dims[d] if isinstance(a, int) and a != BATCH)
    kept = [a for a in range(len(x.axes)) if a not in gone]
    if gone:
        sizes = [x.axes[a] for a in gone]
        if gone == list(range(len(kept), len(x.axes))):
            block = last_block(make(product(sizes)), [x.axes[a] for a in kept])
        else:
            block = Block(
                PerAxis(tuple(make(s) if a in gone else b.identity(s) for a, s in enumerate(x.axes)))
            )
        part = b.row([x.axes[a] for a in kept], x.dtype, [(x.column, block)])
        new = x.dims
        for a in reversed(gone):
            new = without(new, a)
        x = Value(part, tuple(x.axes[a] for a in kept), new, x.dtype)
    return _removed(x, dims, keep)


def _removed(x: Value, dims: list[int], keep: bool) -> Value:
    lines = [() if i in dims else d for i, d in enumerate(x.dims)]
    return x.with_dims(tuple(d for i, d in enumerate(lines) if keep or i not in dims))


def mean_of(b: Builder, x: Value, dims: list[int], keep: bool) -> Value:
    """The mean over dimensions; over the batch too where one of them holds it."""
    coupled = any(BATCH in x.dims[d] for d in dims)
    x = reduce(b, x, dims, True, Mean)
    if coupled:
        x = activate(b, x, "batch_mean")
    return _removed(x, dims, keep)


@operator("mean.dim", "mean.default")
def mean(
    b: Builder, result: Result, x: Value, dims: Dims = None, keepdim: bool = False, *, dtype: Any = None
) -> Value:
    return mean_of(b, to_dtype(b, x, result.dtype), places(x, dims), keepdim)


@operator("sum.dim_IntList", "sum.default")
def total(
    b: Builder, result: Result, x: Value, dims: Dims = None, keepdim: bool = False, *, dtype: Any = None
) -> Value:
    chosen = places(x, dims)
    x = to_dtype(b, x, result.dtype)
    if any(BATCH in x.dims[d] for d in chosen):
        raise Unsupported("it sums over the samples")
    for d in chosen:
        for atom in x.dims[d]:
            if isinstance(atom, Spread):
                if not isinstance(atom.size, int):
                    raise Unsupported("it sums copies of a free number")
                x = times_number(b, x, atom.size)
    return reduce(b, x, chosen, keepdim, lambda size: Ones(1, size))


def _extreme(b: Builder, x: Value, place: int, keep: bool, join: str, dtype: torch.dtype) -> Value:
    x = last_axis(b, x, place)
    axis = len(x.axes) - 1
    part = b.row(x.axes[:-1], dtype, [b.take(x.column)], join=join)
    return _removed(Value(part, x.axes[:-1], without(x.dims, axis), dtype), [place], keep)


def _peak(sign: int, join: str) -> Any:
    def write(b: Builder, result: Result, x: Value, dims: Dims = None, keepdim: bool = False) -> Value:
        chosen = places(x, dims)
        x = times_number(b, x, -1.0) if sign < 0 else x
        for place in chosen:
            if x.dims[place]:
                x = _extreme(b, x, place, True, join, x.dtype)
        return _removed(times_number(b, x, -1.0) if sign < 0 else x, chosen, keepdim)

    return write


OPERATORS["amax"] = _peak(1, "peak")
OPERATORS["amin"] = _peak(-1, "peak")
OPERATORS["max.default"] = _peak(1, "peak")
OPERATORS["min.default"] = _peak(-1, "peak")


@operator("prod.dim_int")
def prod(
    b: Builder, result: Result, x: Value, dim: int, keepdim: bool = False, *, dtype: Any = None
) -> Value:
    return _extreme(b, to_dtype(b, x, result.dtype), dim % x.rank, keepdim, "product", result.dtype)


@operator("topk")
def topk(
    b: Builder, result: Result, x: Value, k: int, dim: int = -1, largest: bool = True, order: bool = True
) -> list[Value]:
    """The k largest, and their places; of equals the lowest place first."""
    place = dim % x.rank
    x = last_axis(b, x, place)
    key = x if largest else times_number(b, x, -1.0)
    lead = x.axes[:-1]
    index = b.row((*lead, k, x.axes[-1]), torch.int64, [b.take(key.column)], join=f"top_k({k})", kind="index")
    wholes = b.row((*lead, k), torch.int64, [b.take(index)], join="places")
    values = b.row((*lead, k), x.dtype, [b.take(x.column)], [b.take(wholes)], join="take")
    made = [Value(p, (*lead, k), x.dims, t) for p, t in ((values, x.dtype), (wholes, torch.int64))]
    return [_one(b, v) if k == 1 else v for v in made]


def _one(b: Builder, x: Value) -> Value:
    from onematrix.converters.layout import squeezed

    return squeezed(b, x)


@operator("sort", "sort.stable")
def sort(b: Builder, result: Result, x: Value, *rest: Any, **options: Any) -> list[Value]:
    dim = next((v for v in rest if isinstance(v, int) and not isinstance(v, bool)), options.get("dim", -1))
    down = next((v for v in rest[::-1] if isinstance(v, bool)), options.get("descending", False))
    size = x.dimension(dim % x.rank)
    if not isinstance(size, int):
        raise Unsupported("it sorts along a free size")
    return topk(b, result, x, size, dim, down)


def _max_dim(largest: bool) -> Any:
    def write(b: Builder, result: Result, x: Value, dim: int, keepdim: bool = False) -> list[Value]:
        place = dim % x.rank
        return [_removed(v, [place], keepdim) for v in topk(b, result, x, 1, dim, largest)]

    return write


OPERATORS["max.dim"] = _max_dim(True)
OPERATORS["min.dim"] = _max_dim(False)


def _arg(largest: bool) -> Any:
    def write(b: Builder, result: Result, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
        if dim is None:
            raise Unsupported("it flattens")
        return _removed(topk(b, result, x, 1, dim, largest)[1], [dim % x.rank], keepdim)  # type: ignore[no-any-return]

    return write


OPERATORS["argmax"] = _arg(True)
OPERATORS["argmin"] = _arg(False)


@operator("cumsum")
def cumsum(b: Builder, result: Result, x: Value, dim: int, *, dtype: Any = None) -> Value:
    place = dim % x.rank
    return along(b, to_dtype(b, x, result.dtype), place, Cumulative(x.dimension(place)))


@operator("diff")
def diff(
    b: Builder,
    result: Result,
    x: Value,
    n: int = 1,
    dim: int = -1,
    prepend: Value | None = None,
    append: Value | None = None,
) -> Value:
    if n != 1 or append is not None:
        raise Unsupported("differences beyond the first")
    place = dim % x.rank
    size = x.dimension(place)
    if prepend is None:
        return joined_difference(b, result, x, place, size)
    from onematrix.converters.sizes import add

    more = add(size, prepend.dimension(place))
    sizes = tuple(more if i == place else x.dimension(i) for i in range(x.rank))
    whole = cat(b, Result(sizes, x.dtype), [prepend, x], place)
    return joined_difference(b, result, whole, place, more)


def joined_difference(b: Builder, result: Result, x: Value, place: int, size: Size) -> Value:
    """x[1:] − x[:−1] along one dimension."""
    rows = subtract(size, 1)
    return OPERATORS["sub.Tensor"](  # type: ignore[return-value]
        b, result, window(b, x, place, rows, 1), window(b, x, place, rows, 0)
    )


def variance(b: Builder, x: Value, dims: list[int], correction: float, keep: bool) -> Value:
    """Σ (x − mean)² ÷ (n − correction)."""
    centred = OPERATORS["sub.Tensor"](b, Result((), x.dtype), x, mean_of(b, x, dims, True))
    count = 1
    for d in dims:
        size = x.dimension(d)
        if not isinstance(size, int):
            if correction:
                raise Unsupported("it divides by a free size less one")
            count = 0
            break
        count *= size
    square = activate(b, centred, "square")  # type: ignore[arg-type]
    found = mean_of(b, square, dims, keep)
    return times_number(b, found, count / (count - correction)) if correction else found


def _spread(deviation: bool) -> Any:
    def write(
        b: Builder,
        result: Result,
        x: Value,
        dims: Dims = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: float | None = None,
    ) -> Value:
        more = float(unbiased) if correction is None else correction
        found = variance(b, x, places(x, dims), more, keepdim)
        return activate(b, found, "sqrt") if deviation else found

    return write


for _name in ("var.correction", "var.dim"):
    OPERATORS[_name] = _spread(False)
for _name in ("std.correction", "std.dim"):
    OPERATORS[_name] = _spread(True)


@operator("var_mean.correction")
def var_mean(
    b: Builder,
    result: Result,
    x: Value,
    dims: Dims = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> list[Value]:
    more = 1.0 if correction is None else correction
    chosen = places(x, dims)
    return [variance(b, x, chosen, more, keepdim), mean_of(b, x, chosen, keepdim)]


@operator("linalg_vector_norm", "norm.ScalarOpt_dim")
def norm(
    b: Builder,
    result: Result,
    x: Value,
    order: float = 2,
    dims: Dims = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Value:
    if order == 1:
        return total(b, result, activate(b, x, "abs"), dims, keepdim)
    if order != 2:
        raise Unsupported(f"a norm of order {order}")
    return activate(b, total(b, result, activate(b, x, "square"), dims, keepdim), "root")


def _soft(activation: str) -> Any:
    def write(b: Builder, result: Result, x: Value, dim: int, *rest: Any, **options: Any) -> Value:
        x = to_dtype(b, x, result.dtype)
        return activate(b, last_axis(b, x, dim % x.rank), activation)

    return write


for _name, _activation in (("softmax", "softmax"), ("log_softmax", "log_softmax")):
    OPERATORS[f"{_name}.int"] = _soft(_activation)
    OPERATORS[f"_{_name}"] = _soft(_activation)


def _every(every: bool) -> Any:
    def write(b: Builder, result: Result, x: Value, dim: Dims = None, keepdim: bool = False) -> Value:
        marks = joined(b, "equal" if every else "not_equal", torch.bool, x, 0)
        found = total(b, Result((), torch.int64), to_dtype(b, marks, torch.int64), dim, keepdim)
        return joined(b, "equal" if every else "not_equal", torch.bool, found, 0)

    return write


for _name in ("any", "all"):
    for _kind in ("dim", "default"):
        OPERATORS[f"{_name}.{_kind}"] = _every(_name == "all")
