"""The product of a vector with a matrix of cores, core by core, as batched products on views.

Between two stages the state is a tensor with one axis per letter and one for the vectors of the batch,
"*". A stage with one core divides the letters: `over` are in both and needed no more, they are summed;
`batch` are in both and needed again; `free` are in the state alone; `new` in the core alone. It is

    state[batch, new, free] = Σ_over core[batch, new, over] state[batch, over, free],

one torch.bmm, without a copy of the state where the letters of every group lie next to each other in
memory. The order of the new letters is chosen for that. Where nothing is summed the stage is a product of
entries.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onematrix.structures.multilinear import Form

ALL_ORDERS = 6  # cores up to which every order of visits is tried
VECTORS = "*"  # the letter of the batch
_PLANS: dict[tuple[Form, tuple[tuple[int, ...], ...]], "Plan"] = {}


@dataclass(frozen=True)
class Stage:
    """One core met by the state; every group of letters in the order it is laid out in."""

    core: int
    batch: str
    new: str
    over: str
    free: str
    into: tuple[int, ...]  # permutation of the state to batch, over, free
    core_into: tuple[int, ...]  # permutation of the core to batch, new, over
    batch_sizes: tuple[int, ...]
    new_sizes: tuple[int, ...]
    counts: tuple[int, int, int]  # products of the sizes of batch, new and over


@dataclass(frozen=True)
class Plan:
    """Stages in the order they run, sizes by letter, and the last permutation, to vectors and output."""

    stages: tuple[Stage, ...]
    sizes: Mapping[str, int]
    inputs: str
    last: tuple[int, ...]

    def count(self, letters: str) -> int:
        """Product of the sizes of some letters, without the batch."""
        return math.prod(self.sizes[c] for c in letters if c != VECTORS)

    def multiply_adds(self) -> int:
        """Per input vector."""
        return sum(self.count(s.batch + s.new + s.over + s.free) for s in self.stages)

    def fan_in(self) -> dict[int, int]:
        """Core → number of terms it sums."""
        return {s.core: self.count(s.over) for s in self.stages}


def plan(form: Form, shapes: tuple[tuple[int, ...], ...]) -> Plan:
    """The plan for x Aᵀ with cores of these shapes; made once. For x A give the form with its sides swapped."""
    key = form, shapes
    if key not in _PLANS:  # a dictionary, as torch.compile looks it up but would trace a search
        sizes = {
            c: n
            for axes, shape in zip(form.cores, shapes, strict=True)
            for c, n in zip(axes, shape, strict=True)
        }
        _PLANS[key] = _lay_out(form, cheapest_order(form, sizes), sizes)
    return _PLANS[key]


def swapped(form: Form) -> Form:
    """The form of the transpose."""
    return Form(form.cores, form.columns, form.rows)


def apply(found: Plan, cores: Sequence[Tensor], x: Tensor) -> Tensor:
    """x: (..., inputs) → (..., outputs), stored vector by vector only where that needs no copy."""
    state = x.reshape(-1, *(found.sizes[c] for c in found.inputs))
    for stage in found.stages:
        state = _run(stage, cores[stage.core], state)
    outputs = state.permute(found.last).flatten(1)
    return outputs.reshape(-1) if x.dim() == 1 else outputs.reshape(*x.shape[:-1], outputs.shape[-1])


def _run(stage: Stage, core: Tensor, state: Tensor) -> Tensor:
    state, core = state.permute(stage.into), core.permute(stage.core_into)
    axes = state.shape[len(stage.batch) + len(stage.over) :]
    batch, new = stage.batch_sizes, stage.new_sizes
    if not stage.over:
        ones = [1] * len(stage.free)
        return core.reshape(*batch, *new, *ones) * state.reshape(*batch, *[1] * len(new), *axes)
    many, rows, over = stage.counts
    vectors = _numel(axes)
    if not stage.batch:
        out = torch.mm(core.reshape(rows, over), state.reshape(over, vectors))
    else:
        out = torch.bmm(core.reshape(many, rows, over), state.reshape(many, over, vectors))
    return out.reshape(*batch, *new, *axes)


def _numel(axes: Sequence[int]) -> int:
    count = 1
    for size in axes:  # sizes may be symbols under torch.export, which math.prod would fix
        count = count * size
    return count


def cheapest_order(form: Form, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The order of cores with the fewest multiply-adds; the last core first where they tie."""
    count = len(form.cores)
    if count > ALL_ORDERS:
        return _greedy_order(form, sizes)
    orders = itertools.permutations(reversed(range(count)))
    return min(orders, key=lambda order: sum(_costs(form, order, sizes)))


def _greedy_order(form: Form, sizes: Mapping[str, int]) -> tuple[int, ...]:
    order: list[int] = []
    while left := [k for k in reversed(range(len(form.cores))) if k not in order]:
        order.append(min(left, key=lambda k: _costs(form, (*order, k), sizes)[-1]))
    return tuple(order)


def _costs(form: Form, order: Sequence[int], sizes: Mapping[str, int]) -> list[int]:
    """Multiply-adds of every stage."""
    state, costs = set(form.columns), []
    for place, core in enumerate(order):
        axes = set(form.cores[core])
        costs.append(math.prod(sizes[c] for c in state | axes))
        state = (state | axes) & _needed(form, order[: place + 1])
    return costs


def _needed(form: Form, done: Sequence[int]) -> set[str]:
    """Letters of the output and of the cores still to come."""
    rest = [axes for k, axes in enumerate(form.cores) if k not in done]
    return set("".join([form.rows, *rest]))


def _lay_out(form: Form, order: Sequence[int], sizes: Mapping[str, int]) -> Plan:
    memory, stages = VECTORS + form.columns, []
    for place, core in enumerate(order):
        done, axes = order[: place + 1], form.cores[core]
        needed = _needed(form, done) | {VECTORS}
        shared = [c for c in memory if c in axes]
        batch = "".join(c for c in shared if c in needed)
        over = "".join(c for c in shared if c not in needed)
        free = "".join(c for c in memory if c not in axes)
        new = [c for c in axes if c not in memory]
        coming = form.cores[order[place + 1]] if place + 1 < len(order) else None
        after = _needed(form, order[: place + 2]) if coming else set()
        laid = [batch + "".join(some) + free for some in itertools.permutations(new)]
        best = min(laid, key=lambda text: _breaks(text, coming, after, form.rows))
        chosen = best[len(batch) : len(best) - len(free)]
        into = tuple(memory.index(c) for c in batch + over + free)
        core_into = tuple(axes.index(c) for c in batch + chosen + over)
        groups = [tuple(sizes[c] for c in letters) for letters in (batch, chosen, over)]
        many, rows, summed = map(math.prod, groups)
        stages.append(
            Stage(
                core, batch, chosen, over, free, into, core_into, groups[0], groups[1], (many, rows, summed)
            )
        )
        memory = best
    last = tuple(memory.index(c) for c in VECTORS + form.rows)
    return Plan(tuple(stages), dict(sizes), form.columns, last)


def _breaks(memory: str, coming: str | None, after: set[str], rows: str) -> int:
    """How many neighbours of one group would not be neighbours in memory, in the stage to come or the output."""
    if coming is None:
        return sum(b not in memory or memory.find(a + b) < 0 for a, b in itertools.pairwise(rows))
    groups = (
        [c for c in memory if c in coming and c in after],
        [c for c in memory if c in coming and c not in after],
        [c for c in memory if c not in coming],
    )
    return sum(memory.find(a + b) < 0 for group in groups for a, b in itertools.pairwise(group))
