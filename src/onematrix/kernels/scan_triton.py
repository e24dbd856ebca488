"""Linear recurrences c ← a c + b as Triton kernels, forward and backward, in chunks of ticks.

A thread per number and chunk. Where the numbers of one tick do not keep the device busy, the ticks are cut:

    ends:   per chunk, the product of its factors and what it makes of 0      (not of the last one)
    apply:  per chunk, its first value from the ends before it, then its ticks

One chunk is one pass: a and b are read once and c is written, 12 bytes per number of float32. More chunks read
them twice. Values are float32 inside (float64 for it), also from tick to tick.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from onematrix.kernels.triton_language import jit, language, on_device, working_dtype, working_type

tl = language()

BLOCK = 32  # numbers of one program: a warp
AHEAD = 8  # ticks read at a time
SHORTEST = 32  # ticks of a chunk at least
PROGRAMS = 132 * 8  # from which on memory is busy: each has 4 KB on their way in float32
MOST = 64  # chunks at most: every chunk goes through the ends of those before it


def scan(a: Tensor, b: Tensor, init: Tensor, reverse: bool) -> Tensor:
    """c_t = a_t c_{t-1} + b_t, all of them, as `linear_scan`."""
    out = torch.empty(b.shape, dtype=b.dtype, device=b.device)
    _run(a, b, init, out, None, None, reverse, 0)
    return out


def scan_backward(
    a: Tensor, init: Tensor, c: Tensor, grad: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and init from that of c: λ_t = a_{t+1} λ_{t+1} + g_t, db = λ, da_t = λ_t c_{t-1}."""
    of_a, of_b = (torch.empty(c.shape, dtype=c.dtype, device=c.device) for _ in range(2))
    _run(a, grad, init, of_b, c, of_a, not reverse, 1)
    first = -1 if reverse else 0
    of_init = of_b[first] * a[first] if len(a) else torch.zeros_like(init)
    return of_a, of_b, of_init


