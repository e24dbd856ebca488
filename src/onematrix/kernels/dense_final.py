"""The final state of a dense recurrence where nothing before it is wanted: two states in memory, no gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onematrix.kernels import dense_numba
from onematrix.kernels.dense_plan import DensePlan
from onematrix.kernels.dense_states import IN_PLACE, turned_weight
from onematrix.programs.activations import RULES

Work = list[tuple[Callable[[Tensor], Any], Tensor]]  # what is done to which features of a state


def run_to_final(inputs: Tensor, weight: Tensor, init: Tensor, plan: DensePlan) -> Tensor:
    """The features `plan.read` of the state after the last tick, (B, stop − start)."""
    start, stop = plan.read or (0, len(weight))
    if dense_numba.serves(init, plan):
        pair = init.new_empty(2, *init.shape)
        dense_numba.run_forward(inputs, weight, init, plan, pair, whole=False)
        return pair[(plan.ticks - 1) % 2, :, start:stop].clone()
    # As columns, states are multiplied by W in the order it is stored, but what is fed has to be turned.
    columns = reads_as_columns(init, plan)
    turned = weight.t() if columns else turned_weight(weight, plan.ticks)
    fed = plan.at_every_tick(inputs.unbind(0), inputs.new_zeros(1, init.shape[1]))
    before, order = init, plan.order
    rooms = [room_of_state(init, columns) for _ in range(min(2, plan.ticks - 1))]
    work = [activations_of(room, plan, 0) for room in rooms]
    for number, t in enumerate(order[:-1]):
        _step(rooms[number % 2], fed[t], None if plan.zero and not number else before, turned)
        for function, features in work[number % 2]:
            function(features)
        before = rooms[number % 2]
    final = init.new_empty(len(init), stop - start)
    last = fed[order[-1]][:, start:stop]
    _step(final, last, None if plan.zero and plan.ticks == 1 else before, turned[:, start:stop])
    for function, features in activations_of(final, plan, start):
        function(features)
    return final


def reads_as_columns(init: Tensor, plan: DensePlan) -> bool:
    """Whether states are kept as columns: W is multiplied in the order it is stored, but what is fed is turned."""
    return plan.ticks * len(init) < init.shape[1]


def room_of_state(like: Tensor, columns: bool) -> Tensor:
    """Memory of one state (B, n)."""
    return like.new_empty(like.shape[::-1]).t() if columns else torch.empty_like(like)


def _step(out: Tensor, fed: Tensor, before: Tensor | None, turned: Tensor) -> None:
    """fed + W before; of no state before, fed."""
    if before is None:
        out.copy_(fed)
    else:
        torch.addmm(fed, before, turned, out=out)


def activations_of(state: Tensor, plan: DensePlan, start: int) -> Work:
    """Of a state that holds the features from `start` on, what its slices go through."""
    work, place = Work(), -start
    for width, name in plan.activations:
        if name != "identity" and 0 <= place and place + width <= state.shape[1]:
            work.append((IN_PLACE.get(name, _rewriting(name)), state[:, place : place + width]))
        place += width
    return work


def _rewriting(name: str) -> Callable[[Tensor], Any]:
    return lambda features: features.copy_(RULES[name].function(features))
