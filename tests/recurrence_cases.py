"""Elementwise recurrences, their definition tick by tick, and how a run is compared with it."""

import math

import pytest
import torch

from onematrix.kernels import numba_arrays
from onematrix.kernels.elementwise_code import ElementwiseLoop
from onematrix.kernels.elementwise_loop import run_elementwise_loop

NUMBA = pytest.param(
    "numba", marks=pytest.mark.skipif(not numba_arrays.HAS_NUMBA, reason="numba is not installed")
)
KERNELS = ["torch", NUMBA]
FUNCTIONS = {
    "identity": lambda v: v,
    "relu": lambda v: torch.where(v > 0, v, 0.0 * v),
    "leaky_relu": lambda v, slope: torch.where(v > 0, v, slope * v),
    "abs": lambda v: torch.where(v < 0, -v, v),
    "sign": lambda v: torch.sign(v).detach(),
    "square": lambda v: v * v,
    "sqrt": lambda v: v**0.5,
    "rsqrt": lambda v: v**-0.5,
    "reciprocal": lambda v: 1 / v,
    "exp": lambda v: torch.exp(v),
    "sigmoid": lambda v: 1 / (1 + torch.exp(-v)),
    "tanh": lambda v: (torch.exp(v) - torch.exp(-v)) / (torch.exp(v) + torch.exp(-v)),
    "gelu": lambda v: v * 0.5 * (1 + torch.erf(v / 2**0.5)),
    "gelu_tanh": lambda v: v * 0.5 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (v + 0.044715 * v**3))),
    "silu": lambda v: v / (1 + torch.exp(-v)),
    "softplus": lambda v: torch.log1p(torch.exp(v)),
    "elu": lambda v: torch.where(v > 0, v, torch.exp(v) - 1),
    "sin": lambda v: torch.sin(v),
    "cos": lambda v: torch.cos(v),
    "keep": lambda v, p: (v < p).double() / p,
}
JOINS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "maximum": lambda a, b: torch.where(a > b, a, b),
    "minimum": lambda a, b: torch.where(a < b, a, b),
    "scale": lambda a, number: a * number,
    "shift": lambda a, number: a + number,
}
# u + v c → σ = f; c ← f c + (1 − f) w; outputs the new c and the old one
SRU = ElementwiseLoop(
    2, 1, 1,
    (
        ("mul", 2, 3), ("add", 0, 4), ("activation", 5, "sigmoid"), ("mul", 6, 3),
        ("scale", 6, -1.0), ("shift", 8, 1.0), ("mul", 9, 1), ("add", 7, 10),
    ),
    outputs=(11, 3), carry=(11,),
)  # fmt: skip
# Two carried values that change places, a carried vector, an output read twice, a series and a constant as outputs
MIXED = ElementwiseLoop(
    2, 2, 3,
    (
        ("constant", 0.25), ("maximum", 0, 4), ("minimum", 8, 2), ("divide", 1, 3), ("add", 9, 10),
        ("activation", 11, "tanh"), ("mul", 12, 5), ("add", 13, 6),
    ),
    outputs=(12, 12, 0, 7, 2, 14), carry=(14, 12, 3),
)  # fmt: skip


def literal(loop, series, vectors, init, reverse=False, valid=None):
    """The definition: sample by sample, tick by tick, line by line."""
    ticks, batch = series[0].shape[0], len(init[0])
    rows, finals = [], []
    for b in range(batch):
        state, row = [c[b] for c in init], {}
        for t in reversed(range(ticks)) if reverse else range(ticks):
            if valid is not None and not valid[t, b]:
                row[t] = [torch.zeros_like(state[0]) for _ in loop.outputs]
                continue
            r = [s[t, b if s.shape[1] > 1 else 0] for s in series] + list(vectors) + state
            for name, *rest in loop.code:
                if name == "activation":
                    r.append(FUNCTIONS[rest[1]](r[rest[0]], *rest[2:]))
                elif name == "constant":
                    r.append(torch.full_like(state[0], rest[0]))
                elif name in ("scale", "shift"):
                    r.append(JOINS[name](r[rest[0]], rest[1]))
                else:
                    r.append(JOINS[name](r[rest[0]], r[rest[1]]))
            row[t], state = [r[k] for k in loop.outputs], [r[k] for k in loop.carry]
        rows.append([torch.stack([row[t][p] for t in range(ticks)]) for p in range(len(loop.outputs))])
        finals.append(state)
    outputs = [torch.stack([row[p] for row in rows], 1) for p in range(len(loop.outputs))]
    return outputs, [torch.stack([f[k] for f in finals]) for k in range(loop.carried)]


def tensors(loop, sizes=(5, 3, 4), shared=(), dtype=torch.float64, positive=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    ticks, batch, n = sizes

    def draw(*shape):
        value = torch.randn(*shape, generator=g, dtype=dtype)
        return (value.abs() + 0.5 if positive else value).requires_grad_()

    series = [draw(ticks, 1 if j in shared else batch, n) for j in range(loop.series)]
    return series, [draw(n) for _ in range(loop.vectors)], [draw(batch, n) for _ in range(loop.carried)]


def flat(parts):
    return [t for part in parts for t in part]


def gradients(outputs, given):
    """Of a sum with a weight for each number, none of them 0 or equal."""
    total = sum((o * torch.arange(1, o.numel() + 1).reshape(o.shape).sin()).sum() for o in outputs)
    return torch.autograd.grad(total, given, materialize_grads=True)


def check(loop, given, kernel, tolerance=1e-11, **options):
    """Outputs, final values and gradients; for the small loop the values without a graph too."""
    ours, theirs = (
        run_elementwise_loop(loop, *given, kernel=kernel, **options),
        literal(loop, *given, **options),
    )
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    found, expected = gradients(flat(ours), flat(given)), gradients(flat(theirs), flat(given))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    if loop is not SRU:
        return
    with torch.no_grad():
        for a, b in zip(
            flat(run_elementwise_loop(loop, *given, kernel=kernel, **options)), flat(theirs), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
