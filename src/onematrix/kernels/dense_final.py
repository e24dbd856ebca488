"""The final state of a dense recurrence where nothing before it is wanted: two states in memory, no gradients."""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from onematrix.kernels import dense_numba
from onematrix.kernels.dense_plan import DensePlan
from onematrix.kernels.dense_states import IN_PLACE, turned_weight
from onematrix.programs.activations import RULES

Blocks = Sequence[Sequence[Tensor]]
Work = list[tuple[Callable[[Tensor], Any], Tensor]]  # what is done to which features of a state


def run_to_final(inputs: Tensor, blocks: Blocks, init: Tensor, plan: DensePlan) -> Tensor:
    """The features `plan.read` of the state after the last tick, (B, stop − start).

    blocks: W, cut into rows of blocks; the products of several blocks are added up in place.
    """
    cuts = list(pairwise(accumulate((len(row[0]) for row in blocks), initial=0)))
    start, stop = plan.read or (0, cuts[-1][1])
    if len(blocks) == 1 and dense_numba.serves(init, plan):
        pair = init.new_empty(2, *init.shape)
        dense_numba.run_forward(inputs, blocks[0][0], init, plan, pair, whole=False)
        return pair[(plan.ticks - 1) % 2, :, start:stop].clone()
    columns = reads_as_columns(init, plan)
    turned = [[block.t() if columns else turned_weight(block, plan) for block in row] for row in blocks]
    fed = plan.at_every_tick(inputs.unbind(0), inputs.new_zeros(1, init.shape[1]))
    before, order = None if plan.zero else _cut(init, cuts), plan.order
    rooms = [_room(init, columns) for _ in range(min(2, plan.ticks - 1))]
    pieces = [_cut(room, cuts) for room in rooms]
    work = [_activations(room, plan, 0) for room in rooms]
    for number, t in enumerate(order[:-1]):
        _step(_cut(fed[t], cuts), before, turned, pieces[number % 2])
        for function, features in work[number % 2]:
            function(features)
        before = pieces[number % 2]
    final = init.new_empty(len(init), stop - start)
    _last_step(_cut(fed[order[-1]], cuts), before, turned, final, cuts, start)
    for function, features in _activations(final, plan, start):
        function(features)
    return final


def reads_as_columns(init: Tensor, plan: DensePlan) -> bool:
    """Whether states are kept as columns: W is multiplied in the order it is stored, but what is fed is turned."""
    return plan.ticks * len(init) < init.shape[1]


def _cut(state: Tensor, cuts: Sequence[tuple[int, int]]) -> list[Tensor]:
    return [state] if len(cuts) == 1 else [state[:, a:b] for a, b in cuts]


def _room(like: Tensor, columns: bool) -> Tensor:
    """Memory of one state (B, n)."""
    return like.new_empty(like.shape[::-1]).t() if columns else torch.empty_like(like)


def _step(
    fed: Sequence[Tensor], before: Sequence[Tensor] | None, turned: Blocks, out: Sequence[Tensor]
) -> None:
    """fed + W before, slice by slice; of no state before, fed."""
    for given, row, place in zip(fed, turned, out, strict=True):
        if before is None:
            place.copy_(given)
            continue
        torch.addmm(given, before[0], row[0], out=place)
        for x, block in zip(before[1:], row[1:], strict=True):
            place.addmm_(x, block)


def _last_step(
    fed: Sequence[Tensor],
    before: Sequence[Tensor] | None,
    turned: Blocks,
    out: Tensor,
    cuts: Sequence[tuple[int, int]],
    start: int,
) -> None:
    """The step of the features that `out` holds, those from `start` on."""
    stop = start + out.shape[1]
    for given, row, (top, bottom) in zip(fed, turned, cuts, strict=True):
        a, b = max(start, top), min(stop, bottom)
        if a < b:
            rows = [block[:, a - top : b - top] for block in row]
            _step([given[:, a - top : b - top]], before, [rows], [out[:, a - start : b - start]])


def _activations(state: Tensor, plan: DensePlan, start: int) -> Work:
    """Of a state that holds the features from `start` on, what its slices go through."""
    work, place = Work(), -start
    for width, name in plan.activations:
        if name != "identity" and 0 <= place and place + width <= state.shape[1]:
            work.append((IN_PLACE.get(name, _rewriting(name)), state[:, place : place + width]))
        place += width
    return work


def _rewriting(name: str) -> Callable[[Tensor], Any]:
    return lambda features: features.copy_(RULES[name].function(features))
