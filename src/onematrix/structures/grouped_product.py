"""Many matrix products at once whose results stand side by side, so that no copy puts them in order."""

from typing import Any

import torch
from torch import Tensor

FEW = 4  # vectors that go faster as rows: a matrix times so few columns is read below memory speed
LARGE = (
    1 << 16
)  # numbers a copy of which takes time; matrices of so many are read longer than results are copied
SMALL = 1 << 14  # numbers of a result that are copied sooner than a function of our own is called


def multiply_groups(matrices: Tensor, x: Tensor) -> Tensor:
    """y[:, k] = matrices[k] x[k]: (K, p, q) and (K, q, b) → (p, K, b), contiguous. K p q b multiply-adds.

    The batched product writes straight into the order the next product reads: the result is
    `torch.bmm(matrices, x).transpose(0, 1)` without its copy. Both inputs may be transposed views.

    >>> multiply_groups(torch.ones(2, 3, 4), torch.ones(2, 4, 5)).shape
    torch.Size([3, 2, 5])
    """
    numbers, device = matrices.shape[0] * matrices.shape[1] * x.shape[2], x.device.type
    if x.shape[2] <= FEW and numbers <= LARGE:
        return torch.bmm(x.mT, matrices.mT).permute(2, 0, 1).contiguous()
    if (
        numbers <= SMALL
        or torch.compiler.is_compiling()
        or device not in ("cpu", "cuda")
        or torch.is_autocast_enabled(device)
    ):
        return torch.bmm(matrices, x).transpose(0, 1).contiguous()
    y: Tensor = _GroupedProduct.apply(matrices, x)  # type: ignore[no-untyped-call]
    return y


def multiply_columns(matrices: Tensor, x: Tensor) -> Tensor:
    """matrices[k] x[k]: (K, p, q) and (K, q, b) → (K, p, b), in the memory order that is fast for b. K p q b.

    >>> multiply_columns(torch.ones(2, 3, 4), torch.ones(2, 4, 5)).shape
    torch.Size([2, 3, 5])
    """
    as_rows = x.shape[2] <= FEW // 2 and matrices.numel() >= LARGE
    return torch.bmm(x.mT, matrices.mT).mT if as_rows else torch.bmm(matrices, x)


class _GroupedProduct(torch.autograd.Function):
    """Derivatives of every order and mode; each gradient is made in the memory order of its input."""

    @staticmethod
    def forward(matrices: Tensor, x: Tensor) -> Tensor:
        y = x.new_empty(matrices.shape[1], matrices.shape[0], x.shape[2])
        torch.bmm(matrices, x, out=y.transpose(0, 1))
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        matrices, x = ctx.saved_tensors
        of_group = gradient.transpose(0, 1)  # (K, p, b)
        left = _outer(of_group, x.mT, matrices) if ctx.needs_input_grad[0] else None
        right = _outer(matrices.mT, of_group, x) if ctx.needs_input_grad[1] else None
        return left, right

    @staticmethod
    def jvp(ctx: Any, matrices_tangent: Tensor | None, x_tangent: Tensor | None) -> Tensor:
        matrices, x = ctx.saved_tensors
        terms = [
            torch.bmm(a, b).transpose(0, 1)
            for a, b in ((matrices_tangent, x), (matrices, x_tangent))
            if a is not None and b is not None
        ]
        return sum(terms[1:], terms[0]).contiguous()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], *inputs: Tensor) -> tuple[Tensor, int]:
        first, second = (t if d is None else t.movedim(d, 0) for t, d in zip(inputs, in_dims, strict=True))
        return torch.matmul(first, second).transpose(-3, -2).contiguous(), 0


def _outer(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """a b per group, laid out as `like` is: row by row, column by column, or columns across the groups."""
    if like.is_contiguous():
        return torch.bmm(a, b)
    if like.mT.is_contiguous():
        return torch.bmm(b.mT, a.mT).mT
    return multiply_groups(b.mT, a.mT).permute(1, 2, 0)  # memory order (column, group, row)
