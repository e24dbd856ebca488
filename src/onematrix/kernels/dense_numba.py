"""The dense recurrence of a few samples as one compiled loop: every tick a product of the matrix and a vector.

Torch takes 5 to 10 µs a tick, whatever it computes. A loop that keeps the matrix in the cache takes 0.5 µs at 64
features and 5 at 256, where torch's product of a matrix and a vector takes 9.
"""

import functools
import importlib
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
from torch import Tensor

from onematrix.kernels.dense_plan import Activations, DensePlan
from onematrix.kernels.numba_arrays import distinct, flat, format_of, refusal, strided
from onematrix.kernels.scalar_functions import REORDERED, SAFE, scalar_functions

FEW = 512  # numbers of a state, of all samples, up to which the loop is the faster
WORTHWHILE = 2048  # numbers of all states from which on the loop is worth its compilation, a second or two
KINDS = {"identity": 0, "tanh": 1, "relu": 2, "sigmoid": 3}


def serves(init: Tensor, plan: DensePlan) -> bool:
    """Whether the compiled loop is the faster one, and has the activations."""
    numbers = init.numel()
    worthwhile = 0 < numbers <= FEW and plan.ticks * numbers >= WORTHWHILE
    return worthwhile and refusal(init) is None and all(name in KINDS for _, name in plan.activations)


def run_forward(
    inputs: Tensor, weight: Tensor, init: Tensor, plan: DensePlan, states: Tensor, whole: bool
) -> None:
    """Write every state into `states` (ticks, B, n); or by turns into its two rows, (2, B, n)."""
    fed, over_ticks, over_samples = strided(inputs, len(init))
    _loops(format_of(init))[0](
        *(plan.ticks, len(inputs), plan.after == "hold", plan.reverse, plan.zero, whole),
        *(len(init), *flat([weight.contiguous(), init.contiguous()]), fed, over_ticks, over_samples),
        *(*_pieces(plan.activations), states.view(-1).numpy()),
    )


def run_backward(
    weight: Tensor, states: Tensor, given: Tensor | None, plan: DensePlan, delta: Tensor
) -> None:
    """Write Δ of every tick into `delta` (ticks, B, n), which holds the gradient of the last state at its place.

    given: gradients of the states, or None.
    """
    grads, over_ticks, over_samples = strided(states if given is None else given, states.shape[1])
    _loops(format_of(weight))[1](
        *(plan.ticks, plan.reverse, given is not None, states.shape[1]),
        *(*flat([weight.contiguous(), states]), grads, over_ticks, over_samples),
        *(*_pieces(plan.activations), delta.view(-1).numpy()),
    )


@functools.cache
def _pieces(activations: Activations) -> tuple[Any, Any]:
    """Where slices begin and end, and what each goes through."""
    edges = list(accumulate((width for width, _ in activations), initial=0))
    return np.array(edges, np.int64), np.array([KINDS[name] for _, name in activations], np.int64)


