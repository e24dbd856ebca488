"""LSTM and GRU in compiled loops: one product over all ticks before, one per weight gradient after.

Of a few samples the loop makes its own products; of more a GRU makes them by torch, tick by tick.
"""

from typing import Any

import torch
from torch import Tensor

from onematrix.kernels.dense_states import weight_gradient
from onematrix.kernels.gated_numba import run_gru, run_gru_backward, run_lstm, run_lstm_backward
from onematrix.kernels.gated_ticks import run_gru_backward_ticks, run_gru_ticks
from onematrix.kernels.gated_torch import State, run_gated_by_torch
from onematrix.kernels.numba_arrays import refusal
from onematrix.kernels.portable_gradients import portable_gradients
from onematrix.structures.ordinary import is_ordinary

# Numbers of a state, of all samples, up to which the loop is the faster: without gradients; with them, on one thread.
FEW = (1024, 4096)
FEW_OF_ONEDNN = (0, 256)  # the same of an LSTM in float32, where torch's cell is one kernel of oneDNN
# Numbers of all states from which on the loop is worth its compilation, 2 seconds and 1 more for gradients.
WORTHWHILE = {"gru": 2048, "lstm": 8192}
# Samples, features, and numbers of W read for them, from which on torch's products of a tick are the faster ones.
MANY = (4, 64, 2**16)
GATES = {"lstm": 4, "gru": 3}
Gradients = tuple[Tensor | None, ...]
Made = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # outputs, and what gradients need besides


def serves(kind: str, inputs: Tensor, state: State, weights: list[Tensor]) -> bool:
    """Whether the compiled loop computes this, and is the faster one; what torch refuses is left to torch."""
    tensors = (inputs, *state, *weights)
    if not is_ordinary(*tensors) or torch.jit.is_tracing():
        return False
    h, numbers = state[0], state[0].numel()
    few = FEW_OF_ONEDNN if kind == "lstm" and h.dtype == torch.float32 else FEW
    wanted = _wanted(tensors)
    most = few[wanted] // (2 if wanted and torch.get_num_threads() > 1 else 1)  # the loop has one thread
    if not (0 < numbers <= most or (kind == "gru" and _by_ticks(h))):
        return False
    if len(inputs) * numbers < WORTHWHILE[kind]:
        return False
    if refusal(h) is not None or torch.is_autocast_enabled(h.device.type):
        return False
    return _fits(GATES[kind], inputs, state, weights)


def _by_ticks(h: Tensor) -> bool:
    """Whether a GRU's products are torch's; on one thread, since what is between them is."""
    samples, features, read = MANY
    if len(h) < samples or h.shape[1] < features or h.numel() * h.shape[1] < read:
        return False
    return torch.get_num_threads() == 1


