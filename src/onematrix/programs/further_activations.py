"""Activations beyond the first table: functions that converted networks apply, with torch's own rules."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Rule:
    """What an activation is: function of (value, *arguments), and the facts the compiler relies on.

    mixes: "none" (elementwise), "last" (whole last dimension) or "batch" (couples the samples). degree: of
    homogeneity for positive factors, None when not homogeneous. at_zero: σ(0), "depends" when the width or an
    argument decides. ties: its gradient where it is not differentiable, or its value on an empty or all −∞
    reduction. arguments: their number; infinite: they may be ±∞; typed: the last one is a dtype.
    """

    function: Callable[..., Tensor]
    mixes: str = "none"
    degree: int | None = None
    at_zero: float | str = 0.0
    ties: str = ""
    arguments: int = 0
    infinite: bool = False
    typed: bool = False


def _number(x: Tensor, c: float) -> float | int:
    """The number as torch would read it beside x: an integer tensor stays one."""
    return int(c) if not x.is_floating_point() and math.isfinite(c) and float(c).is_integer() else c


def _fill(x: Tensor, value: float, dtype: str) -> Tensor:
    kind = x.dtype if dtype == "same" else getattr(torch, dtype)
    return torch.full_like(x, value, dtype=kind)


def _positions(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1], device=x.device).expand(x.shape)


def _safe_softmax(x: Tensor) -> Tensor:
    """Softmax whose rows of −∞ alone are zero; their gradient is zero too."""
    hidden = (x == -math.inf).all(-1, keepdim=True)
    return torch.softmax(x.masked_fill(hidden, 0.0), -1).masked_fill(hidden, 0.0)


def _clamp(x: Tensor, low: float, high: float) -> Tensor:
    lower = None if low == -math.inf else _number(x, low)
    upper = None if high == math.inf else _number(x, high)
    return torch.clamp(x, lower, upper)


def _root(x: Tensor) -> Tensor:
    """√x whose gradient at 0 is 0, as that of a norm."""
    zero = x == 0
    return torch.where(zero, 0.0, torch.sqrt(torch.where(zero, 1.0, x)))


def _batch_mean(x: Tensor) -> Tensor:
    return x.mean(0, keepdim=True)


def _elu(x: Tensor, alpha: float, scale: float, inner: float) -> Tensor:
    result: Any = torch.ops.aten.elu(x, alpha, scale, inner)
    return result  # type: ignore[no-any-return]


FURTHER: dict[str, Rule] = {
    "log": Rule(torch.log, at_zero=-math.inf),
    "log1p": Rule(torch.log1p),
    "expm1": Rule(torch.expm1),
    "exp2": Rule(torch.exp2, at_zero=1.0),
    "log2": Rule(torch.log2, at_zero=-math.inf),
    "erf": Rule(torch.erf),
    "tan": Rule(torch.tan),
    "atan": Rule(torch.atan),
    "sinh": Rule(torch.sinh),
    "cosh": Rule(torch.cosh, at_zero=1.0),
    "floor": Rule(torch.floor, ties="0 everywhere"),
    "ceil": Rule(torch.ceil, ties="0 everywhere"),
    "round": Rule(torch.round, ties="0 everywhere; halves to even"),
    "mish": Rule(functional.mish),
    "selu": Rule(functional.selu),
    "hardswish": Rule(functional.hardswish),
    "hardsigmoid": Rule(functional.hardsigmoid, at_zero=0.5),
    "log_sigmoid": Rule(functional.logsigmoid, at_zero=-math.log(2)),
    "softsign": Rule(functional.softsign),
    "not": Rule(torch.logical_not, at_zero=1.0),
    "stop": Rule(torch.detach, degree=1, ties="0 everywhere"),
    "positions": Rule(_positions, mixes="last", at_zero="depends"),
    "safe_softmax": Rule(_safe_softmax, mixes="last", at_zero="depends", ties="0 where all are −∞"),
    "batch_mean": Rule(_batch_mean, mixes="batch", degree=1),
    "root": Rule(_root, ties="0 at 0"),
    "power": Rule(lambda x, c: torch.pow(x, _number(x, c)), at_zero="depends", arguments=1),
    "plus": Rule(lambda x, c: x + _number(x, c), at_zero="depends", arguments=1),
    "times": Rule(lambda x, c: x * _number(x, c), degree=1, arguments=1),
    "fill": Rule(_fill, at_zero="depends", ties="0 everywhere", arguments=2, infinite=True, typed=True),
    "clamp": Rule(_clamp, at_zero="depends", ties="1 at a bound", arguments=2, infinite=True),
    "hardtanh": Rule(functional.hardtanh, at_zero="depends", ties="0 at a bound", arguments=2),
    "threshold": Rule(functional.threshold, at_zero="depends", ties="0 at the threshold", arguments=2),
    "hardshrink": Rule(functional.hardshrink, ties="0 at ±λ", arguments=1),
    "softshrink": Rule(functional.softshrink, ties="0 at ±λ", arguments=1),
    "celu": Rule(functional.celu, arguments=1),
    "elu_scaled": Rule(_elu, arguments=3),
    "softplus_scaled": Rule(functional.softplus, at_zero="depends", arguments=2),
}
