"""The dense recurrence in place: states in one buffer, gradients in another, the weight gradient at the end."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from onematrix.kernels.dense_plan import Activations, DensePlan
from onematrix.kernels.dense_torch import run_dense_by_torch
from onematrix.kernels.ordinary import is_ordinary
from onematrix.kernels.portable_gradients import portable_gradients
from onematrix.programs.activations import RULES

Views = list[tuple[str, Sequence[Tensor]]]  # of each slice: name of its activation, one view per tick
Gradients = tuple[Tensor | None, Tensor | None]  # of the states and of the final one

aten = torch.ops.aten
IN_PLACE: dict[str, Callable[[Tensor], Any]] = {
    "tanh": torch.tanh_,
    "relu": torch.relu_,
    "sigmoid": torch.sigmoid_,
    "softmax": lambda v: v.copy_(torch.softmax(v, -1)),
}
# Gradients that need the activation's result alone: (gradient, result), written over the gradient.
FROM_RESULT: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tanh": lambda g, y: aten.tanh_backward.grad_input(g, y, grad_input=g),
    "relu": lambda g, y: aten.threshold_backward.grad_input(g, y, 0, grad_input=g),
    "sigmoid": lambda g, y: aten.sigmoid_backward.grad_input(g, y, grad_input=g),
    "softmax": lambda g, y: g.copy_(torch._softmax_backward_data(g, y, -1, y.dtype)),
}


class DenseStates(torch.autograd.Function):
    """All states and the final one, of (inputs, weight, init, plan); at least one tick.

    With g_t the gradient of s_t and Δ_t that of the sum a_t + W s_{t-1},
        Δ_t = σ'(s_t) (g_t + Wᵀ Δ_{t+1}),  da_t = Δ_t,  dW = Σ_t Δ_t s_{t-1}ᵀ,  ds_0 = Wᵀ Δ_1.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, init: Tensor, plan: DensePlan
    ) -> tuple[Tensor, Tensor]:
        states, sums = run_in_place(inputs, weight, init, plan)
        ctx.save_for_backward(inputs, weight, init, states, sums)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        return returned(states, plan)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, weight, init, states, sums = ctx.saved_tensors
        given = tuple(g for g in grads if g is not None)
        if torch.is_grad_enabled() or not is_ordinary(*given):
            run = functools.partial(run_dense_by_torch, plan=ctx.plan)
            return *portable_gradients(run, (inputs, weight, init), grads), None
        plan, needs = ctx.plan, ctx.needs_input_grad
        delta = _deltas(weight, states, sums, plan, (None if plan.last_only else grads[0], grads[1]))
        return (
            _input_gradient(delta, inputs, plan) if needs[0] else None,
            _weight_gradient(delta, states, init, plan) if needs[1] else None,
            delta[plan.order[0]] @ weight if needs[2] else None,
            None,
        )


def run_in_place(
    inputs: Tensor, weight: Tensor, init: Tensor, plan: DensePlan
) -> tuple[Tensor, Tensor | None]:
    """The states after each tick, (ticks, B, n), and their sums a_t + W s_{t-1} where a derivative needs them."""
    states = init.new_empty(plan.ticks, *init.shape)
    kept = any(name not in FROM_RESULT and name != "identity" for _, name in plan.activations)
    sums = torch.empty_like(states) if kept else states
    results, totals = _views(states, plan.activations), _views(sums, plan.activations)
    # The product reads Wᵀ at every tick: one copy in the order it is read takes 0.8 to 0.9 of the time.
    turned, rows, written = weight.t().contiguous(), states.unbind(0), sums.unbind(0)
    fed: list[Tensor | None] = plan.at_every_tick(inputs.unbind(0), None)
    before = init
    for t in plan.order:
        _sum(fed[t], before, turned, written[t])
        for (name, result), (_, total) in zip(results, totals, strict=True):
            _activate(name, total[t], result[t], not kept)
        before = rows[t]
    return states, sums if kept else None


