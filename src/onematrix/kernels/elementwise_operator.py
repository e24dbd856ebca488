"""Compiled elementwise loops as differentiable operations: for ordinary tensors, and as one opaque operator.

torch.compile and torch.export see two operators, forward and backward, whatever the number of ticks. An
ordinary call passes them by: they cost tens of microseconds and may not return one tensor twice.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from onematrix.kernels import elementwise_numba, elementwise_triton
from onematrix.kernels.elementwise_code import ElementwiseLoop, read_loop
from onematrix.kernels.elementwise_memory import series_gradient
from onematrix.kernels.elementwise_torch import Sizes, run_by_torch
from onematrix.kernels.portable_gradients import portable_gradients
from onematrix.structures.ordinary import is_ordinary

RUNS: dict[str, Any] = {"numba": elementwise_numba, "triton": elementwise_triton}  # run_forward, run_backward


def run_compiled(
    loop: ElementwiseLoop,
    tensors: Sequence[Tensor],
    sizes: Sizes,
    reverse: bool,
    valid: Tensor | None,
    overlap: bool,
    kernel: str,
) -> list[Tensor]:
    """Outputs and final carried values, of series, vectors and first carried values in one list."""
    if torch.compiler.is_compiling():
        made: list[Tensor] = _forward_op(loop.text, list(tensors), valid, list(sizes), reverse, kernel)
        return made[: len(loop.outputs) + loop.carried]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return list(_Compiled.apply(loop, kernel, sizes, reverse, valid, overlap, *tensors))  # type: ignore[no-untyped-call]
    run_forward = RUNS[kernel].run_forward
    outputs, final, _ = run_forward(loop, tensors, sizes, reverse, valid, keep=False, overlap=overlap)
    return outputs + final


class _Compiled(torch.autograd.Function):
    """The adjoint of x' = F(x, u), run from the last tick: λ ← J_xᵀ λ + g, with J_uᵀ λ for what was fed."""

    @staticmethod
    def forward(
        ctx: Any,
        loop: ElementwiseLoop,
        kernel: str,
        sizes: Sizes,
        reverse: bool,
        valid: Tensor | None,
        overlap: bool,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        run_forward = RUNS[kernel].run_forward
        made = run_forward(loop, tensors, sizes, reverse, valid, keep=True, overlap=overlap)
        outputs, final, courses = made
        ctx.save_for_backward(*tensors, *courses, valid)
        ctx.set_materialize_grads(False)
        ctx.facts = (loop, kernel, sizes, reverse)
        return *outputs, *final

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        *saved, valid = ctx.saved_tensors
        loop, kernel, sizes, reverse = ctx.facts
        tensors, courses = saved[: loop.given], saved[loop.given :]
        given = [g for g in grads if g is not None]
        if torch.is_grad_enabled() or not is_ordinary(*given):
            run = functools.partial(_run_portably, loop, sizes, reverse, valid)
            return *[None] * 6, *portable_gradients(run, tensors, grads)
        wanted = ctx.needs_input_grad[6:]
        run_backward = RUNS[kernel].run_backward
        return *[None] * 6, *run_backward(loop, tensors, courses, grads, wanted, sizes, reverse, valid)


def _run_portably(
    loop: ElementwiseLoop, sizes: Sizes, reverse: bool, valid: Tensor | None, *tensors: Tensor
) -> list[Tensor]:
    start, end = loop.series, loop.series + loop.vectors
    parts = tensors[:start], tensors[start:end], tensors[end:]
    outputs, final = run_by_torch(loop, *parts, sizes, reverse, valid)
    return outputs + final


@torch.library.custom_op("onematrix::elementwise_recurrence", mutates_args=())
def _forward_op(
    text: str,
    tensors: list[Tensor],
    valid: Tensor | None,
    sizes: list[int],
    reverse: bool,
    kernel: str,
) -> list[Tensor]:
    """Outputs, final carried values, courses: no two of them share memory."""
    loop, (ticks, batch, width) = read_loop(text), sizes
    run_forward = RUNS[kernel].run_forward
    made = run_forward(loop, tensors, (ticks, batch, width), reverse, valid, keep=True, share=False)
    return [t for part in made for t in part]


@torch.library.custom_op("onematrix::elementwise_gradients", mutates_args=())
def _backward_op(
    text: str,
    tensors: list[Tensor],
    courses: list[Tensor],
    grads: list[Tensor],
    valid: Tensor | None,
    sizes: list[int],
    reverse: bool,
    kernel: str,
) -> list[Tensor]:
    loop, (ticks, batch, width) = read_loop(text), sizes
    wanted = [True] * len(tensors)
    run_backward = RUNS[kernel].run_backward
    made = run_backward(loop, tensors, courses, grads, wanted, (ticks, batch, width), reverse, valid)
    return [t for t in made if t is not None]


@_forward_op.register_fake
def _forward_fake(
    text: str,
    tensors: list[Tensor],
    valid: Tensor | None,
    sizes: list[int],
    reverse: bool,
    kernel: str,
) -> list[Tensor]:
    loop, like = read_loop(text), tensors[0]
    full, row = len(loop.outputs), loop.carried
    shapes = [sizes] * full + [sizes[1:]] * row + [sizes] * row
    return [like.new_empty(shape) for shape in shapes]


@_backward_op.register_fake
def _backward_fake(
    text: str,
    tensors: list[Tensor],
    courses: list[Tensor],
    grads: list[Tensor],
    valid: Tensor | None,
    sizes: list[int],
    reverse: bool,
    kernel: str,
) -> list[Tensor]:
    count, (ticks, batch, width) = read_loop(text).series, sizes
    laid = [s.shape[1] == batch and kernel == "numba" for s in tensors[:count]]
    made = [
        series_gradient(s, (ticks, batch, width)) if as_given else s.new_empty(s.shape)
        for s, as_given in zip(tensors, laid, strict=False)
    ]
    return made + [t.new_empty(t.shape) for t in tensors[count:]]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    text, tensors, valid, sizes, reverse, kernel = inputs
    ctx.facts = (text, sizes, reverse, kernel, len(tensors))
    ctx.save_for_backward(*tensors, *output[len(output) - read_loop(text).carried :], valid)


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    text, sizes, reverse, kernel, count = ctx.facts
    *saved, valid = ctx.saved_tensors
    grads = grads[: len(grads) - read_loop(text).carried]
    made = _backward_op(text, saved[:count], saved[count:], grads, valid, sizes, reverse, kernel)
    return None, made, None, None, None, None


_forward_op.register_autograd(_backward, setup_context=_save)
