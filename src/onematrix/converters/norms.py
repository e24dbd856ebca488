"""Normalisation: centred and scaled rows, then a diagonal and a column."""

from collections.abc import Sequence

import torch

from onematrix.converters.arithmetic import by_vector, joined
from onematrix.converters.builder import Builder, Term, last_block
from onematrix.converters.elementwise import activate, plus_number
from onematrix.converters.layout import last_axis, view
from onematrix.converters.operators import OPERATORS, operator
from onematrix.converters.products import bias_term
from onematrix.converters.reductions import mean_of
from onematrix.converters.result import Result
from onematrix.converters.values import Value
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.sizes import Size


def tail_normalised(b: Builder, x: Value, count: int, activation: str) -> Value:
    """σ over the last `count` dimensions as one."""
    sizes = [x.dimension(i) for i in range(x.rank)]
    merged: Size = 1
    for size in sizes[x.rank - count :]:
        from onematrix.converters.sizes import times

        merged = times(merged, size)
    if count > 1:
        x = view(b, x, [*sizes[: x.rank - count], merged])
    x = activate(b, last_axis(b, x, x.rank - 1), activation)
    if merged == 1:
        from onematrix.converters.layout import squeezed

        x = squeezed(b, x)
    return x if count == 1 else view(b, x, sizes)


def scaled_and_shifted(b: Builder, x: Value, place: int, weight: Value | None, bias: Value | None) -> Value:
    """w x + b with one number of each per entry of a dimension."""
    axis = x.dims[place]
    plain = len(axis) == 1 and isinstance(axis[0], int) and axis[0] == len(x.axes) - 1
    if plain and weight is not None and bias is not None and _vector(weight) and _vector(bias):
        assert isinstance(axis[0], int), "an axis"
        diagonal = Diagonal(b.tensor(weight))
        terms: list[Term] = [(x.column, last_block(diagonal, x.axes[: axis[0]])), bias_term(b, bias)]
        return Value(b.row(x.axes, x.dtype, terms), x.axes, x.dims, x.dtype)
    behind = ((),) * (x.rank - 1 - place)
    if weight is not None:
        shown = weight.with_dims((*weight.dims, *behind)) if weight.rank == 1 else weight
        x = by_vector(b, x, shown) or joined(b, "hadamard", x.dtype, x, shown)
    if bias is not None:
        shown = bias.with_dims((*bias.dims, *behind)) if bias.rank == 1 else bias
        x = OPERATORS["add.Tensor"](b, Result((), x.dtype), x, shown)  # type: ignore[assignment]
    return x


def _vector(value: Value) -> bool:
    return value.tensor is not None and value.tensor.dim() == 1 and value.axes == tuple(value.tensor.shape)


@operator("layer_norm")
def layer_norm(
    b: Builder,
    result: Result,
    x: Value,
    shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    epsilon: float = 1e-5,
    *rest: object,
) -> Value:
    x = tail_normalised(b, x, len(shape), f"layer_norm({epsilon!r})")
    return scaled_and_shifted(b, x, x.rank - 1, weight, bias)


@operator("rms_norm")
def rms_norm(
    b: Builder,
    result: Result,
    x: Value,
    shape: Sequence[int],
    weight: Value | None = None,
    epsilon: float | None = None,
) -> Value:
    if epsilon is None:  # of the dtype torch computes in
        epsilon = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
    x = tail_normalised(b, x, len(shape), f"rms_norm({epsilon!r})")
    return scaled_and_shifted(b, x, x.rank - 1, weight, None)


