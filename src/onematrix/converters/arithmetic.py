"""Sums, products, quotients, comparisons and selections of several tensors."""

import math
from typing import Any

import torch

from onematrix.converters.builder import Builder, Unsupported
from onematrix.converters.elementwise import activate, plus_number, scaled, times_number, to_dtype
from onematrix.converters.layout import Alignment, align, along
from onematrix.converters.operators import OPERATORS, operator
from onematrix.converters.result import Result, broadcast, uniform
from onematrix.converters.values import Value
from onematrix.programs.block_matrix import Block
from onematrix.structures.diagonal import Diagonal

Operand = Value | float | int | bool


def joined(b: Builder, join: str, dtype: torch.dtype, *values: Operand) -> Value:
    """The join of tensors and numbers, broadcast."""
    like = next(v.dtype for v in values if isinstance(v, Value))
    kind = like if like.is_floating_point or join in ("select",) else torch.int64
    made = [
        v
        if isinstance(v, Value)
        else uniform(v, (), b.dtype if isinstance(v, float) and not v.is_integer() else kind)
        for v in values
    ]
    if join in ("hadamard", "divide", "select", "maximum", "minimum") and dtype.is_floating_point:
        made = [_promoted(b, v, dtype) for v in made]
    found = align(b, made)
    part = b.row(found.axes, dtype, *([term] for term in found.terms), join=join)
    return Value(part, tuple(found.axes), found.dims, dtype)


def _promoted(b: Builder, value: Value, dtype: torch.dtype) -> Value:
    """In the common dtype before it is repeated, as torch does, so that its gradient is summed in that dtype."""
    real = value.dtype.is_floating_point
    return to_dtype(b, value, dtype) if real and value.dtype != dtype and value.number is None else value


def _number(value: Operand) -> float | None:
    """The number an operand is, if it is one and repeats itself at most."""
    if not isinstance(value, Value):
        return float(value)
    return value.number


@operator("add.Tensor", "add.Scalar")
def plus(b: Builder, result: Result, x: Operand, y: Operand, *, alpha: float = 1) -> Value:
    return _sum(b, result, x, y, alpha)


@operator("sub.Tensor", "sub.Scalar")
def minus(b: Builder, result: Result, x: Operand, y: Operand, *, alpha: float = 1) -> Value:
    return _sum(b, result, x, y, -alpha)


@operator("rsub.Scalar", "rsub.Tensor")
def minus_from(b: Builder, result: Result, x: Value, y: Operand, alpha: float = 1) -> Value:
    return _sum(b, result, times_number(b, x, -float(alpha), result.dtype), y, 1)


def _sum(b: Builder, result: Result, x: Operand, y: Operand, alpha: float) -> Value:
    if isinstance(y, Value) and (number := _number(x)) is not None and _number(y) is None:
        y = times_number(b, y, float(alpha), result.dtype) if alpha != 1 else y
        return _shown(plus_number(b, y, number, result.dtype), result)
    if not isinstance(x, Value):
        raise Unsupported("neither operand is a tensor")
    if (number := _number(y)) is not None:
        if x.number is not None:
            return uniform(x.number + alpha * number, result.sizes, result.dtype)
        return _shown(plus_number(b, x, alpha * number, result.dtype), result)
    assert isinstance(y, Value), "a tensor"
    if torch.bool in (x.dtype, y.dtype):
        x, y = (to_dtype(b, v, result.dtype) if v.dtype == torch.bool else v for v in (x, y))
    if result.dtype.is_floating_point:
        x, y = _promoted(b, x, result.dtype), _promoted(b, y, result.dtype)
    found = align(b, [x, y])
    first, second = found.terms
    if alpha != 1:
        column, block = second
        second = column, Block(scaled(block.structure, float(alpha)), block.on)
    return _added(b, result, found, first, second)


def _added(b: Builder, result: Result, found: Alignment, *terms: tuple[str, Block]) -> Value:
    part = b.row(found.axes, result.dtype, list(terms))
    return Value(part, tuple(found.axes), found.dims, result.dtype)


def _shown(value: Value, result: Result) -> Value:
    """The value repeated to the sizes of the result."""
    return value.with_dims(broadcast(value.dims, result.sizes))


@operator("mul.Tensor", "mul.Scalar")
def multiply(b: Builder, result: Result, x: Operand, y: Operand) -> Value:
    if not isinstance(x, Value) or (_number(x) is not None and _number(y) is None):
        x, y = y, x
    assert isinstance(x, Value), "one operand is a tensor"
    if (number := _number(y)) is not None:
        if x.number is not None:
            return uniform(x.number * number, result.sizes, result.dtype)
        return _shown(times_number(b, x, number, result.dtype), result)
    assert isinstance(y, Value), "a tensor"
    for one, other in ((x, y), (y, x)):
        if (product := by_vector(b, one, other)) is not None:
            return product
    return joined(b, "hadamard", result.dtype, x, y)


def by_vector(b: Builder, x: Value, vector: Value) -> Value | None:
    """x times a parameter of one dimension: a diagonal block; None where it is no such product."""
    held = vector.tensor
    if held is None or held.dim() != 1 or vector.axes != tuple(held.shape) or x.tensor is not None:
        return None
    place = next((i for i, dim in enumerate(reversed(vector.dims), start=1) if dim), None)
    if place is None or place > x.rank or vector.rank > x.rank or x.dtype != vector.dtype:
        return None
    dim = x.dims[-place]
    if len(dim) != 1 or x.size(dim[0]) != vector.axes[0] or not _real_axis(dim[0]) or x.part is None:
        return None
    diagonal = Diagonal(b.tensor(vector))
    return along(b, x, x.rank - place, diagonal)