def returned(states: Tensor, plan: DensePlan) -> tuple[Tensor, Tensor]:
    """The states, unless the last alone is wanted, and the last in memory of its own."""
    last = states[plan.order[-1]].clone()
    return (states.new_empty(0, *last.shape) if plan.last_only else states), last


def _views(tensor: Tensor, activations: Activations) -> Views:
    slices = tensor.split([width for width, _ in activations], -1)
    return [(name, part.unbind(0)) for (_, name), part in zip(activations, slices, strict=True)]


def _sum(a: Tensor | None, state: Tensor, turned: Tensor, out: Tensor) -> None:
    if a is None:
        torch.mm(state, turned, out=out)
    else:
        torch.addmm(a, state, turned, out=out)


def _activate(name: str, total: Tensor, result: Tensor, in_place: bool) -> None:
    if in_place:
        IN_PLACE.get(name, _leave)(result)
    else:
        result.copy_(RULES[name].function(total))


def _leave(value: Tensor) -> None:
    """The identity in place."""


def _deltas(weight: Tensor, states: Tensor, sums: Tensor | None, plan: DensePlan, grads: Gradients) -> Tensor:
    """Δ of every tick, (ticks, B, n), in the order of time."""
    delta = torch.empty_like(states)
    slices, factors, rows = _views(delta, plan.activations), _factors(states, sums, plan), delta.unbind(0)
    states_grad = [None] * plan.ticks if grads[0] is None else grads[0].unbind(0)
    later: Tensor | None = None
    for t in reversed(plan.order):
        if later is None:
            _add(states_grad[t], grads[1], rows[t])
        else:
            _sum(states_grad[t], later, weight, rows[t])
        for (name, part), factor in zip(slices, factors, strict=True):
            if factor is not None:
                FROM_RESULT.get(name, Tensor.mul_)(part[t], factor[t])
        later = rows[t]
    return delta


def _add(a: Tensor | None, b: Tensor | None, out: Tensor) -> None:
    """a + b, a missing one being 0."""
    given = [g for g in (a, b) if g is not None]
    if len(given) == 2:
        torch.add(*given, out=out)
    else:
        out.copy_(given[0]) if given else out.zero_()


def _factors(states: Tensor, sums: Tensor | None, plan: DensePlan) -> list[Sequence[Tensor] | None]:
    """Of each slice, per tick, what its gradient is formed with: the result, or σ' of the sum."""
    widths = [width for width, _ in plan.activations]
    totals = (states if sums is None else sums).split(widths, -1)
    made: list[Sequence[Tensor] | None] = []
    for (_, name), total, result in zip(plan.activations, totals, states.split(widths, -1), strict=True):
        factor = result if name in FROM_RESULT else None if name == "identity" else _derivative(name, total)
        made.append(None if factor is None else factor.unbind(0))
    return made


def _derivative(name: str, total: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = total.detach().requires_grad_()
        result = RULES[name].function(leaf)
        return torch.autograd.grad(result, leaf, torch.ones_like(result))[0]


def _weight_gradient(delta: Tensor, states: Tensor, init: Tensor, plan: DensePlan) -> Tensor:
    """Σ_t Δ_t s_{t-1}ᵀ: one product over all ticks but the first, whose state before is `init`."""
    later, before = (delta[:-1], states[1:]) if plan.reverse else (delta[1:], states[:-1])
    first = delta[plan.order[0]].t() @ init
    return torch.addmm(first, later.flatten(0, 1).t(), before.flatten(0, 1))


def _input_gradient(delta: Tensor, inputs: Tensor, plan: DensePlan) -> Tensor:
    """Δ of each input; one shared by the batch or held over ticks gets their sum, one never read 0."""
    if inputs.shape[1] != delta.shape[1]:
        delta = delta.sum(1, keepdim=True)
    ticks = len(inputs)
    if plan.after == "hold" and plan.ticks > ticks:
        return torch.cat([delta[: ticks - 1], delta[ticks - 1 :].sum(0, keepdim=True)])
    unread = inputs.new_zeros(max(ticks - plan.ticks, 0), *delta.shape[1:])
    return torch.cat([delta, unread]) if len(unread) else delta[:ticks]
