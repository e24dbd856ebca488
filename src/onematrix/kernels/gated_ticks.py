"""A GRU of many samples: between two products of torch, one compiled loop over all gates of a tick.

Torch's own cell spends more time between its products than in them: a dozen operations a tick, several dozen with
gradients.
"""

import torch
from torch import Tensor

from onematrix.kernels.dense_states import turned_weight
from onematrix.kernels.gated_numba import arrays_of, loops
from onematrix.kernels.numba_arrays import format_of


def run_gru_ticks(
    w_hh: Tensor, b_hn: Tensor, h: Tensor, gates: Tensor, carried: Tensor, out: Tensor, reverse: bool
) -> None:
    """As `gated_numba.run_gru`."""
    tick = loops("gru", format_of(out), own=False)[0]
    p, ticks = gates.new_empty(gates.shape[1:]), len(out)
    turned = turned_weight(w_hh, ticks)
    fixed = arrays_of(w_hh, b_hn, h, p)
    gate, q, hidden = arrays_of(gates, carried, out)
    whole = len(carried) == ticks
    for t in reversed(range(ticks)) if reverse else range(ticks):
        torch.mm(h, turned, out=p)
        at = slice(t, t + 1)
        tick(False, *fixed, gate[at], q[at] if whole else q, hidden[at])


def run_gru_backward_ticks(
    w_hh: Tensor, h: Tensor, gates: Tensor, carried: Tensor, out: Tensor, grads: tuple[Tensor, Tensor, Tensor],
    delta: Tensor, fed_n: Tensor, reverse: bool,
) -> None:  # fmt: skip
    """As `gated_numba.run_gru_backward`."""
    tick = loops("gru", format_of(out), own=False)[1]
    every, dh, more = grads
    weight, first, of_h, of_product = arrays_of(w_hh, h, dh, more)
    gate, q, hidden, given, made, made_n = arrays_of(gates, carried, out, every, delta, fed_n)
    rows, ticks = delta.unbind(0), len(out)
    for t in range(ticks) if reverse else reversed(range(ticks)):
        before, at = t + 1 if reverse else t - 1, slice(t, t + 1)
        old = hidden[before] if 0 <= before < ticks else first
        tick(
            *(False, weight, old, gate[at], q[at], hidden[at], given[at], of_h, of_product),
            *(made[at], made_n[at]),
        )
        torch.mm(rows[t], w_hh, out=more)
