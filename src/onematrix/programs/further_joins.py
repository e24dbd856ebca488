"""Joins beyond the first table: comparisons, reductions, pooling and picking that converted networks use."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Rule:
    """What a join is: number of sums, function of them, and the facts the compiler relies on.

    mixes: which dimensions it mixes; degree: of homogeneity in all sums together, None when not homogeneous;
    ties: its gradient at ties. index_operand: the position of a sum read as integers.
    keeps_operand_shapes: its sums have the shapes of what they read, not that of the row's part.
    arguments: number of its integers, −1 for any number.
    """

    arity: int
    function: Callable[..., Tensor]
    mixes: str = "none"
    degree: int | None = None
    at_zero: float | str = 0.0
    ties: str = ""
    index_operand: int | None = None
    keeps_operand_shapes: bool = False
    arguments: int = 0


POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def _max_pool(x: Tensor, *numbers: int) -> Tensor:
    """x: (B, …, spatial); numbers: kernel, stride, padding, dilation per dimension, then whether sizes round up."""
    n = (len(numbers) - 1) // 4
    kernel, stride, padding, dilation = (list(numbers[i * n : (i + 1) * n]) for i in range(4))
    flat = x.flatten(0, x.dim() - n - 1).unsqueeze(1)
    out = POOL[n](flat, kernel, stride, padding, dilation, ceil_mode=bool(numbers[-1]))
    return out.reshape(*x.shape[: x.dim() - n], *out.shape[2:])


def _kept(x: Tensor) -> Tensor:
    """A number per sample keeps one dimension, as a part does."""
    return x.unsqueeze(-1) if x.dim() == 1 else x


def _take(values: Tensor, index: Tensor) -> Tensor:
    batch = max(values.shape[0], index.shape[0]) if values.shape[0] and index.shape[0] else 0
    lead = index.shape[1:-1]
    values = values.expand(batch, *lead, values.shape[-1])
    return values.gather(-1, index.long().expand(batch, *index.shape[1:]))


def _floor_divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode="floor")


FURTHER: dict[str, Rule] = {
    "less": Rule(2, torch.lt),
    "less_equal": Rule(2, torch.le, at_zero=1.0),
    "greater": Rule(2, torch.gt),
    "greater_equal": Rule(2, torch.ge, at_zero=1.0),
    "equal": Rule(2, torch.eq, at_zero=1.0),
    "not_equal": Rule(2, torch.ne),
    "both": Rule(2, torch.logical_and),
    "either": Rule(2, torch.logical_or),
    "floor_divide": Rule(2, _floor_divide, at_zero="nan", ties="0 everywhere"),
    "remainder": Rule(2, torch.remainder, at_zero="nan"),
    "raise": Rule(2, torch.pow, at_zero=1.0),
    "largest": Rule(
        1, lambda x: _kept(x.max(-1).values), mixes="last", degree=1, ties="to one", keeps_operand_shapes=True
    ),
    "peak": Rule(
        1, lambda x: _kept(x.amax(-1)), mixes="last", degree=1, ties="equal shares", keeps_operand_shapes=True
    ),
    "product": Rule(1, lambda x: _kept(x.prod(-1)), mixes="last", at_zero=0.0, keeps_operand_shapes=True),
    "max_pool": Rule(
        1,
        _max_pool,
        mixes="spatial",
        degree=1,
        ties="the first place",
        keeps_operand_shapes=True,
        arguments=-1,
    ),
    "one_hot": Rule(1, lambda x: x, at_zero="depends", keeps_operand_shapes=True),
    "places": Rule(1, lambda x: x, at_zero="depends", keeps_operand_shapes=True, index_operand=0),
    "take": Rule(2, _take, mixes="last", degree=1, keeps_operand_shapes=True, index_operand=1),
}
