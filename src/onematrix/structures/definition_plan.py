"""The product of a vector with a matrix of cores, core by core, as batched products on views.

Between two stages the state is a tensor with one axis per letter and one for the vectors of the batch,
"*". A stage with one core divides the letters: `over` are in both and needed no more, they are summed;
`batch` are in both and needed again; `free` are in the state alone; `new` in the core alone. It is

    state[batch, new, free] = Σ_over core[batch, new, over] state[batch, over, free],

one product, without a copy of the state where the letters of every group lie next to each other in memory.
The result can be laid out in several orders (`LAYOUTS`); those of all stages are chosen together, so that as
few numbers as possible are copied and the output stands vector by vector. Where nothing is summed the stage
is a product of entries.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from onematrix.structures.grouped_product import multiply_groups
from onematrix.structures.multilinear import Form

ALL_ORDERS = 6  # cores up to which every order of visits is tried
VECTORS = "*"  # the letter of the batch
_PLANS: dict[tuple[Form, tuple[tuple[int, ...], ...]], "Plan"] = {}


# How the groups of a result follow each other in memory. "each" multiplies with the core vector by vector.
LAYOUTS = ("batch new free", "new batch free", "batch free new", "free batch new", "each new free")
USUAL_VECTORS = 256  # of a batch, when copies of the state and of a core are weighed
# Costs in copies of a result: an output column by column, a result not vector by vector, groups put side by side.
BY_COLUMNS, BY_LETTERS, SIDE_BY_SIDE = 0.1, 0.02, 0.2


@dataclass(frozen=True)
class Stage:
    """One core met by the state; every group of letters in the order it is laid out in."""

    core: int
    batch: str
    new: str
    over: str
    free: str
    layout: str
    into: tuple[int, ...]  # permutation of the state to batch, over, free
    core_into: tuple[int, ...]  # permutation of the core to batch, new, over
    batch_sizes: tuple[int, ...]
    new_sizes: tuple[int, ...]
    counts: tuple[int, int, int]  # products of the sizes of batch, new and over
    linear: bool  # whether state and core are stored so that torch's linear takes them as they are

    @property
    def memory(self) -> str:
        """The letters of the result in the order it is stored in."""
        groups = {"batch": self.batch, "new": self.new, "free": self.free, "each": VECTORS}
        if self.layout.startswith("each"):
            groups["free"] = self.free.replace(VECTORS, "")
        return "".join(groups[group] for group in self.layout.split())


@dataclass(frozen=True)
class Plan:
    """Stages in the order they run, sizes by letter, and the last permutation, to vectors and output."""

    stages: tuple[Stage, ...]
    sizes: Mapping[str, int]
    input_sizes: tuple[int, ...]
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
    state = x.reshape(-1, *found.input_sizes)
    for stage in found.stages:
        state = _run(stage, cores[stage.core], state)
    outputs = state.permute(found.last).flatten(1)
    if x.dim() == 2:
        return outputs
    return outputs.reshape(-1) if x.dim() == 1 else outputs.reshape(*x.shape[:-1], outputs.shape[-1])


def _run(stage: Stage, core: Tensor, state: Tensor) -> Tensor:
    if stage.linear:
        y = functional.linear(state.flatten(len(stage.free)), core.reshape(stage.counts[1:]))
        return y if len(stage.new_sizes) == 1 else y.reshape(*y.shape[:-1], *stage.new_sizes)
    state, core = state.permute(stage.into), core.permute(stage.core_into)
    axes = state.shape[len(stage.batch) + len(stage.over) :]
    batch, new = stage.batch_sizes, stage.new_sizes
    if not stage.over:
        ones = [1] * len(stage.free)
        return core.reshape(*batch, *new, *ones) * state.reshape(*batch, *[1] * len(new), *axes)
    many, rows, over = stage.counts
    if stage.layout == "each new free":
        place = len(stage.over) + stage.free.index(VECTORS)
        each = state.movedim(place, 0)
        count, left = each.shape[0], each.shape[1 + len(stage.over) :]
        out = torch.bmm(
            core.reshape(rows, over).expand(count, rows, over), each.reshape(count, over, _numel(left))
        )
        return out.reshape(count, *new, *left)
    matrices, vectors = core.reshape(many, rows, over), state.reshape(many, over, _numel(axes))
    if stage.layout == "batch new free":
        return _multiply(matrices, vectors).reshape(*batch, *new, *axes)
    if stage.layout == "batch free new":
        return _multiply(vectors.mT, matrices.mT).reshape(*batch, *axes, *new)
    if stage.layout == "new batch free":
        return multiply_groups(matrices, vectors).reshape(*new, *batch, *axes)
    return multiply_groups(vectors.mT, matrices.mT).reshape(*axes, *batch, *new)


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    """a b per group; one plain product where there is one group."""
    return torch.mm(a[0], b[0]) if a.shape[0] == 1 else torch.bmm(a, b)


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
    """The stages with the least copying, by the cheapest way to every layout a stage can end in."""
    weight = {**sizes, VECTORS: USUAL_VECTORS}
    ways: dict[str, tuple[float, tuple[Stage, ...]]] = {VECTORS + form.columns: (0.0, ())}
    for place, core in enumerate(order):
        needed = _needed(form, order[: place + 1]) | {VECTORS}
        reached: dict[str, tuple[float, tuple[Stage, ...]]] = {}
        for memory, (cost, stages) in ways.items():
            for stage in _stages(core, form.cores[core], memory, needed, sizes):
                total = cost + _copies(stage, form.cores[core], memory, weight)
                if stage.memory not in reached or total < reached[stage.memory][0]:
                    reached[stage.memory] = total, (*stages, stage)
        ways = reached
    ends = {memory: way[0] + _ending(form, memory, weight) for memory, way in ways.items()}
    memory = min(ends, key=ends.__getitem__)
    last = tuple(memory.index(c) for c in VECTORS + form.rows)
    return Plan(ways[memory][1], dict(sizes), tuple(sizes[c] for c in form.columns), last)


def _stages(core: int, axes: str, memory: str, needed: set[str], sizes: Mapping[str, int]) -> Iterator[Stage]:
    """Every way to meet a core: the orders of its new letters, the layouts of the result."""
    shared = [c for c in memory if c in axes]
    batch = "".join(c for c in shared if c in needed)
    over = "".join(c for c in shared if c not in needed)
    free = "".join(c for c in memory if c not in axes)
    into = tuple(memory.index(c) for c in batch + over + free)
    for some in itertools.permutations(c for c in axes if c not in memory):
        new = "".join(some)
        outer, rows, inner = (tuple(sizes[c] for c in letters) for letters in (batch, new, over))
        counts = (math.prod(outer), math.prod(rows), math.prod(inner))
        core_into = tuple(axes.index(c) for c in batch + new + over)
        for layout in LAYOUTS if over else LAYOUTS[:1]:
            if _makes_sense(layout, batch, free):
                linear = (
                    layout == "batch free new" and not batch and memory == free + over and axes == new + over
                )
                yield Stage(
                    core, batch, new, over, free, layout, into, core_into, outer, rows, counts, linear
                )


def _makes_sense(layout: str, batch: str, free: str) -> bool:
    """Groups exist only with letters to group by; vector by vector only where vectors have more letters."""
    if layout.startswith("each"):
        return not batch and len(free) > 1
    return bool(batch) or layout.startswith("batch")


def _copies(stage: Stage, axes: str, memory: str, weight: Mapping[str, int]) -> float:
    """Numbers of the state and of the core that are copied before the stage, and what its layout costs."""
    groups = [stage.batch, stage.over, stage.free]
    if stage.layout.startswith("each"):
        groups = [VECTORS, stage.over, stage.free.replace(VECTORS, "")]
    copied = 0.0
    if stage.over and not _views(memory, *groups):
        copied += math.prod(weight[c] for c in memory)
    if stage.over and not _views(axes, stage.batch, stage.new, stage.over):
        copied += math.prod(weight[c] for c in axes)
    result = math.prod(weight[c] for c in stage.memory)
    copied += BY_LETTERS * result * (not stage.memory.startswith(VECTORS))
    return copied + SIDE_BY_SIDE * result * (stage.layout in ("new batch free", "free batch new"))


def _views(memory: str, batch: str, *sides: str) -> bool:
    """Whether the letters, in this order in memory, are a batch of matrices that a product reads in place."""
    together = all(not group or group in memory for group in (batch, *sides))
    return together and (not batch or not any(sides) or not memory.endswith(batch[-1]))


def _ending(form: Form, memory: str, weight: Mapping[str, int]) -> float:
    """What the layout of the output costs: nothing vector by vector, a copy where its letters are apart."""
    numbers = math.prod(weight[c] for c in memory)
    if memory == VECTORS + form.rows:
        return 0.0
    return BY_COLUMNS * numbers if memory == form.rows + VECTORS else numbers