def chunk_length(ticks: int, numbers: int, programs: int = PROGRAMS) -> int:
    """Ticks of a chunk, so that about `programs` programs run.

    >>> chunk_length(512, 32 * 1024), chunk_length(4096, 256), chunk_length(100, 8)
    (512, 64, 40)
    """
    chunks = min(MOST, max(1, programs // max(1, -(-numbers // BLOCK))), max(1, ticks // SHORTEST))
    length = -(-ticks // chunks)
    return max(SHORTEST, -(-length // AHEAD) * AHEAD) if chunks > 1 else max(ticks, 1)


def _run(
    a: Tensor,
    b: Tensor,
    init: Tensor,
    out: Tensor,
    before: Tensor | None,
    of_a: Tensor | None,
    reverse: bool,
    shift: int,
) -> None:
    """shift: the factor of a tick stands so many ticks earlier in a. before, of_a: for the gradient of a."""
    ticks, batch, width = b.shape
    if b.numel() == 0:
        return
    a, b = (t if t.stride(2) == 1 or width == 1 else t.contiguous() for t in (a.detach(), b.detach()))
    init = init.detach().contiguous()
    length = chunk_length(ticks, batch * width)
    chunks, blocks = -(-ticks // length), -(-width // BLOCK)
    factors, ends = torch.empty(2, chunks, batch, width, dtype=working_dtype(b), device=b.device)
    sign = -1 if reverse else 1
    place = slice(-1, None) if reverse else slice(None)
    dense = sign * batch * width
    given = (a[place], sign * a.stride(0), a.stride(1), b[place], sign * b.stride(0), b.stride(1))
    sizes = (ticks, batch, width, length)
    types = {"real": working_type(b), "BLOCK": BLOCK, "AHEAD": AHEAD, "SHIFT": shift, "num_warps": 1}
    kernels = _kernels()
    with on_device(b):
        if chunks > 1:
            kernels["ends"][batch * blocks, chunks - 1](*sizes, *given, factors, ends, **types)
        previous = out if before is None else before
        of_factors = out if of_a is None else of_a
        kernels["apply"][batch * blocks, chunks](
            *sizes,
            *given,
            factors,
            ends,
            init,
            out[place],
            dense,
            previous[place],
            of_factors[place],
            **types,
        )


@functools.cache
def _kernels() -> dict[str, Any]:
    return {f.__name__: jit(f, ["T", "LENGTH"]) for f in (ends, apply)}


def ends(  # type: ignore[no-untyped-def]
    T,
    B,
    n,
    LENGTH,
    a,
    a_t,
    a_b,
    b,
    b_t,
    b_b,
    factors,
    values,
    real: tl.constexpr,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """Of every chunk but the last: the product of its factors, and its last value from 0."""
    blocks = tl.cdiv(n, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    chunk = tl.program_id(1).to(tl.int64)
    inside = i < n
    first = chunk * LENGTH
    a_p = a + row * a_b + first * a_t + i
    b_p = b + row * b_b + first * b_t + i
    factor = tl.full((BLOCK,), 1.0, real)
    value = tl.full((BLOCK,), 0.0, real)
    end = first + LENGTH
    a_next = read(a_p - SHIFT * a_t, a_t, first, SHIFT, end, inside, AHEAD)
    b_next = read(b_p, b_t, first, 0, end, inside, AHEAD)
    step = first
    while step < end:
        a_now, b_now = a_next, b_next
        a_p += AHEAD * a_t
        b_p += AHEAD * b_t
        a_next = read(a_p - SHIFT * a_t, a_t, step + AHEAD, SHIFT, end, inside, AHEAD)
        b_next = read(b_p, b_t, step + AHEAD, 0, end, inside, AHEAD)
        for j in tl.static_range(AHEAD):
            a_j = a_now[j].to(real)
            value = a_j * value + b_now[j].to(real)
            factor = a_j * factor
        step += AHEAD
    here = (chunk * B + row) * n + i
    tl.store(factors + here, factor, mask=inside)
    tl.store(values + here, value, mask=inside)


def apply(  # type: ignore[no-untyped-def]
    T,
    B,
    n,
    LENGTH,
    a,
    a_t,
    a_b,
    b,
    b_t,
    b_b,
    factors,
    values,
    init,
    out,
    out_t,
    before,
    of_a,
    real: tl.constexpr,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """The ticks of a chunk from its first value; with SHIFT those are λ, and da = λ c_before is written too."""
    blocks = tl.cdiv(n, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    chunk = tl.program_id(1).to(tl.int64)
    inside = i < n
    here = row * n + i
    start = tl.load(init + here, mask=inside, other=0).to(real)
    if SHIFT == 1:
        value = tl.full((BLOCK,), 0.0, real)
    else:
        value = start
    k = tl.full((), 0, tl.int64)
    while k < chunk:
        at = (k * B + row) * n + i
        factor = tl.load(factors + at, mask=inside, other=0)
        value = factor * value + tl.load(values + at, mask=inside, other=0)
        k += 1
    first = chunk * LENGTH
    last = tl.minimum(first + LENGTH, T)
    a_p = a + row * a_b + first * a_t + i
    b_p = b + row * b_b + first * b_t + i
    out_p = out + here + first * out_t
    before_p = before + here + (first + 1) * out_t
    of_a_p = of_a + here + first * out_t
    a_next = read(a_p - SHIFT * a_t, a_t, first, SHIFT, last, inside, AHEAD)
    b_next = read(b_p, b_t, first, 0, last, inside, AHEAD)
    if SHIFT == 1:
        c_next = read(before_p, out_t, first + 1, 0, tl.minimum(last + 1, T), inside, AHEAD)
    step = first
    while step < last:
        a_now, b_now = a_next, b_next
        a_p += AHEAD * a_t
        b_p += AHEAD * b_t
        a_next = read(a_p - SHIFT * a_t, a_t, step + AHEAD, SHIFT, last, inside, AHEAD)
        b_next = read(b_p, b_t, step + AHEAD, 0, last, inside, AHEAD)
        if SHIFT == 1:
            c_now = c_next
            before_p += AHEAD * out_t
            c_next = read(before_p, out_t, step + AHEAD + 1, 0, tl.minimum(last + 1, T), inside, AHEAD)
        for j in tl.static_range(AHEAD):
            live = inside & (step + j < last)
            value = a_now[j].to(real) * value + b_now[j].to(real)
            tl.store(out_p + j * out_t, value, mask=live)
            if SHIFT == 1:
                c = tl.where(step + j + 1 < T, c_now[j].to(real), start)
                tl.store(of_a_p + j * out_t, value * c, mask=live)
        out_p += AHEAD * out_t
        of_a_p += AHEAD * out_t
        step += AHEAD


def ticks_of(pointer, stride, step, low, high, inside, AHEAD: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tuple of what stands at AHEAD ticks from `step` on; 0 outside [low, high)."""
    found = ()
    for j in tl.static_range(AHEAD):
        known = inside & (step + j >= low) & (step + j < high)
        found = found + (tl.load(pointer + j * stride, mask=known, other=0),)  # noqa: RUF005
    return found


read = jit(ticks_of)
