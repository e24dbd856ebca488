"""Activations: the closed table of functions a row may apply to its complete sum."""

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onematrix.errors import DTypeError, ProgramError
from onematrix.programs.further_activations import FURTHER, Rule


def _layer_norm(x: Tensor, epsilon: float) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=epsilon)


def _rms_norm(x: Tensor, epsilon: float) -> Tensor:
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x  # as torch's own
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def _cast(x: Tensor, dtype: str) -> Tensor:
    return x.to(getattr(torch, dtype))


def _keep(x: Tensor, probability: float) -> Tensor:
    """1/p where the uniform number is below p, else 0: the factor of dropout."""
    return (x < probability).to(x.dtype) / probability


RULES: dict[str, Rule] = {
    "identity": Rule(lambda x: x, degree=1),
    "relu": Rule(torch.relu, degree=1, ties="0 at 0"),
    "leaky_relu": Rule(
        lambda x, slope: functional.leaky_relu(x, slope), degree=1, ties="slope at 0", arguments=1
    ),
    "abs": Rule(torch.abs, degree=1, ties="0 at 0"),
    "sign": Rule(torch.sign, degree=0, ties="0 everywhere"),
    "square": Rule(torch.square, degree=2),
    "sqrt": Rule(torch.sqrt, ties="∞ at 0"),
    "rsqrt": Rule(torch.rsqrt, at_zero=math.inf),
    "reciprocal": Rule(torch.reciprocal, degree=-1, at_zero=math.inf),
    "exp": Rule(torch.exp, at_zero=1.0),
    "sigmoid": Rule(torch.sigmoid, at_zero=0.5),
    "tanh": Rule(torch.tanh),
    "gelu": Rule(functional.gelu),
    "gelu_tanh": Rule(lambda x: functional.gelu(x, approximate="tanh")),
    "silu": Rule(functional.silu),
    "softplus": Rule(functional.softplus, at_zero=math.log(2)),
    "elu": Rule(functional.elu),
    "sin": Rule(torch.sin),
    "cos": Rule(torch.cos, at_zero=1.0),
    "softmax": Rule(
        lambda x: torch.softmax(x, -1), mixes="last", at_zero="depends", ties="nan where all are −∞"
    ),
    "log_softmax": Rule(
        lambda x: torch.log_softmax(x, -1), mixes="last", at_zero="depends", ties="nan where all are −∞"
    ),
    "layer_norm": Rule(_layer_norm, mixes="last", arguments=1),
    "rms_norm": Rule(_rms_norm, mixes="last", arguments=1),
    "cast": Rule(_cast, degree=1, arguments=1),
    "keep": Rule(_keep, at_zero="depends", ties="0 everywhere", arguments=1),
}


@dataclass(frozen=True)
class Activation:
    """A name of the table with its arguments; prints as it is written: layer_norm(1e-05).

    >>> str(make_activation("layer_norm(1e-05)"))
    'layer_norm(1e-05)'
    """

    name: str
    arguments: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in RULES and self.name not in FURTHER:
            known = ", ".join([*sorted(RULES), *sorted(FURTHER)])
            raise ProgramError(f"activation {self.name!r} is unknown; there are: {known}")
        if len(self.arguments) != self.rule.arguments:
            raise ProgramError(
                f"activation {self.name} takes {self.rule.arguments} arguments, got {self.arguments}"
            )
        for place, value in enumerate(self.arguments, start=1):
            if self.rule.typed and place == len(self.arguments):
                _check_dtype(self.name, value)
            elif not (self.rule.infinite and isinstance(value, int | float) and not math.isnan(value)):
                _check_argument(self.name, value)

    @property
    def rule(self) -> Rule:
        """The entry of the table."""
        return RULES[self.name] if self.name in RULES else FURTHER[self.name]

    def __call__(self, x: Tensor) -> Tensor:
        return self.rule.function(x, *self.arguments)

    def __str__(self) -> str:
        return self.name + (f"({', '.join(str(a) for a in self.arguments)})" if self.arguments else "")


def make_activation(value: "Activation | str | None") -> Activation:
    """An activation from its text; None is the identity."""
    if isinstance(value, Activation):
        return value
    if value is None:
        return Activation("identity")
    match = re.fullmatch(r"(\w+)(?:\((.*)\))?", value.strip())
    if match is None:
        raise ProgramError(f"activation {value!r}: a name such as relu or layer_norm(1e-05) was needed")
    arguments = [a.strip() for a in match[2].split(",")] if match[2] else []
    return Activation(match[1], tuple(_number(a) for a in arguments))


def _check_argument(name: str, value: object) -> None:
    """Raise unless the value is what the activation takes: a torch dtype for cast, else a finite number."""
    if name == "cast":
        if not isinstance(getattr(torch, str(value), None), torch.dtype):
            raise DTypeError(f"activation cast({value}): a torch dtype such as float64 was needed")
    elif not isinstance(value, int | float) or not math.isfinite(value):
        raise ProgramError(f"activation {name}({value}): a finite number was needed")
    elif name == "keep" and not 0 < value <= 1:
        raise ProgramError(f"activation keep({value}): a probability in (0, 1] was needed")


def _check_dtype(name: str, value: object) -> None:
    if value != "same" and not isinstance(getattr(torch, str(value), None), torch.dtype):
        raise DTypeError(f"activation {name}(…, {value}): a torch dtype such as float64, or same, was needed")


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
