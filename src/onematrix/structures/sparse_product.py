"""The one trilinear form behind every compressed-row matrix, as opaque torch operators.

For a pattern (row, column) of the stored entries k,

    T(v, x, y) = Σ_k v_k · x_column(k) · y_row(k),   summed over the batch,

has three partial derivatives, and they are the three operators here:
    matmul   (v, x) → y:  x Aᵀ
    rmatmul  (v, y) → x:  y A
    sampled  (x, y) → v:  the entries of yᵀ x on the pattern
Each is bilinear, so the gradient, tangent and second gradient of one are the other two.
torch has no differentiable form of these that optimisers, export and compile accept; hence custom operators,
opaque forward and backward, wrapped in an autograd.Function, because a bare custom operator returns
zeros from forward-mode differentiation without an error.
"""

from typing import Any

import torch
from torch import Tensor

from onematrix.structures.ordinary import is_ordinary
from onematrix.structures.sparse_kernels import (
    matmul_kernel,
    product,
    rmatmul_kernel,
    sampled_kernel,
    sampled_product,
    transposed_pattern,
    transposed_product,
    turn,
)
from onematrix.structures.sparse_loops import (
    fills_registers,
    shares_passes,
    turned_gradients,
    turned_product,
)


@torch.library.custom_op("onematrix::csr_matmul", mutates_args=())
def _matmul_op(v: Tensor, crow: Tensor, col: Tensor, x: Tensor) -> Tensor:
    return matmul_kernel(v, crow, col, x)


@torch.library.custom_op("onematrix::csr_rmatmul", mutates_args=())
def _rmatmul_op(v: Tensor, crow: Tensor, col: Tensor, y: Tensor, columns: int) -> Tensor:
    return rmatmul_kernel(v, crow, col, y, columns)