@functools.cache
def _loops(dtype: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """Forward and backward, compiled when first called."""
    numba: Any = importlib.import_module("numba")
    options = {"error_model": "numpy", "nogil": True, "pipeline_class": distinct()}
    summing, exact = {**options, "fastmath": REORDERED}, {**options, "fastmath": SAFE}
    functions = scalar_functions(dtype)
    product, turned = numba.njit(**summing)(_product), numba.njit(**summing)(_turned_product)
    activate = numba.njit(**exact)(_activate(functions))
    slope = numba.njit(**exact)(_slope(functions))
    return (
        numba.njit(**exact)(_forward(product, activate, functions["zero"])),
        numba.njit(**exact)(_backward(turned, slope, functions["zero"])),
    )


def _forward(product: Any, activate: Any, zero: Any) -> Callable[..., None]:
    def forward(
        ticks: Any, fed_ticks: Any, hold: Any, reverse: Any, from_zero: Any, whole: Any, batch: Any, weight: Any,
        init: Any, fed: Any, over_ticks: Any, over_samples: Any, edges: Any, kinds: Any, states: Any,
    ) -> None:  # fmt: skip
        n, last = edges[-1], 0
        for place in range(ticks):
            t = ticks - 1 - place if reverse else place
            room = t if whole else place % 2
            row = min(t, fed_ticks - 1) * over_ticks
            for b in range(batch):
                out = states[(room * batch + b) * n : (room * batch + b + 1) * n]
                before = init[b * n : (b + 1) * n]
                if place:
                    before = states[(last * batch + b) * n : (last * batch + b + 1) * n]
                start = row + b * over_samples
                for i in range(n):
                    out[i] = fed[start + i] if t < fed_ticks or hold else zero
                if place or not from_zero:
                    product(weight, before, out)
                activate(out, edges, kinds)
            last = room

    return forward


def _backward(turned_product: Any, slope: Any, zero: Any) -> Callable[..., None]:
    def backward(
        ticks: Any, reverse: Any, has_grads: Any, batch: Any, weight: Any, states: Any, grads: Any,
        over_ticks: Any, over_samples: Any, edges: Any, kinds: Any, delta: Any,
    ) -> None:  # fmt: skip
        n, last = edges[-1], 0
        for place in range(ticks):
            t = place if reverse else ticks - 1 - place
            for b in range(batch):
                out = delta[(t * batch + b) * n : (t * batch + b + 1) * n]
                if place:
                    start = t * over_ticks + b * over_samples
                    for i in range(n):
                        out[i] = grads[start + i] if has_grads else zero
                    turned_product(weight, delta[(last * batch + b) * n : (last * batch + b + 1) * n], out)
                slope(states[(t * batch + b) * n : (t * batch + b + 1) * n], edges, kinds, out)
            last = t

    return backward


def _product(weight: Any, x: Any, out: Any) -> None:
    """out ← out + W x."""
    n = len(x)
    for i in range(n):
        row, total = weight[i * n : (i + 1) * n], out[i]
        for j in range(n):
            total += row[j] * x[j]
        out[i] = total


def _turned_product(weight: Any, x: Any, out: Any) -> None:
    """out ← out + Wᵀ x, four rows at a time: out is read and written once for them."""
    n = len(x)
    four = n - n % 4
    for i in range(0, four, 4):
        w0, w1 = weight[i * n : (i + 1) * n], weight[(i + 1) * n : (i + 2) * n]
        w2, w3 = weight[(i + 2) * n : (i + 3) * n], weight[(i + 3) * n : (i + 4) * n]
        x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        for j in range(n):
            out[j] += (w0[j] * x0 + w1[j] * x1) + (w2[j] * x2 + w3[j] * x3)
    for i in range(four, n):
        row, factor = weight[i * n : (i + 1) * n], x[i]
        for j in range(n):
            out[j] += row[j] * factor


def _activate(functions: dict[str, Any]) -> Callable[..., None]:
    tanh, sigmoid, zero = functions["tanh"], functions["sigmoid"], functions["zero"]

    def activate(values: Any, edges: Any, kinds: Any) -> None:
        for piece in range(len(kinds)):
            part = values[edges[piece] : edges[piece + 1]]
            if kinds[piece] == 1:
                for i in range(len(part)):
                    part[i] = tanh(part[i])
            elif kinds[piece] == 2:
                for i in range(len(part)):
                    part[i] = zero if part[i] < zero else part[i]
            elif kinds[piece] == 3:
                for i in range(len(part)):
                    part[i] = sigmoid(part[i])

    return activate


def _slope(functions: dict[str, Any]) -> Callable[..., None]:
    zero, one = functions["zero"], functions["one"]

    def slope(results: Any, edges: Any, kinds: Any, grads: Any) -> None:
        """grads ← σ' grads, σ' from the activation's result."""
        for piece in range(len(kinds)):
            y, part = results[edges[piece] : edges[piece + 1]], grads[edges[piece] : edges[piece + 1]]
            if kinds[piece] == 1:
                for i in range(len(part)):
                    part[i] = part[i] * (one - y[i] * y[i])
            elif kinds[piece] == 2:
                for i in range(len(part)):
                    part[i] = zero if y[i] <= zero else part[i]
            elif kinds[piece] == 3:
                for i in range(len(part)):
                    part[i] = part[i] * ((one - y[i]) * y[i])

    return slope
