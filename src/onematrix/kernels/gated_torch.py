"""LSTM and GRU by one torch operation after another: every derivative, every rule of torch."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

State = tuple[Tensor, ...]


def run_gated_by_torch(
    kind: str, reverse: bool, inputs: Tensor, state: State, weights: list[Tensor]
) -> tuple[Tensor, ...]:
    """All hidden states and the final state, of an LSTM's (h, c) or a GRU's (h,).

    weights: W_ih, W_hh and, where there are any, b_ih, b_hh.
    """
    w_ih, w_hh, *biases = weights
    b_ih, b_hh = biases if biases else (None, None)
    fed = linear(inputs, w_ih, b_ih).unbind(0)
    hidden = []
    for a in reversed(fed) if reverse else fed:
        state = TICKS[kind](a, linear(state[0], w_hh, b_hh), state)
        hidden.append(state[0])
    return torch.stack(hidden[::-1] if reverse else hidden), *state


def _lstm_tick(a: Tensor, p: Tensor, state: State) -> State:
    i, f, g, o = (a + p).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_tick(a: Tensor, p: Tensor, state: State) -> State:
    (ar, az, an), (pr, pz, pn) = a.chunk(3, -1), p.chunk(3, -1)
    z, n = (az + pz).sigmoid(), (an + (ar + pr).sigmoid() * pn).tanh()
    return ((1 - z) * n + z * state[0],)


TICKS: dict[str, Callable[[Tensor, Tensor, State], State]] = {"lstm": _lstm_tick, "gru": _gru_tick}
