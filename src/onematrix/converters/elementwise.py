"""Elementwise operators of one tensor: activations, casts, constants."""

import math
from fractions import Fraction
from typing import Any

import torch

from onematrix.converters.builder import Builder, Unsupported
from onematrix.converters.operators import OPERATORS, operator
from onematrix.converters.result import Result, uniform
from onematrix.converters.sizes import BATCH_NAME
from onematrix.converters.values import BATCH, Value
from onematrix.programs.block_matrix import Block
from onematrix.structures.base import Structure
from onematrix.structures.identity import Ones, scale
from onematrix.structures.sizes import Size

PLAIN = {
    "relu": "relu", "sigmoid": "sigmoid", "tanh": "tanh", "silu": "silu", "exp": "exp", "sqrt": "sqrt",
    "rsqrt": "rsqrt", "abs": "abs", "sign": "sign", "sgn": "sign", "square": "square", "sin": "sin", "cos": "cos",
    "reciprocal": "reciprocal", "log": "log", "log1p": "log1p", "expm1": "expm1", "exp2": "exp2", "log2": "log2",
    "erf": "erf", "tan": "tan", "atan": "atan", "sinh": "sinh", "cosh": "cosh", "floor": "floor", "ceil": "ceil",
    "round": "round", "mish": "mish", "selu": "selu", "hardswish": "hardswish", "hardsigmoid": "hardsigmoid",
    "log_sigmoid": "log_sigmoid", "logical_not": "not", "bitwise_not": "not", "detach": "stop",
    "relu6": "hardtanh(0.0, 6.0)",
}  # fmt: skip


def activate(b: Builder, x: Value, activation: str, dtype: torch.dtype | None = None) -> Value:
    """σ(x), the same axes."""
    x = b.written(x)
    dtype = x.dtype if dtype is None else dtype
    part = b.row(x.axes, dtype, [b.take(x.column)], activation=activation)
    return Value(part, x.axes, x.dims, dtype)


def _plain(activation: str) -> Any:
    def write(b: Builder, result: Result, x: Value) -> Value:
        if activation == "not" and x.dtype != torch.bool:
            raise Unsupported("its bits are turned")
        return activate(b, x, activation, result.dtype)

    return write


for _name, _activation in PLAIN.items():
    OPERATORS[_name] = _plain(_activation)


@operator("gelu")
def gelu(b: Builder, result: Result, x: Value, approximate: str = "none") -> Value:
    return activate(b, x, "gelu" if approximate == "none" else "gelu_tanh")


@operator("leaky_relu")
def leaky_relu(b: Builder, result: Result, x: Value, slope: float = 0.01) -> Value:
    return activate(b, x, f"leaky_relu({slope!r})")


@operator("elu")
def elu(b: Builder, result: Result, x: Value, alpha: float = 1, scale: float = 1, inner: float = 1) -> Value:
    return activate(b, x, f"elu_scaled({float(alpha)}, {float(scale)}, {float(inner)})")


@operator("celu")
def celu(b: Builder, result: Result, x: Value, alpha: float = 1.0) -> Value:
    return activate(b, x, f"celu({float(alpha)})")


@operator("hardtanh")
def hardtanh(b: Builder, result: Result, x: Value, low: float = -1, high: float = 1) -> Value:
    return activate(b, x, f"hardtanh({float(low)}, {float(high)})")


@operator("threshold")
def threshold(b: Builder, result: Result, x: Value, limit: float, value: float) -> Value:
    return activate(b, x, f"threshold({float(limit)}, {float(value)})")


@operator("softplus")
def softplus(b: Builder, result: Result, x: Value, beta: float = 1, limit: float = 20) -> Value:
    plain = (beta, limit) == (1, 20)
    return activate(b, x, "softplus" if plain else f"softplus_scaled({float(beta)}, {float(limit)})")


@operator("hardshrink")
def hardshrink(b: Builder, result: Result, x: Value, limit: float = 0.5) -> Value:
    return activate(b, x, f"hardshrink({float(limit)})")


@operator("softshrink")
def softshrink(b: Builder, result: Result, x: Value, limit: float = 0.5) -> Value:
    return activate(b, x, f"softshrink({float(limit)})")


@operator("rrelu")
def rrelu(
    b: Builder, result: Result, x: Value, low: float = 1 / 8, high: float = 1 / 3, train: bool = False
) -> Value:
    if train:
        raise Unsupported("its slope is drawn for every number")
    return activate(b, x, f"leaky_relu({(low + high) / 2!r})")


@operator("clamp.default", "clamp_min.default")
def clamp(b: Builder, result: Result, x: Value, low: float | None = None, high: float | None = None) -> Value:
    low, high = (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))
    return activate(b, x, f"clamp({low}, {high})")


@operator("clamp_max.default")
def clamp_max(b: Builder, result: Result, x: Value, high: float) -> Value:
    return clamp(b, result, x, None, high)


@operator("pow.Tensor_Scalar")
def power(b: Builder, result: Result, x: Value, exponent: float) -> Value:
    return activate(b, x, "square" if exponent == 2 else f"power({float(exponent)})", result.dtype)


@operator("neg")
def negative(b: Builder, result: Result, x: Value) -> Value:
    return times_number(b, x, -1.0)


def scaled(structure: Structure, number: float) -> Structure:
    """c A by the ratio of the shortest decimal that means c: 1e-05 is 1 ÷ 100000, whose nearest float it is."""
    return scale(structure, Fraction(repr(float(number))))


