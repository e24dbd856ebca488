"""Products of groups of vectors with groups of matrices as Triton kernels, every side read and written in place.

    product:    y[b, g, o] = Σ_k w[g, o, k] x[b, g, k]
    gradient:   w[g, o, k] = Σ_b y[b, g, o] x[b, g, k]

The axes o and k may each stand in memory as two nested ones, so the permutation between two stages of a
structure is an address and no copy: views give the strides, x: (B, G, K₁, K₂), w: (G, O₁, O₂, K₁, K₂),
y: (B, G, O₁, O₂). Sums are float32.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onematrix.errors import CompileError
from onematrix.kernels.triton_language import jit, language, on_device, refusal, serves
from onematrix.structures.ordinary import is_ordinary

tl = language()

PROCESSORS = 132  # of an H100 or H200


@dataclass(frozen=True)
class Tile:
    """Rows, columns and summands of one program's step, and how it is run. Chosen by size, not measured."""

    rows: int
    columns: int
    summands: int
    num_warps: int = 4
    num_stages: int = 3


def tile_of(rows: int, columns: int, summands: int, groups: int, dtype: torch.dtype) -> Tile:
    """Up to 128 × 256 numbers, fewer where that leaves multiprocessors idle; matrix units take 16 at least.

    >>> tile_of(4096, 1024, 1024, 4, torch.bfloat16)
    Tile(rows=128, columns=256, summands=64, num_warps=8, num_stages=3)
    >>> tile_of(256, 40, 1024, 4, torch.bfloat16)
    Tile(rows=64, columns=64, summands=64, num_warps=4, num_stages=3)
    """
    r, c = power_above(rows, 128), power_above(columns, 256 if dtype.itemsize == 2 else 128)
    s = power_above(summands, 128 // dtype.itemsize)
    while groups * -(-rows // r) * -(-columns // c) < PROCESSORS and max(r, c) > 64:
        r, c = (r, c // 2) if c >= r else (r // 2, c)
    return Tile(r, c, s, 8 if r * c > 8192 else 4)


def power_above(number: int, most: int, least: int = 16) -> int:
    """The next power of two within these bounds.

    >>> power_above(5, 64), power_above(33, 64), power_above(100, 64)
    (16, 64, 64)
    """
    return min(most, max(least, 1 << (number - 1).bit_length()))


def runs(kernel: str | None, who: str, x: Tensor, *weights: Tensor) -> bool:
    """Whether Triton's kernels run: asked for, or the choice for these tensors.

    They are the choice where matrix units multiply, not for float32 in full. Raises CompileError when asked for
    and impossible.
    """
    if kernel not in (None, "torch", "triton"):
        raise CompileError(f"{who}: kernel {kernel!r} is unknown; there are: torch, triton", got=kernel)
    reason = refusal(x) or ("16 or 32 bits are needed, got float64" if x.dtype == torch.float64 else None)
    if kernel == "triton" and reason is not None:
        raise CompileError(f"{who}: kernel 'triton' cannot run: {reason}", got=reason)
    units = x.dtype.itemsize == 2 or precision(x) == "tf32"
    chosen = kernel == "triton" or (kernel is None and serves(x) and reason is None and units)
    # Autocast, and dtypes that do not agree, are the structure's own matter.
    alike = all(w.dtype == x.dtype for w in weights) and not torch.is_autocast_enabled(x.device.type)
    return chosen and alike and is_ordinary(x, *weights)


def with_rows(x: Tensor) -> Tensor:
    """(B, n) whose rows have no gaps: itself, or a copy."""
    return x if x.stride(1) == 1 or x.shape[1] < 2 else x.contiguous()


def grouped_product(x: Tensor, w: Tensor, out: Tensor) -> None:
    """out: (B, G, O₁, O₂) from x: (B, G, K₁, K₂) and w: (G, O₁, O₂, K₁, K₂), in any strides."""
    batch, groups, *o = out.shape
    k = x.shape[2:]
    if out.numel() == 0:
        return
    tile = tile_of(batch, o[0] * o[1], k[0] * k[1], groups, x.dtype)
    tiles = -(-batch // tile.rows) * -(-(o[0] * o[1]) // tile.columns)
    with on_device(x):
        _kernels()["product"][tiles, groups](
            x, w, out, batch, *x.stride(), *w.stride(), *out.stride(), **_sizes(o, k), **_facts(tile, x)
        )


def grouped_gradient(y: Tensor, x: Tensor, out: Tensor) -> None:
    """out: (G, O₁, O₂, K₁, K₂), the sum over b of y: (B, G, O₁, O₂) times x: (B, G, K₁, K₂), in any strides."""
    batch, groups, *o = y.shape
    k = x.shape[2:]
    if out.numel() == 0:
        return
    tile = tile_of(o[0] * o[1], k[0] * k[1], batch, groups, x.dtype)
    tiles = -(-(o[0] * o[1]) // tile.rows) * -(-(k[0] * k[1]) // tile.columns)
    with on_device(x):
        _kernels()["gradient"][tiles, groups](
            y, x, out, batch, *y.stride(), *x.stride(), *out.stride(), **_sizes(o, k), **_facts(tile, x)
        )


def precision(like: Tensor) -> str:
    """How float32 is multiplied: exactly, unless torch was told that tf32 will do."""
    return "tf32" if like.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _sizes(o: Any, k: Any) -> dict[str, int]:
    return {"OUT": o[0] * o[1], "O2": o[1], "IN": k[0] * k[1], "K2": k[1]}


def _facts(tile: Tile, like: Tensor) -> dict[str, Any]:
    return {
        "BR": tile.rows,
        "BC": tile.columns,
        "BS": tile.summands,
        "PRECISION": precision(like),
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


@functools.cache
def _kernels() -> dict[str, Any]:
    return {f.__name__: jit(f, ["B"]) for f in (product, gradient)}


def product(  # type: ignore[no-untyped-def]
    x,
    w,
    y,
    B,
    x_b,
    x_g,
    x_1,
    x_2,
    w_g,
    w_o1,
    w_o2,
    w_k1,
    w_k2,
    y_b,
    y_g,
    y_1,
    y_2,
    OUT: tl.constexpr,
    O2: tl.constexpr,
    IN: tl.constexpr,
    K2: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of y for one group; neighbouring programs share the rows of x."""
    across = tl.cdiv(OUT, BC)
    g = tl.program_id(1).to(tl.int64)
    rows = (tl.program_id(0) // across) * BR + tl.arange(0, BR)
    columns = (tl.program_id(0) % across) * BC + tl.arange(0, BC)
    x_p = x + g * x_g + rows.to(tl.int64)[:, None] * x_b
    w_p = w + g * w_g + ((columns // O2) * w_o1 + (columns % O2) * w_o2)[None, :]
    total = tl.zeros((BR, BC), tl.float32)
    for start in range(0, IN, BS):
        k = start + tl.arange(0, BS)
        left = tl.load(
            x_p + ((k // K2) * x_1 + (k % K2) * x_2)[None, :],
            mask=(rows < B)[:, None] & (k < IN)[None, :],
            other=0,
        )
        right = tl.load(
            w_p + ((k // K2) * w_k1 + (k % K2) * w_k2)[:, None],
            mask=(k < IN)[:, None] & (columns < OUT)[None, :],
            other=0,
        )
        total = tl.dot(left, right, total, input_precision=PRECISION)
    y_p = y + g * y_g + rows.to(tl.int64)[:, None] * y_b
    y_p += ((columns // O2) * y_1 + (columns % O2) * y_2)[None, :]
    tl.store(y_p, total, mask=(rows < B)[:, None] & (columns < OUT)[None, :])


def gradient(  # type: ignore[no-untyped-def]
    y,
    x,
    w,
    B,
    y_b,
    y_g,
    y_1,
    y_2,
    x_b,
    x_g,
    x_1,
    x_2,
    w_g,
    w_o1,
    w_o2,
    w_k1,
    w_k2,
    OUT: tl.constexpr,
    O2: tl.constexpr,
    IN: tl.constexpr,
    K2: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of w for one group, summed over the whole batch."""
    across = tl.cdiv(IN, BC)
    g = tl.program_id(1).to(tl.int64)
    o = (tl.program_id(0) // across) * BR + tl.arange(0, BR)
    k = (tl.program_id(0) % across) * BC + tl.arange(0, BC)
    y_p = y + g * y_g + ((o // O2) * y_1 + (o % O2) * y_2)[:, None]
    x_p = x + g * x_g + ((k // K2) * x_1 + (k % K2) * x_2)[None, :]
    total = tl.zeros((BR, BC), tl.float32)
    for start in range(0, B, BS):
        b = start + tl.arange(0, BS).to(tl.int64)
        left = tl.load(y_p + b[None, :] * y_b, mask=(o < OUT)[:, None] & (b < B)[None, :], other=0)
        right = tl.load(x_p + b[:, None] * x_b, mask=(b < B)[:, None] & (k < IN)[None, :], other=0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    w_p = w + g * w_g + ((o // O2) * w_o1 + (o % O2) * w_o2)[:, None]
    w_p += ((k // K2) * w_k1 + (k % K2) * w_k2)[None, :]
    tl.store(w_p, total, mask=(o < OUT)[:, None] & (k < IN)[None, :])
