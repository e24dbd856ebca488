"""The BLAST product on a GPU: the coupling fused into the first stage, or a stage of its own.

    z[b, j, r] = Σ_q V[j, r, q] x[b, j, q]      w[b, i, r] = Σ_j s[r, i, j] z[b, j, r]
    y[b, i, p] = Σ_r U[i, p, r] w[b, i, r]

Fused, a program makes z for one column of blocks after the other and adds it, weighted, to the sums of all
rows of blocks, which it holds: z reaches memory only where a gradient needs it, and B b1 b2 r numbers never
exist. It reads x once per tile of ranks, and that tile shrinks as b1 grows: past `HELD` rows of blocks z goes
through memory instead.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from onematrix.kernels.grouped_triton import (
    grouped_gradient,
    grouped_product,
    power_above,
    precision,
    runs,
    with_rows,
)
from onematrix.kernels.portable_gradients import portable_gradients
from onematrix.kernels.triton_language import jit, language, on_device
from onematrix.structures.blast import Blast

tl = language()

HELD = 4  # rows of blocks whose sums a program holds; by bytes read from cache, not measured
SUMS = 16384  # numbers a program holds at most: 64 registers of each of 256 threads
SPLITS = 64  # parts of the batch that the gradient of the coupling is summed over apart


def blast_product(a: Blast, x: Tensor, *, kernel: str | None = None, fused: bool | None = None) -> Tensor:
    """x Aᵀ for x: (..., n) → (..., m), as `a.matmul`. Keeps B r (b1 + b2) numbers for its gradient.

    kernel: "triton", "torch", or None for the choice by the device. fused: stages 1 and 2 as one kernel; None
    chooses. Sums are float32. Derivatives other than the first reverse one take torch. Raises as `a.matmul`;
    CompileError where Triton cannot run.
    """
    if not runs(kernel, "blast", x, a.left, a.coupling, a.right):
        return a.matmul(x)
    a._check_input(x, 1)
    rows = with_rows(x.reshape(-1, x.shape[-1]))
    tensors = (rows, a.left, a.coupling, a.right)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    y: Tensor = _Blast.apply(*tensors, fused, keep)  # type: ignore[no-untyped-call]
    return y.reshape(*x.shape[:-1], a.fixed_shape[0])


class _Blast(torch.autograd.Function):
    """The adjoint is the same product with U and V exchanged and the coupling turned; ds = Σ_b dw z."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, left: Tensor, coupling: Tensor, right: Tensor, fused: bool | None, keep: bool
    ) -> Tensor:
        z, w = _stages(x, right, coupling, fused, keep)
        y = x.new_empty(len(x), left.shape[0] * left.shape[1])
        grouped_product(w[:, :, None], _grouped(left), _parts(y, left))
        ctx.save_for_backward(x, left, coupling, right, z, w)
        ctx.fused = fused
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, left, coupling, right, z, w = ctx.saved_tensors
        if not runs("triton", "blast", dy) or torch.is_grad_enabled():
            return *portable_gradients(_portable, (x, left, coupling, right), (dy,)), None, None
        dy = with_rows(dy)
        wanted = ctx.needs_input_grad
        dw, dz = _stages(dy, left.mT, coupling.mT, ctx.fused, True)
        made: list[Tensor | None] = [None] * 4
        if wanted[0]:
            made[0] = torch.empty_like(x)
            grouped_product(dz[:, :, None], _grouped(right.mT), _parts(made[0], right.mT))
        if wanted[1]:
            made[1] = torch.empty_like(left)
            grouped_gradient(_parts(dy, left), w[:, :, None], _grouped(made[1]))
        if wanted[2]:
            made[2] = _coupling_gradient(dw, z).to(coupling.dtype)
        if wanted[3]:
            made[3] = torch.empty_like(right)
            grouped_gradient(dz[:, :, None], _parts(x, right.mT), _grouped(made[3]))
        return *made, None, None


