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
from torch.autograd import forward_ad

from onematrix.structures.sparse_kernels import (
    matmul_kernel,
    product,
    rmatmul_kernel,
    sampled_kernel,
    sampled_product,
    transposed_product,
)

PLAIN = (Tensor, torch.nn.Parameter)


_PLAIN = (Tensor, torch.nn.Parameter)


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
    return _bilinear_gradients(ctx, *ctx.saved_tensors, g)


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


def _is_plain(a: Tensor, b: Tensor) -> bool:
    """Whether the kernel may run at once, without the 20 µs of the operator that fake and traced tensors need."""
    plain = type(a) in _PLAIN and type(b) in _PLAIN
    return plain and a.device.type != "meta"


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(v: Tensor, crow: Tensor, col: Tensor, x: Tensor) -> Tensor:
        return (matmul_kernel if _is_plain(v, x) else _matmul_op)(v, crow, col, x)

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
        return (rmatmul_kernel if _is_plain(v, y) else _rmatmul_op)(v, crow, col, y, columns)

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
        return (sampled_kernel if _is_plain(x, y) else _sampled_op)(crow, col, x, y)

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


def _eager(form: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """The same function for plain eager tensors, without the signature binding vmap needs: 60 µs less a call."""

    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _save(ctx, inputs, None)
        return form.forward(*inputs)  # type: ignore[no-any-return]

    members = {name: staticmethod(getattr(form, name)) for name in ("backward", "jvp")}
    return type(
        f"{form.__name__}Eager", (torch.autograd.Function,), {"forward": staticmethod(forward), **members}
    )


_FORMS = {form: _eager(form) for form in (_Matmul, _RMatmul, _Sampled)}


def _apply(form: type[torch.autograd.Function], operator: Any, *inputs: Any) -> Tensor:
    if torch.compiler.is_compiling():
        return operator(*inputs)  # type: ignore[no-any-return]
    if not torch._C._are_functorch_transforms_active():
        form = _FORMS[form]
    return form.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]


class _FastMatmul(torch.autograd.Function):
    """The product for plain tensors outside of transforms: kernels called directly, transposed copies shared."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, crow: Tensor, col: Tensor, x: Tensor) -> Tensor:
        xt = x.t().contiguous()
        ctx.save_for_backward(v, crow, col, x, xt)
        return product(v, crow, col, xt).t()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        v, crow, col, x, xt = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            return _bilinear_gradients(ctx, v, crow, col, x, g)
        gt = g.t().contiguous()
        dv = sampled_product(crow, col, xt, gt) if ctx.needs_input_grad[0] else None
        dx = None
        if ctx.needs_input_grad[3]:
            dx = transposed_product(v, crow, col, gt, x.shape[1]).t()
        return dv, None, None, dx


def _bilinear_gradients(
    ctx: Any, v: Tensor, crow: Tensor, col: Tensor, x: Tensor, g: Tensor
) -> tuple[Tensor | None, ...]:
    dv = csr_sampled(crow, col, x, g) if ctx.needs_input_grad[0] else None
    dx = csr_rmatmul(v, crow, col, g, x.shape[-1]) if ctx.needs_input_grad[3] else None
    return dv, None, None, dx


def _is_plain(v: Tensor, x: Tensor) -> bool:
    """Ordinary tensors, with no transform or forward-mode differentiation under way."""
    if type(x) not in PLAIN or type(v) not in PLAIN or x.device.type == "meta":
        return False
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


def csr_matmul(v: Tensor, crow: Tensor, col: Tensor, x: Tensor) -> Tensor:
    """x Aᵀ for a compressed-row A: v (k,), crow (m+1,), col (k,), x (B, n) → (B, m), feature-major memory."""
    if torch.compiler.is_compiling():
        return _matmul_op(v, crow, col, x)
    if _is_plain(v, x):
        if torch.is_grad_enabled() and (x.requires_grad or v.requires_grad):
            return _FastMatmul.apply(v, crow, col, x)  # type: ignore[no-any-return, no-untyped-call]
        return matmul_kernel(v, crow, col, x)
    return _Matmul.apply(v, crow, col, x)  # type: ignore[no-any-return, no-untyped-call]


def csr_rmatmul(v: Tensor, crow: Tensor, col: Tensor, y: Tensor, columns: int) -> Tensor:
    """y A for a compressed-row A with n = columns: y (B, m) → (B, n), feature-major memory."""
    if torch.compiler.is_compiling():
        return _rmatmul_op(v, crow, col, y, columns)
    return _RMatmul.apply(v, crow, col, y, columns)  # type: ignore[no-any-return, no-untyped-call]


def csr_sampled(crow: Tensor, col: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Entries of yᵀ x at the pattern: x (B, n), y (B, m) → (k,). The gradient of the stored values."""
    if torch.compiler.is_compiling():
        return _sampled_op(crow, col, x, y)
    return _Sampled.apply(crow, col, x, y)  # type: ignore[no-any-return, no-untyped-call]