@operator("group_norm")
def group_norm(
    b: Builder,
    result: Result,
    x: Value,
    groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    epsilon: float = 1e-5,
    *rest: object,
) -> Value:
    sizes = [x.dimension(i) for i in range(x.rank)]
    assert isinstance(sizes[1], int), "channels are fixed"
    x = view(b, x, [sizes[0], groups, sizes[1] // groups, *sizes[2:]])
    x = tail_normalised(b, x, x.rank - 2, f"layer_norm({epsilon!r})")
    return scaled_and_shifted(b, view(b, x, sizes), 1, weight, bias)


@operator("instance_norm")
def instance_norm(
    b: Builder,
    result: Result,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    from_input: bool,
    momentum: float,
    epsilon: float,
    *rest: object,
) -> Value:
    if not from_input and mean is not None and variance is not None:
        return by_moments(b, x, mean, variance, weight, bias, epsilon)
    x = tail_normalised(b, x, x.rank - 2, f"layer_norm({epsilon!r})")
    return scaled_and_shifted(b, x, 1, weight, bias)


def by_moments(
    b: Builder,
    x: Value,
    mean: Value,
    variance: Value,
    weight: Value | None,
    bias: Value | None,
    epsilon: float,
) -> Value:
    """w (x − mean) ÷ √(variance + ε) + b per channel, the second dimension."""
    behind = ((),) * (x.rank - 2)
    shown = [v.with_dims((*v.dims, *behind)) if v.rank == 1 else v for v in (mean, variance)]
    plain = Result((), x.dtype)
    x = OPERATORS["sub.Tensor"](b, plain, x, shown[0])  # type: ignore[assignment]
    scale = activate(b, plus_number(b, shown[1], epsilon), "rsqrt")
    x = joined(b, "hadamard", x.dtype, x, scale)
    return scaled_and_shifted(b, x, 1, weight, bias)


@operator("batch_norm")
def batch_norm(
    b: Builder,
    result: Result,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    training: bool,
    momentum: float,
    epsilon: float,
    *rest: object,
) -> Value:
    if training or mean is None or variance is None:
        return batch_norm_in_training(b, result, x, weight, bias, epsilon)[0]
    return by_moments(b, x, mean, variance, weight, bias, epsilon)


@operator("_native_batch_norm_legit_no_training")
def batch_norm_frozen(
    b: Builder,
    result: Result,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value,
    variance: Value,
    momentum: float,
    epsilon: float,
) -> list[Value]:
    return [by_moments(b, x, mean, variance, weight, bias, epsilon)]


@operator(
    "_native_batch_norm_legit_functional", "_native_batch_norm_legit", "_native_batch_norm_legit.no_stats"
)
def batch_norm_in_training(
    b: Builder, result: Result, x: Value, weight: Value | None, bias: Value | None, *rest: object
) -> list[Value]:
    """The moments of the batch: means over samples couple them."""
    epsilon = rest[-1]
    assert isinstance(epsilon, float), "ε comes last"
    dims = [i for i in range(x.rank) if i != 1]
    mean = mean_of(b, x, dims, True)
    centred = OPERATORS["sub.Tensor"](b, Result((), x.dtype), x, mean)
    assert isinstance(centred, Value), "one tensor"
    variance = mean_of(b, activate(b, centred, "square"), dims, True)
    scale = activate(b, plus_number(b, variance, epsilon), "rsqrt")
    found = scaled_and_shifted(b, joined(b, "hadamard", x.dtype, centred, scale), 1, weight, bias)
    return [found, *[None] * 4]  # type: ignore[list-item]  # running moments are state of the module, not of the map


@operator("_weight_norm")
def weight_norm(b: Builder, result: Result, direction: Value, length: Value, dim: int = 0) -> Value:
    return weight_norm_pair(b, result, direction, length, dim)[0]


@operator("_weight_norm_interface")
def weight_norm_pair(
    b: Builder, result: Result, direction: Value, length: Value, dim: int = 0
) -> list[Value]:
    """v g ÷ ‖v‖, the norm over all dimensions but one."""
    dims = [i for i in range(direction.rank) if i != dim % direction.rank]
    plain = Result((), direction.dtype)
    norm = OPERATORS["linalg_vector_norm"](b, plain, direction, 2, dims, True)
    assert isinstance(norm, Value), "one tensor"
    factor = joined(b, "divide", direction.dtype, length, norm)
    return [joined(b, "hadamard", direction.dtype, direction, factor), norm]
