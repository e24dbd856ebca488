"""Gated recurrences of a few samples as one compiled loop: LSTM and GRU, forward and the first derivatives.

Gates lie in torch's order side by side, i, f, g, o or r, z, n. With p = W_hh h of a tick and a what is fed:
    LSTM: i, f, o = sigmoid(a + p), g = tanh(a + p);  c ← f c + i g,  h ← o tanh(c)
    GRU: r, z = sigmoid(a + p), q = p + b, n = tanh(a + r q);  h ← n + z (h − n)
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from onematrix.kernels.numba_arrays import distinct, format_of
from onematrix.kernels.scalar_functions import REORDERED, SAFE, scalar_functions

Loop = Callable[..., None]


def run_lstm(
    w_hh: Tensor, h: Tensor, c: Tensor, gates: Tensor, cells: Tensor, out: Tensor, reverse: bool
) -> None:
    """Write the gates over what is fed to them (T, B, 4 H), every h into `out` (T, B, H), every c into `cells`.

    h, c: (B, H), the first ones become the last. cells: (1, B, H) where those of all ticks are not needed.
    """
    arrays = arrays_of(w_hh, h, c, gates.new_empty(gates.shape[1:]), gates, cells, out)
    loops("lstm", format_of(out))[0](reverse, *arrays)


def run_lstm_backward(
    w_hh: Tensor, c: Tensor, gates: Tensor, cells: Tensor, grads: tuple[Tensor, Tensor, Tensor],
    delta: Tensor, reverse: bool,
) -> None:  # fmt: skip
    """Write the gradients of what is fed to the gates into `delta` (T, B, 4 H).

    grads: of every h (T, B, H), and of the last h and c, which become those of the first.
    """
    loops("lstm", format_of(delta))[1](reverse, *arrays_of(w_hh, c, gates, cells, *grads, delta))


def run_gru(
    w_hh: Tensor, b_hn: Tensor, h: Tensor, gates: Tensor, carried: Tensor, out: Tensor, reverse: bool
) -> None:
    """Write the gates over what is fed to them (T, B, 3 H), every h into `out` and every q into `carried`.

    h: (B, H), the first becomes the last. carried: (1, B, H) where those of all ticks are not needed.
    """
    arrays = arrays_of(w_hh, b_hn, h, gates.new_empty(gates.shape[1:]), gates, carried, out)
    loops("gru", format_of(out))[0](reverse, *arrays)


def run_gru_backward(
    w_hh: Tensor, h: Tensor, gates: Tensor, carried: Tensor, out: Tensor, grads: tuple[Tensor, Tensor, Tensor],
    delta: Tensor, fed_n: Tensor, reverse: bool,
) -> None:  # fmt: skip
    """Write the gradients of r, z and q before their activation into `delta` (T, B, 3 H), of n's into `fed_n`.

    grads: of every h (T, B, H); of the last h, and 0: their sum becomes the gradient of the first. It is that of
    z h and of W_hh h: the first is often much greater, and would round every sum of the other.
    """
    loops("gru", format_of(delta))[1](reverse, *arrays_of(w_hh, h, gates, carried, out, *grads, delta, fed_n))


def arrays_of(*tensors: Tensor) -> list[Any]:
    """As numpy's, over the same memory where a tensor has no gaps."""
    return [t.detach().contiguous().numpy() for t in tensors]


