"""exp, sigmoid and tanh for compiled loops, written so that LLVM can turn them into vector code.

A call of the C library keeps a loop scalar, so these are range reduction and a polynomial instead:

    e^x = 2^k e^r,  k = round(x / ln 2),  |r| ≤ ½ ln 2,  e^r = Σ_{j ≤ d} r^j / j!

d = 7 in float32 and 13 in float64: what is left out is below 0.1 units in the last place.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# Products and sums may be contracted to fused ones; nothing is reordered, so nan and infinities stay.
SAFE = {"contract"}
REORDERED = {*SAFE, "reassoc", "nsz"}  # sums of products run side by side, as in every matrix product
Scalar = Callable[..., Any]


@dataclass(frozen=True)
class Format:
    """Constants of one floating-point format.

    high + low = ln 2, high with so few bits that k · high is exact. Below `lowest` e^x rounds to 0, above
    `highest` it overflows.
    """

    real: type[np.floating[Any]]
    bits: type[np.unsignedinteger[Any]]
    fraction: int  # bits of the fraction
    degree: int  # d
    high: float
    low: float
    lowest: float
    highest: float

    @property
    def bias(self) -> int:
        """What the exponent of 1 is stored as: 127 or 1023."""
        return 127 if self.fraction == 23 else 1023

    @property
    def ends(self) -> float:
        """1.5 · 2^fraction: its last bit is worth 1, so adding it rounds to an integer."""
        return 1.5 * 2.0**self.fraction


FORMATS = {
    "float32": Format(np.float32, np.uint32, 23, 7, 0.693359375, -2.12194440e-4, -105.0, 89.0),
    "float64": Format(
        np.float64, np.uint64, 52, 13, 6.93147180369123816490e-01, 1.90821492927058770002e-10, -746.0, 711.0
    ),
}


def scalar_functions(dtype: str) -> dict[str, Any]:
    """Compiled exp, expm1, sigmoid and tanh of one format, by name, and the constants that loops read.

    exp and expm1 err by at most 2 units in the last place, sigmoid and tanh by at most 3. Infinities, nan and
    overflow are as in the C library, and so are results of exp below the normal range; those of sigmoid are
    0, as in torch. expm1 is for arguments below 60.
    """
    form, numba = FORMATS[dtype], importlib.import_module("numba")
    compiled = numba.njit(fastmath=SAFE, error_model="numpy")
    parts = [compiled(make(form)) for make in (_reduction, _tail, _power)]
    real, one = form.real, form.real(1)
    exp = compiled(_exp(form, *parts))
    expm1 = compiled(_expm1(form, *parts))

    def sigmoid(x: Any) -> Any:
        return one / (one + exp(-x))

    constants = {"zero": real(0), "half": real(0.5), "one": one, "two": real(2), "real": real, "math": math}
    functions = {
        "exp": exp,
        "expm1": expm1,
        "sigmoid": compiled(sigmoid),
        "tanh": compiled(_tanh(form, expm1)),
    }
    return functions | constants


def _reduction(form: Format) -> Scalar:
    """x ↦ (r, the bits of 1.5 · 2^fraction + k)."""
    real, bits = form.real, form.bits
    log2e, high, low, ends = real(1 / math.log(2)), real(form.high), real(form.low), real(form.ends)

    def reduction(x: Any) -> Any:
        z = x * log2e + ends
        k = z - ends
        return (x - k * high) - k * low, real(z).view(bits)

    return reduction


def _tail(form: Format) -> Scalar:
    """r ↦ e^r − 1 = r + r² (1/2! + r/3! + … + r^{d−2}/d!), by Horner's rule."""
    c2, c3, c4, c5, c6, c7 = (form.real(1 / math.factorial(j)) for j in range(2, 8))
    c8, c9, c10, c11, c12, c13 = (form.real(1 / math.factorial(j)) for j in range(8, 14))
    longer = form.degree == 13

    def tail(r: Any) -> Any:
        p = c7
        if longer:
            p = (((((c13 * r + c12) * r + c11) * r + c10) * r + c9) * r + c8) * r + c7
        p = ((((p * r + c6) * r + c5) * r + c4) * r + c3) * r + c2
        return p * (r * r) + r

    return tail


def _power(form: Format) -> Scalar:
    """Bits of 1.5 · 2^fraction + k ↦ bits of k + `added`, as an unsigned number."""
    bits = form.bits
    stored = bits(np.array(form.ends, form.real).view(bits))

    def power(z: Any, added: Any) -> Any:
        return bits(bits(z - stored) + added)

    return power


def _exp(form: Format, reduction: Scalar, tail: Scalar, power: Scalar) -> Scalar:
    """2^k (1 + (e^r − 1)), the power in two factors: 2^k alone may be out of range where e^x is not."""
    real, bits = form.real, form.bits
    one, lowest, highest = real(1), real(form.lowest), real(form.highest)
    unit, shift, added = bits(1), bits(form.fraction), bits(2 * form.bias + 2)

    def exp(x: Any) -> Any:
        x = highest if x > highest else x
        x = lowest if x < lowest else x
        r, z = reduction(x)
        k = power(z, added)  # positive, so that halving it is a shift
        first = bits(k >> unit)
        second = bits(bits(k - first) - unit)
        a, b = bits(bits(first - unit) << shift).view(real), bits(second << shift).view(real)
        return (one + tail(r)) * a * b

    return exp


def _expm1(form: Format, reduction: Scalar, tail: Scalar, power: Scalar) -> Scalar:
    """2^k (e^r − 1) + (2^k − 1), for |x| < 60; beyond that −1, or too small."""
    real, bits = form.real, form.bits
    one, bound, shift, added = real(1), real(60), bits(form.fraction), bits(form.bias)

    def expm1(x: Any) -> Any:
        x = bound if x > bound else x
        x = -bound if x < -bound else x
        r, z = reduction(x)
        scale = bits(power(z, added) << shift).view(real)
        return scale * tail(r) + (scale - one)

    return expm1


def _tanh(form: Format, expm1: Scalar) -> Scalar:
    """(e^{2x} − 1) / (e^{2x} + 1), and x itself where x = 0, for its sign."""
    two, zero = form.real(2), form.real(0)

    def tanh(x: Any) -> Any:
        e = expm1(two * x)
        return e / (e + two) if x != zero else x

    return tanh
