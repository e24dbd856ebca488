"""torch's own recurrent cells over whole sequences, where a program is exactly one of them.

An LSTM and a GRU of a few samples on a CPU are a compiled loop that computes the same, where numba is installed.
Time leads: inputs are (T, B, I), hidden states (B, H). Weights are given per gate, as the equations name
them, and concatenated in torch's order; or as the one tensor torch holds.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from onematrix.errors import CompileError, ShapeError
from onematrix.kernels.gated_states import run_gated, serves
from onematrix.kernels.gated_torch import run_gated_by_torch

Gates = Sequence[Tensor] | Tensor  # gate by gate, or all of them one below the other


def native_rnn(
    inputs: Tensor,
    init: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    nonlinearity: str,
    *,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """h ← σ(W_ih x + b_ih + W_hh h + b_hh), σ = tanh or relu: all hidden (T, B, H) and the last (B, H)."""
    cells = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}
    if nonlinearity not in cells:
        raise CompileError(f"native_rnn: nonlinearity tanh or relu needed, got {nonlinearity!r}")
    if len(inputs) == 0:
        return _empty(inputs, init), init.clone()
    weights = _weights([w_ih], [w_hh], _listed(b_ih), _listed(b_hh), "native_rnn", 1)
    out, final = cells[nonlinearity](*_arguments(inputs, init.unsqueeze(0), weights, reverse))
    return _in_time_order(out, reverse), final.squeeze(0)


def native_lstm(
    inputs: Tensor,
    init: tuple[Tensor, Tensor],
    w_ih: Gates,
    w_hh: Gates,
    b_ih: Gates | None,
    b_hh: Gates | None,
    *,
    reverse: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """c ← f ∘ c + i ∘ g, h ← o ∘ tanh(c): all hidden (T, B, H) and the last (h, c).

    Gates in the order i, f, g, o: i, f, o = sigmoid and g = tanh of W_ih x + b_ih + W_hh h + b_hh.
    init: (h, c).
    """
    if len(inputs) == 0:
        return _empty(inputs, init[0]), (init[0].clone(), init[1].clone())
    weights = _weights(w_ih, w_hh, b_ih, b_hh, "native_lstm", 4)
    if serves("lstm", inputs, init, weights):
        out, h, c = run_gated("lstm", inputs, init, weights, reverse)
        return out, (h, c)
    if _is_mapped():
        out, h, c = run_gated_by_torch("lstm", reverse, inputs, init, weights)
        return out, (h, c)
    state = (init[0].unsqueeze(0), init[1].unsqueeze(0))
    out, h, c = torch.lstm(*_arguments(inputs, state, weights, reverse))
    return _in_time_order(out, reverse), (h.squeeze(0), c.squeeze(0))


def native_gru(
    inputs: Tensor,
    init: Tensor,
    w_ih: Gates,
    w_hh: Gates,
    b_ih: Gates | None,
    b_hh: Gates | None,
    *,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """h ← (1 − z) ∘ n + z ∘ h: all hidden (T, B, H) and the last (B, H).

    Gates in the order r, z, n: r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh),
    n = tanh(W_ih x + b_ih + r ∘ (W_hh h + b_hh)).
    """
    if len(inputs) == 0:
        return _empty(inputs, init), init.clone()
    weights = _weights(w_ih, w_hh, b_ih, b_hh, "native_gru", 3)
    if serves("gru", inputs, (init,), weights):
        out, final = run_gated("gru", inputs, (init,), weights, reverse)
        return out, final
    if _is_mapped():
        out, final = run_gated_by_torch("gru", reverse, inputs, (init,), weights)
        return out, final
    out, final = torch.gru(*_arguments(inputs, init.unsqueeze(0), weights, reverse))
    return _in_time_order(out, reverse), final.squeeze(0)


def _is_mapped() -> bool:
    """Whether vmap is the transform at work: torch has no rule to map its own cells over samples."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return False
    return bool(torch._C._functorch.peek_interpreter_stack().key() == torch._C._functorch.TransformType.Vmap)


def _arguments(inputs: Tensor, state: object, weights: list[Tensor], reverse: bool) -> tuple[Any, ...]:
    """What torch's cells take: …, biases or not, layers, dropout, training, both directions, batch leads."""
    x = inputs.flip(0) if reverse else inputs
    return x, state, weights, len(weights) == 4, 1, 0.0, torch.is_grad_enabled(), False, False


def _in_time_order(out: Tensor, reverse: bool) -> Tensor:
    return out.flip(0) if reverse else out


def _empty(inputs: Tensor, init: Tensor) -> Tensor:
    return inputs.new_empty(0, *init.shape)


def _listed(tensor: Tensor | None) -> Gates | None:
    return None if tensor is None else [tensor]


def _weights(
    w_ih: Gates, w_hh: Gates, b_ih: Gates | None, b_hh: Gates | None, who: str, gates: int
) -> list[Tensor]:
    """[W_ih, W_hh] and, where there are any, [b_ih, b_hh]; a missing one of the two is 0."""
    lists = [w_ih, w_hh] if b_ih is None and b_hh is None else [w_ih, w_hh, b_ih, b_hh]
    counts = [gates if gate is None or isinstance(gate, Tensor) else len(gate) for gate in lists]
    if counts != [gates] * len(lists):
        raise ShapeError(f"{who}: {gates} gates needed in each list, got {counts}", needed=gates, got=counts)
    return [_zeros(w_hh) if g is None else _joined(g) for g in lists]


def _joined(gates: Gates) -> Tensor:
    if isinstance(gates, Tensor):
        return gates
    return gates[0] if len(gates) == 1 else torch.cat(list(gates))


def _zeros(w_hh: Gates) -> Tensor:
    return w_hh[0].new_zeros(sum(len(w) for w in ([w_hh] if isinstance(w_hh, Tensor) else w_hh)))
