"""The Monarch product on a GPU: two grouped products, the permutation between them folded into addresses.

z[b, i, j, t] = Σ_q R[j, i, t, q] x[b, j, q]        y[b, i, p] = Σ_{j,t} L[i, p, t, j] z[b, i, j, t]
"""

from typing import Any

import torch
from torch import Tensor

from onematrix.kernels.grouped_triton import grouped_gradient, grouped_product, runs, with_rows
from onematrix.kernels.portable_gradients import portable_gradients
from onematrix.structures.monarch import Monarch


def monarch_product(a: Monarch, x: Tensor, *, kernel: str | None = None) -> Tensor:
    """x Aᵀ for x: (..., n) → (..., m), as `a.matmul`. Keeps z, B b1 b2 t numbers, for its gradient.

    kernel: "triton", "torch", or None for the choice by the device. Sums are float32. Derivatives other than
    the first reverse one take torch. Raises as `a.matmul`; CompileError where Triton cannot run.
    """
    if not runs(kernel, "monarch", x, a.left, a.right):
        return a.matmul(x)
    a._check_input(x, 1)
    rows = with_rows(x.reshape(-1, x.shape[-1]))
    y: Tensor = _Monarch.apply(rows, a.left, a.right)  # type: ignore[no-untyped-call]
    return y.reshape(*x.shape[:-1], a.fixed_shape[0])


class _Monarch(torch.autograd.Function):
    """With d for a gradient: dz = Lᵀ dy, dx = Rᵀ dz, dL = Σ_b dy zᵀ, dR = Σ_b dz xᵀ, all in the same addresses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        (b1, p, t, b2), q = left.shape, right.shape[3]
        z, y = x.new_empty(len(x), b1, b2, t), x.new_empty(len(x), b1 * p)
        grouped_product(_parts(x, b2, q), _right(right), z.transpose(1, 2))
        grouped_product(z, _left(left), _parts(y, b1, p))
        ctx.save_for_backward(x, left, right, z)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, left, right, z = ctx.saved_tensors
        if not runs("triton", "monarch", dy) or torch.is_grad_enabled():
            return tuple(portable_gradients(_portable, (x, left, right), (dy,)))
        dy = with_rows(dy)
        (b1, p, _, b2), q = left.shape, right.shape[3]
        dz, dx = torch.empty_like(z), torch.empty_like(x)
        of_left, of_right = torch.empty_like(left), torch.empty_like(right)
        wanted = ctx.needs_input_grad
        back = _parts(dy, b1, p)
        if wanted[0] or wanted[2]:
            grouped_product(back, _turned(_left(left)), dz)
        if wanted[0]:
            grouped_product(dz.transpose(1, 2), _turned(_right(right)), _parts(dx, b2, q))
        if wanted[1]:
            grouped_gradient(back, z, _left(of_left))
        if wanted[2]:
            grouped_gradient(dz.transpose(1, 2), _parts(x, b2, q), _right(of_right))
        made = (dx, of_left, of_right)
        return tuple(t if want else None for t, want in zip(made, wanted, strict=True))


def _parts(x: Tensor, blocks: int, size: int) -> Tensor:
    """(B, blocks · size) as (B, G, 1, K)."""
    return x.unflatten(1, (blocks, 1, size))


def _left(left: Tensor) -> Tensor:
    """L: (b1, p, t, b2) as (G, 1, p, b2, t)."""
    return left.transpose(2, 3)[:, None]


def _right(right: Tensor) -> Tensor:
    """R: (b2, b1, t, q) as (G, b1, t, 1, q)."""
    return right[:, :, :, None]


def _turned(w: Tensor) -> Tensor:
    """Outputs and inputs exchanged."""
    return w.permute(0, 3, 4, 1, 2)


def _portable(x: Tensor, left: Tensor, right: Tensor) -> list[Tensor]:
    return [Monarch(left, right).matmul(x)]
