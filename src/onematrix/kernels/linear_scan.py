"""Linear recurrences c ← a c + b over all ticks at once, in chunks."""

import math
from typing import Any

import torch
from torch import Tensor

from onematrix.errors import CompileError, DTypeError, ShapeError
from onematrix.kernels import scan_triton, triton_language
from onematrix.structures.ordinary import is_ordinary

# (a₂, b₂) ∘ (a₁, b₁) = (a₂ a₁, a₂ b₁ + b₂) is associative (Blelloch, CMU-CS-90-190, §1.4.1), so ticks may be
# joined in any grouping. Dividing by cumulative products is not such a grouping: they underflow.


KERNELS = ("torch", "triton")


def linear_scan(
    a: Tensor, b: Tensor, init: Tensor, reverse: bool = False, *, kernel: str | None = None
) -> Tensor:
    """c_t = a_t c_{t-1} + b_t, all of them (T, B, n), from a, b: (T, B, n) and init: (B, n).

    Chunks of √T ticks run side by side, then the chunks are joined: about 2 √T torch operations on
    (√T, B, n) instead of 2 T on (B, n), and 3 T B n multiply-adds instead of T B n. On one thread it wins
    against an operation per tick for small B n and loses to one compiled loop (`run_elementwise_loop`).
    A product of factors that overflows makes nan where c itself, met with 0, would stay finite.
    reverse: from the last tick to the first. kernel: "torch" is the above, "triton" two kernels on a GPU,
    in float32 where less is stored; None chooses by the device. Derivatives other than the first reverse one
    take torch.

    >>> linear_scan(torch.full((3, 1, 1), 0.5), torch.ones(3, 1, 1), torch.zeros(1, 1)).flatten()
    tensor([1.0000, 1.5000, 1.7500])
    """
    if a.dim() != 3 or a.shape != b.shape or init.shape != a.shape[1:]:
        got = [tuple(t.shape) for t in (a, b, init)]
        raise ShapeError(f"linear scan: a, b (T, B, n) and init (B, n) needed, got {got}", got=got)
    if not a.dtype == b.dtype == init.dtype:
        raise DTypeError(f"linear scan: one dtype needed, got {a.dtype}, {b.dtype} and {init.dtype}")
    if torch.compiler.is_compiling():
        return _scan(a, b, init, reverse)
    fused = _is_fused(kernel, a, b, init)
    return _LinearScan.apply(a, b, init, reverse, fused)  # type: ignore[no-any-return, no-untyped-call]


def _is_fused(kernel: str | None, *tensors: Tensor) -> bool:
    if kernel not in (None, *KERNELS):
        raise CompileError(
            f"linear scan: kernel {kernel!r} is unknown; there are: {', '.join(KERNELS)}", got=kernel
        )
    if kernel == "triton" and (reason := triton_language.refusal(tensors[0])) is not None:
        raise CompileError(f"linear scan: kernel 'triton' cannot run: {reason}", got=reason)
    chosen = kernel == "triton" or (kernel is None and triton_language.serves(tensors[0]))
    return chosen and is_ordinary(*tensors)


class _LinearScan(torch.autograd.Function):
    """Its gradient is the scan in the other direction: λ_t = a_{t+1} λ_{t+1} + g_t, db = λ, da_t = λ_t c_{t-1}."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, init: Tensor, reverse: bool, fused: bool) -> Tensor:
        return scan_triton.scan(a, b, init, reverse) if fused else _scan(a, b, init, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, _, init, ctx.reverse, ctx.fused = inputs
        ctx.save_for_backward(a, init, output)
        ctx.save_for_forward(a, init, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, init, c = ctx.saved_tensors
        if len(a) == 0:
            return torch.zeros_like(a), torch.zeros_like(a), torch.zeros_like(init), None, None
        if ctx.fused and is_ordinary(grad) and not torch.is_grad_enabled():
            return *scan_triton.scan_backward(a, init, c, grad, ctx.reverse), None, None
        zero = torch.zeros_like(a[:1])
        later = torch.cat([zero, a[:-1]]) if ctx.reverse else torch.cat([a[1:], zero])
        adjoint = linear_scan(later, grad, torch.zeros_like(init), not ctx.reverse)
        first = -1 if ctx.reverse else 0
        return adjoint * _before(c, init, ctx.reverse), adjoint, adjoint[first] * a[first], None, None

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, db: Tensor | None, dinit: Tensor | None, *_: None) -> Tensor:
        a, init, c = ctx.saved_tensors
        drive = torch.zeros_like(c) if db is None else db
        if da is not None:
            drive = drive + da * _before(c, init, ctx.reverse)
        return linear_scan(a, drive, torch.zeros_like(init) if dinit is None else dinit, ctx.reverse)


def _before(c: Tensor, init: Tensor, reverse: bool) -> Tensor:
    """c_{t-1} at place t."""
    return torch.cat([c[1:], init[None]]) if reverse else torch.cat([init[None], c[:-1]])


def _scan(a: Tensor, b: Tensor, init: Tensor, reverse: bool) -> Tensor:
    if reverse:
        return _scan(a.flip(0), b.flip(0), init, False).flip(0)
    ticks = len(a)
    length = max(math.isqrt(ticks), 1)
    full = ticks - ticks % length
    chunks = (full // length, length, *init.shape)
    made, last = _chunks(a[:full].reshape(chunks), b[:full].reshape(chunks), init)
    tail = list(made)
    for t in range(full, ticks):
        last = torch.addcmul(b[t], a[t], last)
        tail.append(last[None])
    return torch.cat(tail) if tail else torch.zeros_like(b)


def _chunks(a: Tensor, b: Tensor, init: Tensor) -> tuple[list[Tensor], Tensor]:
    """The scan of (chunks, length, B, n): within all chunks side by side from 0, then from chunk to chunk."""
    if a.shape[0] == 0:
        return [], init
    factors, values = list(a.unbind(1)), list(b.unbind(1))
    for j in range(1, len(values)):
        values[j] = torch.addcmul(values[j], factors[j], values[j - 1])
        factors[j] = factors[j] * factors[j - 1]
    starts = [init]
    for factor, value in zip(factors[-1].unbind(0), values[-1].unbind(0), strict=True):
        starts.append(torch.addcmul(value, factor, starts[-1]))
    joined = torch.addcmul(
        torch.stack(values, 1), torch.stack(factors, 1), torch.stack(starts[:-1]).unsqueeze(1)
    )
    return [joined.reshape(a.shape[0] * a.shape[1], *init.shape)], starts[-1]