@torch.library.custom_op("onematrix::csr_sampled", mutates_args=())
def _sampled_op(crow: Tensor, col: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return sampled_kernel(crow, col, x, y)


@_matmul_op.register_fake
def _matmul_fake(v: Tensor, crow: Tensor, col: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(crow.shape[0] - 1, x.shape[0]).t()


@_rmatmul_op.register_fake
def _rmatmul_fake(v: Tensor, crow: Tensor, col: Tensor, y: Tensor, columns: int) -> Tensor:
    return y.new_empty(columns, y.shape[0]).t()


@_sampled_op.register_fake
def _sampled_fake(crow: Tensor, col: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(col.shape[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors = [i for i in inputs if isinstance(i, Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.columns = inputs[4] if len(inputs) == 5 else None
    if hasattr(ctx, "save_for_forward"):
        ctx.save_for_forward(*tensors)


def _matmul_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    v, crow, col, x = ctx.saved_tensors[:4]
    dv = csr_sampled(crow, col, x, g) if ctx.needs_input_grad[0] else None
    dx = csr_rmatmul(v, crow, col, g, x.shape[-1]) if ctx.needs_input_grad[3] else None
    return dv, None, None, dx


def _rmatmul_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    v, crow, col, y = ctx.saved_tensors
    dv = csr_sampled(crow, col, g, y) if ctx.needs_input_grad[0] else None
    dy = csr_matmul(v, crow, col, g) if ctx.needs_input_grad[3] else None
    return dv, None, None, dy, None


def _sampled_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    crow, col, x, y = ctx.saved_tensors
    dx = csr_rmatmul(g, crow, col, y, x.shape[-1]) if ctx.needs_input_grad[2] else None
    dy = csr_matmul(g, crow, col, x) if ctx.needs_input_grad[3] else None
    return None, None, dx, dy


_matmul_op.register_autograd(_matmul_backward, setup_context=_save)
_rmatmul_op.register_autograd(_rmatmul_backward, setup_context=_save)
_sampled_op.register_autograd(_sampled_backward, setup_context=_save)


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(v: Tensor, crow: Tensor, col: Tensor, x: Tensor) -> Tensor:
        return _matmul_op(v, crow, col, x)  # type: ignore[no-any-return]

    setup_context = staticmethod(_save)
    backward = staticmethod(_matmul_backward)

    @staticmethod
    def jvp(ctx: Any, tv: Tensor | None, _a: None, _b: None, tx: Tensor | None) -> Tensor | None:
        v, crow, col, x = ctx.saved_tensors
        left = None if tv is None else csr_matmul(tv, crow, col, x)
        return _add(left, None if tx is None else csr_matmul(v, crow, col, tx))

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], v: Tensor, crow: Tensor, col: Tensor, x: Tensor) -> Any:
        if dims[0] is None and dims[1] is None and dims[2] is None:  # one more batch dimension
            moved = x.movedim(dims[3], 0)
            out = csr_matmul(v, crow, col, moved.reshape(-1, moved.shape[-1]))
            return out.reshape(*moved.shape[:-1], -1), 0
        return _stacked(info, dims, csr_matmul, v, crow, col, x)


class _RMatmul(torch.autograd.Function):
    @staticmethod
    def forward(v: Tensor, crow: Tensor, col: Tensor, y: Tensor, columns: int) -> Tensor:
        return _rmatmul_op(v, crow, col, y, columns)  # type: ignore[no-any-return]

    setup_context = staticmethod(_save)
    backward = staticmethod(_rmatmul_backward)

    @staticmethod
    def jvp(ctx: Any, tv: Tensor | None, _a: None, _b: None, ty: Tensor | None, _c: None) -> Tensor | None:
        v, crow, col, y = ctx.saved_tensors
        left = None if tv is None else csr_rmatmul(tv, crow, col, y, ctx.columns)
        return _add(left, None if ty is None else csr_rmatmul(v, crow, col, ty, ctx.columns))

    @staticmethod
    def vmap(
        info: Any, dims: tuple[Any, ...], v: Tensor, crow: Tensor, col: Tensor, y: Tensor, columns: int
    ) -> Any:
        if dims[0] is None and dims[1] is None and dims[2] is None:
            moved = y.movedim(dims[3], 0)
            out = csr_rmatmul(v, crow, col, moved.reshape(-1, moved.shape[-1]), columns)
            return out.reshape(*moved.shape[:-1], columns), 0
        return _stacked(info, dims, csr_rmatmul, v, crow, col, y, columns)


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(crow: Tensor, col: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return _sampled_op(crow, col, x, y)  # type: ignore[no-any-return]

    setup_context = staticmethod(_save)
    backward = staticmethod(_sampled_backward)

    @staticmethod
    def jvp(ctx: Any, _a: None, _b: None, tx: Tensor | None, ty: Tensor | None) -> Tensor | None:
        crow, col, x, y = ctx.saved_tensors
        left = None if tx is None else csr_sampled(crow, col, tx, y)
        return _add(left, None if ty is None else csr_sampled(crow, col, x, ty))

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], *arguments: Any) -> Any:
        return _stacked(info, dims, csr_sampled, *arguments)


def _stacked(info: Any, dims: tuple[Any, ...], function: Any, *arguments: Any) -> Any:
    """One call per element of the mapped dimension: correct for any argument that is mapped."""
    calls = [
        function(*(a if d is None else a.select(d, i) for a, d in zip(arguments, dims, strict=True)))
        for i in range(info.batch_size)
    ]
    return torch.stack(calls), 0


class _FastMatmul(torch.autograd.Function):
    """The product for ordinary tensors: kernels called directly, the gradient turned once for both uses.

    The operators above cost 20 µs a call, and an autograd function that can be mapped another 60.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, crow: Tensor, col: Tensor, x: Tensor) -> Tensor:
        ctx.registers = fills_registers(v, crow, col, x)
        if ctx.registers:
            xt, out = turned_product(v, crow, col, None, x)
        else:
            xt = turn(x)
            out = product(v, crow, col, xt)
        ctx.save_for_backward(v, crow, col, x, xt)
        return out.t()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        v, crow, col, x, xt = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_ordinary(v, g):  # a second derivative, or mapped gradients
            return _matmul_backward(ctx, g)
        values, _, _, inputs = ctx.needs_input_grad
        if ctx.registers and values and shares_passes(v):
            both = turned_gradients(v, *transposed_pattern(crow, col, x.shape[1]), xt, g)
            return both[0], None, None, both[1].t() if inputs else None
        gt = turn(g)
        dv = sampled_product(crow, col, xt, gt) if values else None
        return dv, None, None, transposed_product(v, crow, col, gt, x.shape[1]).t() if inputs else None


class _FastRMatmul(torch.autograd.Function):
    """The product with the transpose for ordinary tensors, as `_FastMatmul`."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, crow: Tensor, col: Tensor, y: Tensor, columns: int) -> Tensor:
        ctx.save_for_backward(v, crow, col, y)
        ctx.registers = fills_registers(v, crow, col, y)
        if ctx.registers:
            return turned_product(v, *transposed_pattern(crow, col, columns), y)[1].t()
        return rmatmul_kernel(v, crow, col, y, columns)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        v, crow, col, y = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_ordinary(v, g):
            return _rmatmul_backward(ctx, g)
        values, _, _, inputs, _ = ctx.needs_input_grad
        if ctx.registers and values and shares_passes(v):
            both = turned_gradients(v, crow, col, None, turn(y), g)
            return both[0], None, None, both[1].t() if inputs else None, None
        gt = turn(g)
        dv = sampled_product(crow, col, gt, turn(y)) if values else None
        return dv, None, None, product(v, crow, col, gt).t() if inputs else None, None


def csr_matmul(v: Tensor, crow: Tensor, col: Tensor, x: Tensor) -> Tensor:
    """x Aᵀ for a compressed-row A: v (k,), crow (m+1,), col (k,), x (B, n) → (B, m), feature-major memory."""
    if torch.compiler.is_compiling():
        return _matmul_op(v, crow, col, x)  # type: ignore[no-any-return]
    form = _FastMatmul if is_ordinary(v, x) else _Matmul
    return form.apply(v, crow, col, x)  # type: ignore[no-any-return, no-untyped-call]


def csr_rmatmul(v: Tensor, crow: Tensor, col: Tensor, y: Tensor, columns: int) -> Tensor:
    """y A for a compressed-row A with n = columns: y (B, m) → (B, n), feature-major memory."""
    if torch.compiler.is_compiling():
        return _rmatmul_op(v, crow, col, y, columns)  # type: ignore[no-any-return]
    form = _FastRMatmul if is_ordinary(v, y) else _RMatmul
    return form.apply(v, crow, col, y, columns)  # type: ignore[no-any-return, no-untyped-call]


def csr_sampled(crow: Tensor, col: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Entries of yᵀ x at the pattern: x (B, n), y (B, m) → (k,). The gradient of the stored values."""
    if torch.compiler.is_compiling():
        return _sampled_op(crow, col, x, y)  # type: ignore[no-any-return]
    return _Sampled.apply(crow, col, x, y)  # type: ignore[no-any-return, no-untyped-call]