def plain(number: float) -> bool:
    """Whether a number is a short exact ratio, so that it may stand in a block."""
    if not math.isfinite(number):
        return False
    ratio = Fraction(repr(float(number)))
    return max(abs(ratio.numerator), ratio.denominator) < 10**18


def times_number(b: Builder, x: Value, number: float, dtype: torch.dtype | None = None) -> Value:
    """c x: an exact ratio times the identity where x has the program's dtype."""
    x = b.written(x)
    dtype = x.dtype if dtype is None else dtype
    if number == 1 and dtype == x.dtype:
        return x
    if x.dtype != b.dtype or dtype != b.dtype or not plain(number):
        return activate(b, x, f"times({float(number)!r})", dtype)
    width: Size = x.axes[-1] if x.axes else 1
    block = Block(
        b.shared("scaled", width, number, make=lambda: scaled(b.identity(width), number)), on="last"
    )
    return Value(b.row(x.axes, dtype, [(x.column, block)]), x.axes, x.dims, dtype)


def plus_number(b: Builder, x: Value, number: float, dtype: torch.dtype | None = None) -> Value:
    """x + c: a block from the constant part where x has the program's dtype."""
    dtype = x.dtype if dtype is None else dtype
    if number == 0 and dtype == x.dtype:
        return x
    x = b.written(x)
    if x.dtype != b.dtype or dtype != b.dtype or not plain(number):
        return activate(b, x, f"plus({float(number)!r})", dtype)
    terms = [b.take(x.column), number_term(b, x, number)]
    return Value(b.row(x.axes, dtype, terms), x.axes, x.dims, dtype)


def number_term(b: Builder, x: Value, number: float) -> tuple[str, Block]:
    """The same number at every place of x, as a block from `one`."""
    width: Size = x.axes[-1] if x.axes else 1
    return "one", Block(
        b.shared("uniform", width, number, make=lambda: scaled(Ones(width, 1), number)), on="last"
    )


@operator("_to_copy", "to.dtype", "to.device", "to.dtype_layout", "to.other", "type_as")
def cast(b: Builder, result: Result, x: Value, *rest: Any, **options: Any) -> Value:
    return to_dtype(b, x, result.dtype)


def to_dtype(b: Builder, x: Value, dtype: torch.dtype) -> Value:
    """x in another dtype."""
    if x.dtype == dtype:
        return x
    if x.number is not None:
        number = bool(x.number) if dtype == torch.bool else x.number
        whole = dtype.is_floating_point or float(number).is_integer()
        return Value(None, (), x.dims, dtype, number=float(number if whole else math.trunc(number)))
    return activate(b, x, f"cast({str(dtype).removeprefix('torch.')})", dtype)


@operator("clone", "contiguous", "alias", "lift_fresh_copy", "lift_fresh", "dropout", "feature_dropout")
def same(b: Builder, result: Result, x: Value, *rest: Any, **options: Any) -> Value:
    if rest[1:2] == (True,) and rest[0] > 0:
        return dropped(b, result, x, float(rest[0]))
    return x


def dropped(b: Builder, result: Result, x: Value, probability: float) -> Value:
    """x times 1/q where a uniform number is below q = 1 − p, else 0."""
    x = b.written(x)
    noise = b.new_part(x.axes, b.dtype, "noise", f"{b.stem}.noise")
    sums = [b.take(noise)], [b.take(x.column)]
    part = b.row(x.axes, x.dtype, *sums, activation=f"keep({1 - probability!r})")
    return Value(part, x.axes, x.dims, x.dtype)


@operator("native_dropout")
def native_dropout(b: Builder, result: Result, x: Value, p: float, train: bool) -> list[Value]:
    return [dropped(b, result, x, p) if train and p > 0 else x]


@operator("zeros", "zeros_like", "new_zeros", "empty", "empty_like", "new_empty")
def zeros(b: Builder, result: Result, *rest: Any, **options: Any) -> Value:
    return uniform(0.0, result.sizes, result.dtype)


@operator("ones", "ones_like", "new_ones")
def ones(b: Builder, result: Result, *rest: Any, **options: Any) -> Value:
    return uniform(1.0, result.sizes, result.dtype)


@operator("full", "full_like", "new_full", "scalar_tensor")
def full(b: Builder, result: Result, *rest: Any, **options: Any) -> Value:
    number = next(v for v in reversed(rest) if isinstance(v, int | float))
    return uniform(number, result.sizes, result.dtype)


@operator("arange")
def arange(b: Builder, result: Result, *rest: Any, **options: Any) -> Value:
    first, step = (rest[0] if len(rest) > 1 else 0), (rest[2] if len(rest) > 2 else 1)
    size = result.sizes[0]
    if size == BATCH_NAME and (first, step) == (0, 1):
        return Value(None, (), ((BATCH,),), result.dtype, ticks=True)
    if not isinstance(first, int | float) or not isinstance(step, int | float):
        raise Unsupported("it starts at a size")
    ticks = Value(
        None, (size,) if size != 1 else (), ((0,),) if size != 1 else ((),), torch.int64, ticks=True
    )
    if size == 1:
        return uniform(float(first), result.sizes, result.dtype)
    value = to_dtype(b, ticks, result.dtype) if result.dtype != torch.int64 else ticks
    if step != 1:
        value = activate(b, value, f"times({float(step)!r})")
    return value if first == 0 else activate(b, value, f"plus({float(first)!r})")
