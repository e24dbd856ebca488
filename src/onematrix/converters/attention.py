"""Attention: two contractions around a softmax, masked by a sum or a selection."""

import math
from dataclasses import replace

import torch

from onematrix.converters.arithmetic import joined, select
from onematrix.converters.builder import Builder, Unsupported
from onematrix.converters.elementwise import activate, dropped, times_number
from onematrix.converters.layout import last_axis
from onematrix.converters.operators import OPERATORS, operator
from onematrix.converters.products import contract
from onematrix.converters.result import Result, uniform
from onematrix.converters.sizes import divide
from onematrix.converters.values import Spread, Value
from onematrix.structures.sizes import Size


@operator("scaled_dot_product_attention")
def attention(
    b: Builder,
    result: Result,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """softmax(q kᵀ c + mask) v; a row whose places are all hidden is zero, as torch has it."""
    if scale is None:
        width = query.dimension(query.rank - 1)
        assert isinstance(width, int), "the width of a head is fixed"
        scale = width**-0.5
    if enable_gqa:
        key, value = (_repeated(v, query) for v in (key, value))
    lead = "abcdef"[: query.rank - 2]
    query = times_number(b, query, scale)
    scores = contract(b, [query, key], [lead + "qd", lead + "kd"], lead + "qk", query.dtype)
    if is_causal and key.dimension(key.rank - 2) != 1:  # the first place is behind none
        mask = causal(b, query.dimension(query.rank - 2), key.dimension(key.rank - 2))
    if mask is not None:
        scores = masked(b, scores, mask)
    weights = last_axis(b, scores, scores.rank - 1)
    weights = activate(b, weights, "softmax" if mask is None else "safe_softmax")
    if dropout > 0:
        weights = dropped(b, result, weights, dropout)
    return contract(b, [weights, value], [lead + "qk", lead + "kd"], lead + "qd", query.dtype)


def masked(b: Builder, scores: Value, mask: Value) -> Value:
    """Scores with a mask: −∞ where a boolean mask is false, the sum with one of numbers."""
    sizes = tuple(scores.dimension(i) for i in range(scores.rank))
    result = Result(sizes, scores.dtype)
    if mask.dtype != torch.bool:
        return OPERATORS["add.Tensor"](b, result, scores, mask)  # type: ignore[return-value]
    return select(b, result, mask, scores, uniform(-math.inf, (), scores.dtype))


def causal(b: Builder, rows: Size, columns: Size) -> Value:
    """True where place k is not behind place q: (rows, columns)."""
    key = ("causal", rows, columns)
    if rows == 1:  # its only place is the first
        k = Value(None, (columns,), ((0,),), torch.int64, ticks=True)
        return replace(joined(b, "less_equal", torch.bool, k, 0), dims=((), (0,)))
    q = Value(None, (rows,), ((0,), ()), torch.int64, ticks=True)
    k = Value(None, (columns,), ((), (0,)), torch.int64, ticks=True)
    if key not in b.constants:
        made = joined(b, "less_equal", torch.bool, k, q)
        assert made.dims == ((0,), (1,)), "rows, then columns"
        b.constants[key] = made.column
    return Value(b.constants[key], (rows, columns), ((0,), (1,)), torch.bool)


def _repeated(value: Value, query: Value) -> Value:
    """Every head of keys or values for its run of query heads."""
    heads, wanted = value.dimension(value.rank - 3), query.dimension(query.rank - 3)
    count = divide(wanted, heads)
    if count is None:
        raise Unsupported(f"{heads} heads of keys do not divide {wanted}")
    if count == 1:
        return value
    place = value.rank - 3
    return value.with_dims(tuple((*d, Spread(count)) if i == place else d for i, d in enumerate(value.dims)))