def _stages(
    x: Tensor, right: Tensor, coupling: Tensor, fused: bool | None, keep: bool
) -> tuple[Tensor | None, Tensor]:
    """z: (B, b2, r), where it is kept or goes through memory, and w: (B, b1, r). right: (b2, r, q) in any strides."""
    batch, (b2, rank, _), b1 = len(x), right.shape, coupling.shape[1]
    fused = b1 <= HELD if fused is None else fused
    z = x.new_empty(batch, b2, rank) if keep or not fused else None
    w = x.new_empty(batch, b1, rank)
    if fused:
        _project_and_couple(x, right, coupling, z, w)
    elif z is not None:
        grouped_product(_parts(x, right.mT), _grouped(right), z[:, :, None])
        _couple(z, coupling, w)
    return z, w


def _parts(x: Tensor, w: Tensor) -> Tensor:
    """(B, G · K) as (B, G, 1, K) for w: (G, K, …)."""
    return x.unflatten(1, (w.shape[0], 1, w.shape[1]))


def _grouped(w: Tensor) -> Tensor:
    """(G, O, K) as (G, 1, O, 1, K)."""
    return w[:, None, :, None]


def _project_and_couple(x: Tensor, right: Tensor, coupling: Tensor, z: Tensor | None, w: Tensor) -> None:
    (b2, rank, q), batch, b1 = right.shape, len(x), w.shape[1]
    if w.numel() == 0:
        return
    held = power_above(b1, 1 << 20, 1)
    rows = power_above(batch, max(16, min(128, SUMS // held // 64)))
    ranks = power_above(rank, max(16, min(128, SUMS // held // rows)))
    grid = (-(-batch // rows) * -(-rank // ranks),)
    with on_device(x):
        _kernels()["project_and_couple"][grid](
            x, right, coupling, w if z is None else z, w, batch, x.stride(0), *right.stride(), *coupling.stride(),
            RANK=rank, Q=q, B1=b1, B2=b2, BM=rows, BR=ranks, BK=power_above(q, 128 // x.dtype.itemsize),
            KEEP=z is not None, PRECISION=precision(x), num_warps=8 if rows * ranks * held > 8192 else 4,
            num_stages=3,
        )  # fmt: skip


def _couple(z: Tensor, coupling: Tensor, w: Tensor) -> None:
    (batch, b2, rank), b1 = z.shape, w.shape[1]
    if w.numel() == 0:
        return
    ranks = power_above(rank, 128)
    rows = min(batch, max(1, 2048 // ranks // power_above(b1, 1 << 20, 1)))
    rows = power_above(rows, 256, 1)
    grid = (-(-batch // rows), -(-rank // ranks))
    with on_device(z):
        _kernels()["couple"][grid](
            z, coupling, w, batch, *coupling.stride(),
            RANK=rank, B1=b1, B2=b2, HELD=power_above(b1, 1 << 20, 1), BM=rows, BR=ranks, num_warps=4,
        )  # fmt: skip


def _coupling_gradient(dw: Tensor, z: Tensor) -> Tensor:
    """Σ_b dw[b, i, r] z[b, j, r], (r, b1, b2) in float32, summed over `SPLITS` parts of the batch apart."""
    (batch, b1, rank), b2 = dw.shape, z.shape[1]
    held = power_above(b1, 1 << 20, 1), power_above(b2, 1 << 20, 1)
    ranks = power_above(rank, max(16, min(64, SUMS // held[0] // held[1])))
    parts = torch.zeros(min(SPLITS, max(batch, 1)), b1, b2, rank, dtype=torch.float32, device=z.device)
    if batch and rank:
        with on_device(z):
            _kernels()["coupling_gradient"][-(-rank // ranks), len(parts)](
                dw, z, parts, batch,
                RANK=rank, B1=b1, B2=b2, HELD1=held[0], HELD2=held[1], BR=ranks, num_warps=4,
            )  # fmt: skip
    return parts.sum(0).permute(2, 0, 1).contiguous()


def _portable(x: Tensor, left: Tensor, coupling: Tensor, right: Tensor) -> list[Tensor]:
    return [Blast(left, coupling, right).matmul(x)]


@functools.cache
def _kernels() -> dict[str, Any]:
    return {f.__name__: jit(f, ["B"]) for f in (project_and_couple, couple, coupling_gradient)}


def project_and_couple(  # type: ignore[no-untyped-def]
    x,
    v,
    s,
    z,
    w,
    B,
    x_b,
    v_j,
    v_r,
    v_q,
    s_r,
    s_i,
    s_j,
    RANK: tl.constexpr,
    Q: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
    BM: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """w for one tile of samples and one of ranks, all rows of blocks; one sum per row of blocks is held."""
    across = tl.cdiv(RANK, BR)
    b = ((tl.program_id(0) // across) * BM + tl.arange(0, BM)).to(tl.int64)
    r = (tl.program_id(0) % across) * BR + tl.arange(0, BR)
    inside = (b < B)[:, None] & (r < RANK)[None, :]
    sums = ()
    for _ in tl.static_range(B1):
        sums = sums + (tl.zeros((BM, BR), tl.float32),)  # noqa: RUF005
    for j in range(B2):
        part = tl.zeros((BM, BR), tl.float32)
        for start in range(0, Q, BK):
            k = start + tl.arange(0, BK)
            left = tl.load(
                x + b[:, None] * x_b + (j * Q + k)[None, :], mask=(b < B)[:, None] & (k < Q)[None, :], other=0
            )
            right = tl.load(
                v + j * v_j + r[None, :] * v_r + k[:, None] * v_q,
                mask=(k < Q)[:, None] & (r < RANK)[None, :],
                other=0,
            )
            part = tl.dot(left, right, part, input_precision=PRECISION)
        if KEEP:
            tl.store(z + (b[:, None] * B2 + j) * RANK + r[None, :], part, mask=inside)
        new = ()
        for i in tl.static_range(B1):
            weight = tl.load(s + r * s_r + i * s_i + j * s_j, mask=r < RANK, other=0).to(tl.float32)
            new = new + (sums[i] + part * weight[None, :],)  # noqa: RUF005
        sums = new
    for i in tl.static_range(B1):
        tl.store(w + (b[:, None] * B1 + i) * RANK + r[None, :], sums[i], mask=inside)


def couple(  # type: ignore[no-untyped-def]
    z,
    s,
    w,
    B,
    s_r,
    s_i,
    s_j,
    RANK: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
    HELD: tl.constexpr,
    BM: tl.constexpr,
    BR: tl.constexpr,
):
    """w for a few samples and one tile of ranks: z is read once, all rows of blocks are held."""
    i = tl.arange(0, HELD)
    r = tl.program_id(1) * BR + tl.arange(0, BR)
    inside = (i < B1)[:, None] & (r < RANK)[None, :]
    for m in range(BM):
        b = tl.program_id(0).to(tl.int64) * BM + m
        total = tl.zeros((HELD, BR), tl.float32)
        for j in range(B2):
            part = tl.load(z + (b * B2 + j) * RANK + r, mask=(r < RANK) & (b < B), other=0).to(tl.float32)
            weight = tl.load(s + r[None, :] * s_r + i[:, None] * s_i + j * s_j, mask=inside, other=0)
            total += weight.to(tl.float32) * part[None, :]
        tl.store(w + (b * B1 + i[:, None]) * RANK + r[None, :], total, mask=inside & (b < B))


def coupling_gradient(  # type: ignore[no-untyped-def]
    dw,
    z,
    parts,
    B,
    RANK: tl.constexpr,
    B1: tl.constexpr,
    B2: tl.constexpr,
    HELD1: tl.constexpr,
    HELD2: tl.constexpr,
    BR: tl.constexpr,
):
    """Σ over every so-manieth sample of dw zᵀ per rank: one tile of ranks, all pairs of blocks are held."""
    i, j = tl.arange(0, HELD1), tl.arange(0, HELD2)
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    at = tl.program_id(1).to(tl.int64)
    total = tl.zeros((HELD1, HELD2, BR), tl.float32)
    while at < B:
        left = tl.load(
            dw + (at * B1 + i[:, None]) * RANK + r[None, :],
            mask=(i < B1)[:, None] & (r < RANK)[None, :],
            other=0,
        )
        right = tl.load(
            z + (at * B2 + j[:, None]) * RANK + r[None, :],
            mask=(j < B2)[:, None] & (r < RANK)[None, :],
            other=0,
        )
        total += left.to(tl.float32)[:, None, :] * right.to(tl.float32)[None, :, :]
        at += tl.num_programs(1)
    place = ((tl.program_id(1) * B1 + i[:, None, None]) * B2 + j[None, :, None]) * RANK + r[None, None, :]
    inside = (i < B1)[:, None, None] & (j < B2)[None, :, None] & (r < RANK)[None, None, :]
    tl.store(parts + place, total, mask=inside)