@functools.cache
def loops(kind: str, dtype: str, own: bool = True) -> tuple[Loop, Loop]:
    """Forward and backward, compiled when first called; own: with their products, which others make else."""
    numba: Any = importlib.import_module("numba")
    options = {"error_model": "numpy", "nogil": True, "pipeline_class": distinct()}
    inner = {**options, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    summing, exact = numba.njit(**inner, fastmath=REORDERED), numba.njit(**inner, fastmath=SAFE)
    outer = numba.njit(**options, fastmath=SAFE)
    forward, tick, backward, slope = LOOPS[kind]
    functions = scalar_functions(dtype)
    product, turned = exact(_no_product), exact(_no_product)
    if own:
        product = summing(_products(functions["zero"]))
        turned = summing(_turned_products(summing(_turned_pair)))
    return outer(forward(product, exact(tick(functions, exact)))), outer(
        backward(turned, exact(slope(functions)))
    )


def _lstm(product: Any, tick: Any) -> Loop:
    def forward(reverse: Any, weight: Any, h: Any, c: Any, p: Any, gates: Any, cells: Any, out: Any) -> None:
        ticks, batch, _ = out.shape
        for place in range(ticks):
            t = ticks - 1 - place if reverse else place
            room = t if len(cells) == ticks else 0
            product(weight, h, p)
            for b in range(batch):
                tick(gates[t, b], p[b], h[b], c[b], cells[room, b], out[t, b])

    return forward


def _lstm_tick(functions: dict[str, Any], compiled: Any) -> Loop:
    tanh, sigmoids, tanhs = functions["tanh"], *_activations(functions, compiled)

    @compiled
    def join(i: Any, f: Any, g: Any, o: Any, h: Any, c: Any, cell: Any, out: Any) -> None:
        for k in range(len(h)):
            c[k] = f[k] * c[k] + i[k] * g[k]
            h[k] = o[k] * tanh(c[k])
            cell[k], out[k] = c[k], h[k]

    def tick(a: Any, p: Any, h: Any, c: Any, cell: Any, out: Any) -> None:
        n = len(h)
        sigmoids(a[: 2 * n], p[: 2 * n])
        tanhs(a[2 * n : 3 * n], p[2 * n : 3 * n])
        sigmoids(a[3 * n :], p[3 * n :])
        join(a[:n], a[n : 2 * n], a[2 * n : 3 * n], a[3 * n :], h, c, cell, out)

    return tick


def _lstm_backward(turned: Any, slope: Any) -> Loop:
    def backward(
        reverse: Any, weight: Any, c: Any, gates: Any, cells: Any, grads: Any, dh: Any, dc: Any, delta: Any
    ) -> None:
        ticks, batch, n = cells.shape
        for place in range(ticks):
            t = place if reverse else ticks - 1 - place
            before = t + 1 if reverse else t - 1
            for b in range(batch):
                a, d = gates[t, b], delta[t, b]
                old = cells[before, b] if place < ticks - 1 else c[b]
                slope(
                    a[:n], a[n : 2 * n], a[2 * n : 3 * n], a[3 * n :], old, cells[t, b], grads[t, b], dh[b], dc[b],
                    d[:n], d[n : 2 * n], d[2 * n : 3 * n], d[3 * n :],
                )  # fmt: skip
            turned(weight, delta[t], dh)

    return backward


def _lstm_slope(functions: dict[str, Any]) -> Loop:
    tanh, one, zero = functions["tanh"], functions["one"], functions["zero"]

    def slope(
        i: Any, f: Any, g: Any, o: Any, old: Any, c: Any, grad: Any, dh: Any, dc: Any,
        di: Any, df: Any, dg: Any, do: Any,
    ) -> None:  # fmt: skip
        """dh becomes 0: what the products of the tick are added to."""
        for k in range(len(i)):
            y, e = tanh(c[k]), grad[k] + dh[k]
            d = dc[k] + e * o[k] * (one - y * y)
            di[k] = d * g[k] * ((one - i[k]) * i[k])
            df[k] = d * old[k] * ((one - f[k]) * f[k])
            dg[k] = d * i[k] * (one - g[k] * g[k])
            do[k] = e * y * ((one - o[k]) * o[k])
            dc[k] = d * f[k]
            dh[k] = zero

    return slope


def _gru(product: Any, tick: Any) -> Loop:
    def forward(
        reverse: Any, weight: Any, bias: Any, h: Any, p: Any, gates: Any, carried: Any, out: Any
    ) -> None:
        ticks, batch, _ = out.shape
        for place in range(ticks):
            t = ticks - 1 - place if reverse else place
            room = t if len(carried) == ticks else 0
            product(weight, h, p)
            for b in range(batch):
                tick(gates[t, b], p[b], bias, carried[room, b], h[b], out[t, b])

    return forward


def _gru_tick(functions: dict[str, Any], compiled: Any) -> Loop:
    tanh, (sigmoids, _) = functions["tanh"], _activations(functions, compiled)

    @compiled
    def join(r: Any, z: Any, n: Any, p: Any, bias: Any, q: Any, h: Any, out: Any) -> None:
        for k in range(len(h)):
            q[k] = p[k] + bias[k]
            n[k] = tanh(n[k] + r[k] * q[k])
            h[k] = n[k] + z[k] * (h[k] - n[k])
            out[k] = h[k]

    def tick(a: Any, p: Any, bias: Any, q: Any, h: Any, out: Any) -> None:
        n = len(h)
        sigmoids(a[: 2 * n], p[: 2 * n])
        join(a[:n], a[n : 2 * n], a[2 * n :], p[2 * n :], bias, q, h, out)

    return tick


def _activations(functions: dict[str, Any], compiled: Any) -> tuple[Any, Any]:
    """x ← sigmoid(x + y) and x ← tanh(x + y)."""
    sigmoid, tanh = functions["sigmoid"], functions["tanh"]

    def sigmoids(x: Any, y: Any) -> None:
        for k in range(len(x)):
            x[k] = sigmoid(x[k] + y[k])

    def tanhs(x: Any, y: Any) -> None:
        for k in range(len(x)):
            x[k] = tanh(x[k] + y[k])

    return compiled(sigmoids), compiled(tanhs)


def _gru_backward(turned: Any, slope: Any) -> Loop:
    def backward(
        reverse: Any, weight: Any, h: Any, gates: Any, carried: Any, out: Any, grads: Any, dh: Any, more: Any,
        delta: Any, fed_n: Any,
    ) -> None:  # fmt: skip
        ticks, batch, n = out.shape
        for place in range(ticks):
            t = place if reverse else ticks - 1 - place
            before = t + 1 if reverse else t - 1
            for b in range(batch):
                a, d = gates[t, b], delta[t, b]
                old = out[before, b] if place < ticks - 1 else h[b]
                slope(
                    a[:n], a[n : 2 * n], a[2 * n :], carried[t, b], old, grads[t, b], dh[b], more[b],
                    d[:n], d[n : 2 * n], d[2 * n :], fed_n[t, b],
                )  # fmt: skip
            turned(weight, delta[t], more)

    return backward


def _gru_slope(functions: dict[str, Any]) -> Loop:
    one, zero = functions["one"], functions["zero"]

    def slope(
        r: Any,
        z: Any,
        n: Any,
        q: Any,
        old: Any,
        grad: Any,
        dh: Any,
        more: Any,
        dr: Any,
        dz: Any,
        dq: Any,
        dn: Any,
    ) -> None:
        """dh becomes that of z h, more 0: what the products of the tick are added to."""
        for k in range(len(r)):
            d = grad[k] + (dh[k] + more[k])
            dz[k] = d * (old[k] - n[k]) * ((one - z[k]) * z[k])
            dn[k] = (d - d * z[k]) * (one - n[k] * n[k])
            dq[k] = dn[k] * r[k]
            dr[k] = dn[k] * q[k] * ((one - r[k]) * r[k])
            dh[k], more[k] = d * z[k], zero

    return slope


LOOPS = {
    "lstm": (_lstm, _lstm_tick, _lstm_backward, _lstm_slope),
    "gru": (_gru, _gru_tick, _gru_backward, _gru_slope),
}


def _no_product(weight: Any, x: Any, out: Any) -> None:
    """out was or will be made by others."""


def _products(zero: Any) -> Loop:
    def products(weight: Any, x: Any, out: Any) -> None:
        """out ← x Wᵀ, four rows of W and two of x at a time."""
        rows, n = weight.shape
        four, even = rows - rows % 4, len(x) - len(x) % 2
        for i in range(0, four, 4):
            w0, w1, w2, w3 = weight[i], weight[i + 1], weight[i + 2], weight[i + 3]
            for b in range(0, even, 2):
                v, w, s, u = x[b], x[b + 1], out[b], out[b + 1]
                s0, s1, s2, s3, u0, u1, u2, u3 = zero, zero, zero, zero, zero, zero, zero, zero
                for j in range(n):
                    s0 += w0[j] * v[j]
                    s1 += w1[j] * v[j]
                    s2 += w2[j] * v[j]
                    s3 += w3[j] * v[j]
                    u0 += w0[j] * w[j]
                    u1 += w1[j] * w[j]
                    u2 += w2[j] * w[j]
                    u3 += w3[j] * w[j]
                s[i], s[i + 1], s[i + 2], s[i + 3] = s0, s1, s2, s3
                u[i], u[i + 1], u[i + 2], u[i + 3] = u0, u1, u2, u3
            for b in range(even, len(x)):
                v, s = x[b], out[b]
                s0, s1, s2, s3 = zero, zero, zero, zero
                for j in range(n):
                    s0 += w0[j] * v[j]
                    s1 += w1[j] * v[j]
                    s2 += w2[j] * v[j]
                    s3 += w3[j] * v[j]
                s[i], s[i + 1], s[i + 2], s[i + 3] = s0, s1, s2, s3
        for i in range(four, rows):
            w0 = weight[i]
            for b in range(len(x)):
                v, s0 = x[b], zero
                for j in range(n):
                    s0 += w0[j] * v[j]
                out[b, i] = s0

    return products


def _turned_products(pair: Any) -> Loop:
    def products(weight: Any, x: Any, out: Any) -> None:
        """out ← out + x W, four rows of W and two of x at a time: out is read and written once for them."""
        rows, n = weight.shape
        four, even = rows - rows % 4, len(x) - len(x) % 2
        for i in range(0, four, 4):
            w0, w1, w2, w3 = weight[i], weight[i + 1], weight[i + 2], weight[i + 3]
            for b in range(0, even, 2):
                pair(w0, w1, w2, w3, x[b, i : i + 4], x[b + 1, i : i + 4], out[b], out[b + 1])
            for b in range(even, len(x)):
                v, s = x[b], out[b]
                v0, v1, v2, v3 = v[i], v[i + 1], v[i + 2], v[i + 3]
                for j in range(n):
                    s[j] += (w0[j] * v0 + w1[j] * v1) + (w2[j] * v2 + w3[j] * v3)
        for i in range(four, rows):
            w0 = weight[i]
            for b in range(len(x)):
                v0, s = x[b, i], out[b]
                for j in range(n):
                    s[j] += w0[j] * v0

    return products


def _turned_pair(w0: Any, w1: Any, w2: Any, w3: Any, x: Any, y: Any, s: Any, u: Any) -> None:
    """A function of its own: only of what it is given does the compiler know that nothing overlaps."""
    x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
    y0, y1, y2, y3 = y[0], y[1], y[2], y[3]
    for j in range(len(s)):
        s[j] += (w0[j] * x0 + w1[j] * x1) + (w2[j] * x2 + w3[j] * x3)
        u[j] += (w0[j] * y0 + w1[j] * y1) + (w2[j] * y2 + w3[j] * y3)
