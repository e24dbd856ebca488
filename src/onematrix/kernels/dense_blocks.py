"""The final state of a dense recurrence whose matrix has more numbers than all its states: it is not put together.

The products of its blocks are added up in place, in memory of two states.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from onematrix.kernels.dense_final import activations_of, room_of_state
from onematrix.kernels.dense_plan import DensePlan

Blocks = Sequence[Sequence[Tensor]]


def run_by_blocks(inputs: Tensor, blocks: Blocks, init: Tensor, plan: DensePlan) -> Tensor:
    """The features `plan.read` of the state after the last tick, (B, stop − start); of at least one tick.

    Of the last tick only the rows of blocks are computed that are read.
    """
    cuts = list(pairwise(accumulate((len(row[0]) for row in blocks), initial=0)))
    start, stop = plan.read or (0, cuts[-1][1])
    turned = [[block.t() for block in row] for row in blocks]
    rooms = [room_of_state(init, True) for _ in range(2)]
    slices = [[room[:, a:b] for a, b in cuts] for room in rooms]
    work = [activations_of(room, plan, 0) for room in rooms]
    fed = plan.at_every_tick(inputs.unbind(0), inputs.new_zeros(1, init.shape[1]))
    before = None if plan.zero else [init[:, a:b] for a, b in cuts]
    for number, t in enumerate(plan.order):
        last = number + 1 == plan.ticks
        for place, row, (a, b) in zip(slices[number % 2], turned, cuts, strict=True):
            if last and (b <= start or stop <= a):
                continue
            if before is None:
                place.copy_(fed[t][:, a:b])
                continue
            torch.addmm(fed[t][:, a:b], before[0], row[0], out=place)
            for x, block in zip(before[1:], row[1:], strict=True):
                place.addmm_(x, block)
        for function, features in work[number % 2]:
            function(features)
        before = slices[number % 2]
    return rooms[(plan.ticks - 1) % 2][:, start:stop].clone(memory_format=torch.contiguous_format)