def _real_axis(atom: object) -> bool:
    return isinstance(atom, int) and atom >= 0


@operator("div.Tensor", "div.Scalar", "true_divide.Tensor", "div.Tensor_mode", "div.Scalar_mode")
def divide(b: Builder, result: Result, x: Operand, y: Operand, *, rounding_mode: str | None = None) -> Value:
    if rounding_mode == "floor":
        return joined(b, "floor_divide", result.dtype, x, y)
    if rounding_mode is not None:
        raise Unsupported(f"it rounds by {rounding_mode}")
    number = _number(y)
    if isinstance(x, Value) and number is not None and number != 0 and x.dtype.is_floating_point:
        return _shown(_over(b, x, number, result), result)
    return joined(b, "divide", result.dtype, x, y)


def _over(b: Builder, x: Value, number: float, result: Result) -> Value:
    mantissa = math.frexp(number)[0]
    if abs(mantissa) == 0.5:  # a power of two, whose inverse is exact
        return times_number(b, x, 1 / number, result.dtype)
    return joined(b, "divide", result.dtype, x, number)


OPERATORS["floor_divide"] = lambda b, result, x, y: joined(b, "floor_divide", result.dtype, x, y)
OPERATORS["remainder"] = lambda b, result, x, y: joined(b, "remainder", result.dtype, x, y)
OPERATORS["pow.Tensor_Tensor"] = lambda b, result, x, y: joined(b, "raise", result.dtype, x, y)
OPERATORS["pow.Scalar"] = lambda b, result, x, y: joined(b, "raise", result.dtype, float(x), y)
OPERATORS["maximum"] = lambda b, result, x, y: joined(b, "maximum", result.dtype, x, y)
OPERATORS["minimum"] = lambda b, result, x, y: joined(b, "minimum", result.dtype, x, y)
OPERATORS["max.other"] = OPERATORS["maximum"]
OPERATORS["min.other"] = OPERATORS["minimum"]
COMPARISONS = {
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "eq": "equal",
    "ne": "not_equal",
    "logical_and": "both",
    "logical_or": "either",
    "logical_xor": "not_equal",
}


def _comparison(join: str) -> Any:
    def write(b: Builder, result: Result, x: Operand, y: Operand) -> Value:
        if isinstance(x, Value) and x.number is not None and join == "both" and x.number == 1:
            assert isinstance(y, Value), "a mask"
            return _shown(to_dtype(b, y, torch.bool), result)
        return joined(b, join, torch.bool, x, y)

    return write


for _name, _join in COMPARISONS.items():
    OPERATORS[_name] = _comparison(_join)


def _bitwise(join: str) -> Any:
    def write(b: Builder, result: Result, x: Operand, y: Operand) -> Value:
        if result.dtype != torch.bool:
            raise Unsupported("bits of integers are joined")
        return OPERATORS["logical_and" if join == "both" else "logical_or"](b, result, x, y)  # type: ignore[return-value]

    return write


for _name in ("bitwise_and", "__and__"):
    OPERATORS[_name] = _bitwise("both")
for _name in ("bitwise_or", "__or__"):
    OPERATORS[_name] = _bitwise("either")


@operator("where")
def where(b: Builder, result: Result, mask: Value, x: Operand, y: Operand) -> Value:
    return select(b, result, mask, x, y)


def select(b: Builder, result: Result, mask: Value, x: Operand, y: Operand) -> Value:
    """x where the mask is true, else y."""
    made = [v if isinstance(v, Value) else uniform(v, (), result.dtype) for v in (x, y)]
    return joined(b, "select", result.dtype, mask, *made)


@operator("masked_fill")
def masked_fill(b: Builder, result: Result, x: Value, mask: Value, number: Operand) -> Value:
    filled = select(b, result, mask, number, x)
    return _shown(filled, result)


@operator("prelu")
def prelu(b: Builder, result: Result, x: Value, weight: Value) -> Value:
    if weight.rank == 1 and x.rank > 1:
        weight = weight.with_dims((weight.dims[0], *((),) * (x.rank - 2)))
    positive = joined(b, "greater", torch.bool, x, 0)
    return select(b, result, positive, x, multiply(b, result, x, weight))


@operator("glu")
def glu(b: Builder, result: Result, x: Value, dim: int = -1) -> Value:
    halves = OPERATORS["split.Tensor"](b, result, x, result.sizes[dim], dim)
    first, second = halves  # type: ignore[misc]
    return joined(b, "hadamard", result.dtype, activate(b, second, "sigmoid"), first)


@operator("lerp.Scalar")
def lerp(b: Builder, result: Result, x: Value, y: Value, weight: float) -> Value:
    return _sum(b, result, x, _sum(b, result, y, x, -1), weight)


@operator("addcmul")
def addcmul(b: Builder, result: Result, x: Value, y: Value, z: Value, *, value: float = 1) -> Value:
    return _sum(b, result, x, multiply(b, result, y, z), value)


@operator("clamp_min.Tensor")
def clamp_min(b: Builder, result: Result, x: Value, low: Value) -> Value:
    return select(b, result, joined(b, "greater_equal", torch.bool, x, low), x, low)


@operator("clamp_max.Tensor")
def clamp_max(b: Builder, result: Result, x: Value, high: Value) -> Value:
    return select(b, result, joined(b, "less_equal", torch.bool, x, high), x, high)
