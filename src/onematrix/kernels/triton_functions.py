"""Functions of numbers that Triton's own language lacks, or has as estimates only, for its kernels."""

from __future__ import annotations

import functools
from typing import Any

from onematrix.kernels.triton_language import jit, language

tl = language()


def expm1(x):  # type: ignore[no-untyped-def]
    """2^k (e^r − 1) + (2^k − 1), k = round(x / ln 2), as in `scalar_functions`: for |x| < 60, beyond that −1."""
    x = tl.where(x > 60.0, 60.0, tl.where(x < -60.0, -60.0, x))
    if x.dtype == tl.float64:
        k = tl.floor(x * 1.4426950408889634 + 0.5)
        r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
        p = r * 1.6059043836821613e-10 + 2.08767569878681e-09
        p = ((p * r + 2.505210838544172e-08) * r + 2.755731922398589e-07) * r + 2.7557319223985893e-06
        p = ((p * r + 2.48015873015873e-05) * r + 0.0001984126984126984) * r + 0.001388888888888889
        scale = ((k.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        k = tl.floor(x * 1.4426950408889634 + 0.5)
        r = (x - k * 0.693359375) + k * 2.12194440e-4
        p = r * 0.0001984126984126984 + 0.001388888888888889
        scale = ((k.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    p = ((p * r + 0.008333333333333333) * r + 0.041666666666666664) * r + 0.16666666666666666
    return scale * ((p * r + 0.5) * (r * r) + r) + (scale - 1.0)


def sigmoid(x):  # type: ignore[no-untyped-def]
    return 1.0 / (1.0 + tl.exp(-x))


def tanh(x):  # type: ignore[no-untyped-def]
    """(e^{2x} − 1) / (e^{2x} + 1), and x itself where x = 0, for its sign."""
    e = _expm1(x + x)
    return tl.where(x == 0.0, x, e / (e + 2.0))


def log1p(x):  # type: ignore[no-untyped-def]
    """log u · x / (u − 1), u = 1 + x as rounded: the error of u cancels (Kahan). For x ≥ 0, finite."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / (u - 1.0)))


def quotient(x, y):  # type: ignore[no-untyped-def]
    """x / y, rounded once: the language's own division is an estimate in float32."""
    if x.dtype == tl.float64:
        q = x / y
    else:
        q = tl.div_rn(x, y)
    return q


def root(x):  # type: ignore[no-untyped-def]
    if x.dtype == tl.float64:
        y = tl.sqrt(x)
    else:
        y = tl.sqrt_rn(x)
    return y


_expm1 = jit(expm1)


@functools.cache
def triton_functions() -> dict[str, Any]:
    """The functions by name, for kernels to call, beside those that the language has.

    exp, sin, cos and log err as Triton's do: in float32 by some units in the last place, exp by |x| / 16 more.
    """
    own = (sigmoid, tanh, log1p, quotient, root)
    return {"__name__": __name__, "tl": tl, "expm1": _expm1} | {
        function.__name__: jit(function) for function in own
    }
