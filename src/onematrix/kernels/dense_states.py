"""The dense recurrence in place: states in one buffer, gradients in another, the weight gradient at the end."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from onematrix.kernels import dense_numba
from onematrix.kernels.dense_plan import Activations, DensePlan
from onematrix.kernels.dense_torch import run_dense_by_torch
from onematrix.kernels.portable_gradients import portable_gradients
from onematrix.programs.activations import RULES
from onematrix.structures.ordinary import is_ordinary

Rows = Sequence[Tensor]  # one per tick
Work = list[tuple[Callable[..., Any], list[tuple[Tensor, ...]]]]  # function, and what it takes at every tick
Gradients = tuple[Tensor | None, Tensor | None]  # of the states and of the final one

# The product reads Wᵀ at every tick: in the order it is read it takes 0.6 to 0.9 of the time. The copy costs the
# gain of n ÷ 64 ticks (measured: 4 of them at n = 256, 20 at n = 1312).
TURNED = 64

aten = torch.ops.aten
IN_PLACE: dict[str, Callable[[Tensor], Any]] = {
    "identity": lambda v: v,
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
            weight_gradient(delta, states, init, plan.reverse, plan.zero) if needs[1] else None,
            delta[plan.order[0]] @ weight if needs[2] else None,
            None,
        )


def run_in_place(
    inputs: Tensor, weight: Tensor, init: Tensor, plan: DensePlan, own: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The states after each tick, (ticks, B, n), and their sums a_t + W s_{t-1} where a derivative needs them.

    own: the states may take the place of the inputs.
    """
    if dense_numba.serves(init, plan):
        states = init.new_empty(plan.ticks, *init.shape)
        dense_numba.run_forward(inputs, weight, init, plan, states, whole=True)
        return states, None
    kept = any(name not in IN_PLACE for _, name in plan.activations)
    over = own and not kept and inputs.shape == (plan.ticks, *init.shape)
    states = inputs if over else init.new_empty(plan.ticks, *init.shape)
    sums = torch.empty_like(states) if kept else None
    rows = states.unbind(0)
    written = rows if sums is None else sums.unbind(0)
    activate = _activations(states, rows, sums, plan.activations)
    turned, before = turned_weight(weight, plan.ticks), init
    fed = rows if over else plan.at_every_tick(inputs.unbind(0), inputs.new_zeros(1, init.shape[1]))
    for t in plan.order:
        if before is not init or not plan.zero:
            torch.addmm(fed[t], before, turned, out=written[t])
        elif not over:
            written[t].copy_(fed[t])
        for function, arguments in activate:
            function(*arguments[t])
        before = rows[t]
    return states, sums


def turned_weight(weight: Tensor, ticks: int) -> Tensor:
    """Wᵀ, copied into the order a product reads it where the ticks are worth it."""
    turned = weight.t()
    return turned.contiguous() if ticks * TURNED >= len(weight) else turned


def _activations(states: Tensor, rows: Rows, sums: Tensor | None, activations: Activations) -> Work:
    """Of each slice, unless it stays as it is, what turns its sum into its state: in place, or from the sums."""
    names, results = [name for _, name in activations], _slices(states, rows, activations)
    if sums is None:
        pairs = zip(names, results, strict=True)
        return [
            (IN_PLACE[name], list(zip(result, strict=True))) for name, result in pairs if name != "identity"
        ]
    totals = _slices(sums, sums.unbind(0), activations)
    return [
        (_writing(k), list(zip(r, t, strict=True))) for k, r, t in zip(names, results, totals, strict=True)
    ]


def _writing(name: str) -> Callable[[Tensor, Tensor], Any]:
    return lambda result, total: result.copy_(RULES[name].function(total))


def returned(states: Tensor, plan: DensePlan) -> tuple[Tensor, Tensor]:
    """The states, unless the last alone is wanted, and what is read of the last, in memory of its own."""
    last = states[plan.order[-1]]
    last = (last if plan.read is None else last[:, slice(*plan.read)]).clone()
    return (states.new_empty(0, *states.shape[1:]) if plan.last_only else states), last