def _wanted(tensors: State) -> bool:
    """Whether gradients are."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _fits(gates: int, inputs: Tensor, state: State, weights: list[Tensor]) -> bool:
    """One dtype, and the shapes of the equations."""
    h = state[0]
    if inputs.dim() != 3 or h.dim() != 2 or any(t.dtype != h.dtype for t in (inputs, *state, *weights)):
        return False
    (_, batch, width), n = inputs.shape, h.shape[1]
    shapes = [(batch, n)] * len(state) + [(gates * n, width), (gates * n, n), (gates * n,), (gates * n,)]
    return [t.shape for t in (*state, *weights)] == shapes[: len(state) + len(weights)]


def run_gated(
    kind: str, inputs: Tensor, state: State, weights: list[Tensor], reverse: bool
) -> tuple[Tensor, ...]:
    """All hidden states (T, B, H) and the final state, each (B, H); at least one tick."""
    tensors = (inputs, *state, *weights)
    if _wanted(tensors):
        return GatedStates.apply(kind, reverse, *tensors)  # type: ignore[no-any-return, no-untyped-call]
    return FORWARD[kind](reverse, tensors, False)[0]


class GatedStates(torch.autograd.Function):
    """All hidden states and the final state, of (kind, reverse, inputs, *state, *weights); at least one tick.

    The loop gives Δ_t, the gradients of the gates' sums. Then dW_ih = Σ_t Δ_t x_tᵀ, dW_hh = Σ_t Δ_t h_{t-1}ᵀ,
    db = Σ_t Δ_t, dx_t = W_ihᵀ Δ_t; for the gate n of a GRU what is fed and what is carried have a Δ each.
    """

    @staticmethod
    def forward(ctx: Any, kind: str, reverse: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs, kept = FORWARD[kind](reverse, tensors, True)
        ctx.save_for_backward(*tensors, outputs[0], *kept)
        ctx.kind, ctx.reverse, ctx.count = kind, reverse, len(tensors)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        tensors, kept = saved[: ctx.count], saved[ctx.count :]
        kind, reverse, needs = ctx.kind, ctx.reverse, ctx.needs_input_grad[2:]
        if torch.is_grad_enabled() or not is_ordinary(*(g for g in grads if g is not None)):
            states = len(grads) - 1
            run = lambda x, *t: run_gated_by_torch(kind, reverse, x, t[:states], list(t[states:]))  # noqa: E731
            return None, None, *portable_gradients(run, tensors, grads)
        return None, None, *BACKWARD[kind](reverse, tensors, kept, grads, needs)


def _forward_lstm(reverse: bool, tensors: State, whole: bool) -> Made:
    """Outputs; the gates and, where they are wanted whole for gradients, the cells of all ticks."""
    inputs, h, c, w_ih, w_hh, *biases = tensors
    gates = _fed(inputs, w_ih, biases[0] + biases[1] if biases else None)
    h, c, out = _own(h, h), _own(c, h), h.new_empty(len(inputs), *h.shape)
    cells = h.new_empty(len(inputs) if whole else 1, *h.shape)
    run_lstm(w_hh, h, c, gates, cells, out, reverse)
    return (out, h, c), (gates, cells)


def _forward_gru(reverse: bool, tensors: State, whole: bool) -> Made:
    """Outputs; the gates and, where they are wanted whole for gradients, W_hn h + b_hn of all ticks."""
    inputs, h, w_ih, w_hh, *biases = tensors
    n = h.shape[1]
    bias, b_hn = None, h.new_zeros(n)
    if biases:
        bias, b_hn = biases[0].clone(), biases[1][2 * n :]
        bias[: 2 * n] += biases[1][: 2 * n]
    gates = _fed(inputs, w_ih, bias)
    h, out = _own(h, h), h.new_empty(len(inputs), *h.shape)
    carried = h.new_empty(len(inputs) if whole else 1, *h.shape)
    run = run_gru_ticks if _by_ticks(h) else run_gru
    run(w_hh, b_hn, h, gates, carried, out, reverse)
    return (out, h), (gates, carried)


def _fed(inputs: Tensor, w_ih: Tensor, bias: Tensor | None) -> Tensor:
    """W_ih x + bias of all ticks, in memory of its own: the loop writes the gates over it."""
    return torch.nn.functional.linear(inputs.contiguous(), w_ih, bias)


def _backward_lstm(
    reverse: bool, tensors: State, kept: State, grads: Gradients, needs: tuple[bool, ...]
) -> list[Tensor | None]:
    inputs, h, c, w_ih, w_hh, *_ = tensors
    out, gates, cells = kept
    every, dh, dc = _every(grads[0], out), _own(grads[1], h), _own(grads[2], c)
    delta = torch.empty_like(gates)
    run_lstm_backward(w_hh, c, gates, cells, (every, dh, dc), delta, reverse)
    carried = weight_gradient(delta, out, h, reverse) if needs[4] else None
    bias = delta.sum((0, 1)) if any(needs[5:]) else None
    return [
        _to_inputs(delta, w_ih, needs[0]),
        dh,
        dc,
        _to_weight(delta, inputs, needs[3]),
        carried,
        bias,
        bias,
    ][: len(tensors)]


def _backward_gru(
    reverse: bool, tensors: State, kept: State, grads: Gradients, needs: tuple[bool, ...]
) -> list[Tensor | None]:
    inputs, h, w_ih, w_hh, *_ = tensors
    out, gates, carried = kept
    every, dh, more = _every(grads[0], out), _own(grads[1], h), _own(None, h)
    delta, fed_n = torch.empty_like(gates), torch.empty_like(out)
    run = run_gru_backward_ticks if _by_ticks(h) else run_gru_backward
    run(w_hh, h, gates, carried, out, (every, dh, more), delta, fed_n, reverse)
    made = weight_gradient(delta, out, h, reverse) if needs[3] else None
    b_hh = delta.sum((0, 1)) if any(needs[5:]) else None
    delta[..., 2 * h.shape[1] :] = fed_n
    b_ih = delta.sum((0, 1)) if any(needs[4:5]) else None
    return [
        _to_inputs(delta, w_ih, needs[0]),
        dh + more,
        _to_weight(delta, inputs, needs[2]),
        made,
        b_ih,
        b_hh,
    ][: len(tensors)]


def _every(grad: Tensor | None, out: Tensor) -> Tensor:
    return torch.zeros_like(out) if grad is None else grad


def _own(grad: Tensor | None, like: Tensor) -> Tensor:
    """In memory of its own: the loop writes over it."""
    if grad is None:
        return torch.zeros_like(like, memory_format=torch.contiguous_format)
    return grad.clone(memory_format=torch.contiguous_format)


def _to_inputs(delta: Tensor, w_ih: Tensor, needed: bool) -> Tensor | None:
    return delta @ w_ih if needed else None


def _to_weight(delta: Tensor, inputs: Tensor, needed: bool) -> Tensor | None:
    """Σ_t Δ_t x_tᵀ."""
    return delta.flatten(0, 1).t() @ inputs.flatten(0, 1) if needed else None


FORWARD = {"lstm": _forward_lstm, "gru": _forward_gru}
BACKWARD = {"lstm": _backward_lstm, "gru": _backward_gru}