def _slices(tensor: Tensor, rows: Rows, activations: Activations) -> list[Rows]:
    """The rows of each slice."""
    if len(activations) == 1:
        return [rows]
    return [part.unbind(0) for part in torch.split(tensor, [width for width, _ in activations], -1)]


def _deltas(weight: Tensor, states: Tensor, sums: Tensor | None, plan: DensePlan, grads: Gradients) -> Tensor:
    """Δ of every tick, (ticks, B, n), in the order of time."""
    delta = torch.empty_like(states)
    rows = delta.unbind(0)
    order = plan.order[::-1]
    given = grads[0].unbind(0) if grads[0] is not None else None
    final = grads[1]
    if plan.read is not None and final is not None:
        final = torch.nn.functional.pad(final, (plan.read[0], len(weight) - plan.read[1]))
    _add(None if given is None else given[order[0]], final, rows[order[0]])
    if dense_numba.serves(states[0], plan):
        dense_numba.run_backward(weight, states, grads[0], plan, delta)
        return delta
    slices, factors = _slices(delta, rows, plan.activations), _factors(states, sums, plan)
    names = [name for _, name in plan.activations]
    work: Work = [
        (FROM_RESULT.get(name, Tensor.mul_), list(zip(part, factor, strict=True)))
        for name, part, factor in zip(names, slices, factors, strict=True)
        if factor is not None
    ]
    for place, t in enumerate(order):
        if place and given is not None:
            torch.addmm(given[t], rows[order[place - 1]], weight, out=rows[t])
        elif place:
            torch.mm(rows[order[place - 1]], weight, out=rows[t])
        for function, arguments in work:
            function(*arguments[t])
    return delta


def _add(a: Tensor | None, b: Tensor | None, out: Tensor) -> None:
    """a + b, a missing one being 0."""
    given = [g for g in (a, b) if g is not None]
    if len(given) == 2:
        torch.add(*given, out=out)
    else:
        out.copy_(given[0]) if given else out.zero_()


def _factors(states: Tensor, sums: Tensor | None, plan: DensePlan) -> list[Rows | None]:
    """Of each slice, per tick, what its gradient is formed with: the result, or σ' of the sum."""
    widths = [width for width, _ in plan.activations]
    totals = torch.split(states if sums is None else sums, widths, -1)
    made: list[Rows | None] = []
    for (_, name), total, result in zip(
        plan.activations, totals, torch.split(states, widths, -1), strict=True
    ):
        factor = result if name in FROM_RESULT else None if name == "identity" else _derivative(name, total)
        made.append(None if factor is None else factor.unbind(0))
    return made


def _derivative(name: str, total: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = total.detach().requires_grad_()
        result = RULES[name].function(leaf)
        return torch.autograd.grad(result, leaf, torch.ones_like(result))[0]


def weight_gradient(delta: Tensor, states: Tensor, init: Tensor, reverse: bool, zero: bool = False) -> Tensor:
    """Σ_t Δ_t s_{t-1}ᵀ: one product over all ticks but the first, whose state before is `init`, zero or not."""
    later, before = (delta[:-1], states[1:]) if reverse else (delta[1:], states[:-1])
    later, before = later.flatten(0, 1).t(), before.flatten(0, 1)
    if zero:
        return later @ before
    return torch.addmm(delta[-1 if reverse else 0].t() @ init, later, before)


def _input_gradient(delta: Tensor, inputs: Tensor, plan: DensePlan) -> Tensor:
    """Δ of each input; one shared by the batch or held over ticks gets their sum, one never read 0."""
    if inputs.shape[1] != delta.shape[1]:
        delta = delta.sum(1, keepdim=True)
    ticks = len(inputs)
    if plan.after == "hold" and plan.ticks > ticks:
        return torch.cat([delta[: ticks - 1], delta[ticks - 1 :].sum(0, keepdim=True)])
    unread = inputs.new_zeros(max(ticks - plan.ticks, 0), *delta.shape[1:])
    return torch.cat([delta, unread]) if len(unread) else delta[:ticks]
