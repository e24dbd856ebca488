"""The memory a compiled elementwise recurrence writes, whichever compiler made its loops."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from onematrix.kernels.elementwise_code import ElementwiseLoop, read_loop
from onematrix.kernels.elementwise_text import ForwardVariant
from onematrix.kernels.elementwise_torch import Sizes


@dataclass(frozen=True)
class Written:
    """What a forward run writes; courses: by carried value, its values after every tick, (T, B, n)."""

    variant: ForwardVariant
    outputs: list[Tensor]
    courses: dict[int, Tensor]

    @property
    def arrays(self) -> list[Tensor]:
        """The courses, and the outputs that are no part of one."""
        return [*self.courses.values(), *itertools.compress(self.outputs, self.variant.stored)]


def forward_memory(
    loop: ElementwiseLoop,
    tensors: Sequence[Tensor],
    sizes: Sizes,
    reverse: bool,
    valid: Tensor | None,
    keep: bool,
    share: bool,
    overlap: bool,
) -> Written:
    """New tensors, of which the outputs that are parts of courses are complete once those are written.

    keep: all courses are stored, as the gradient needs them; else those that are outputs. share: an output that
    is a course is the same tensor, not a copy. overlap: one that is a carried value before every tick is a view
    of its course and the first value: T + 1 rows in place of 2 T.
    """
    share = share and valid is None
    after = shared_courses(loop.text) if share else (-1,) * len(loop.outputs)
    kept = tuple(keep or k in after for k in range(loop.carried))
    first = loop.given - loop.carried
    before = [r - first if share and overlap and first <= r < loop.given else -1 for r in loop.outputs]
    before = [k if k >= 0 and kept[k] else -1 for k in before]
    like, init = tensors[0], tensors[first:]
    whole = {k: _course(init[k], sizes, reverse) for k in sorted({*before} - {-1})}
    courses = {
        k: _cut(whole[k], not reverse) if k in whole else like.new_empty(sizes)
        for k in range(loop.carried)
        if kept[k]
    }
    outputs = [
        courses[k] if k >= 0 else _cut(whole[old], reverse) if old >= 0 else like.new_empty(sizes)
        for k, old in zip(after, before, strict=True)
    ]
    stored = tuple(k < 0 and old < 0 for k, old in zip(after, before, strict=True))
    return Written(ForwardVariant(kept, stored, valid is not None), outputs, courses)


def _course(init: Tensor, sizes: Sizes, reverse: bool) -> Tensor:
    """(T + 1, B, n): a course and, where the run starts, the value before it."""
    whole = init.new_empty(sizes[0] + 1, *sizes[1:])
    whole[-1 if reverse else 0].copy_(init.detach())
    return whole


def _cut(whole: Tensor, first: bool) -> Tensor:
    """Without its first row, or else without its last."""
    return whole[1:] if first else whole[:-1]


def series_gradient(series: Tensor, sizes: Sizes) -> Tensor:
    """(T, B, n), uninitialised; samples first in memory where the series has them so: its producer's order."""
    ticks, batch, width = sizes
    if series.stride(1) > series.stride(0):
        return series.new_empty(batch, ticks, width).transpose(0, 1)
    return series.new_empty(sizes)


def parted(
    loop: ElementwiseLoop, values: Sequence[Any]
) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """Those of the series, of the vectors, of the carried values."""
    end = loop.series + loop.vectors
    return values[: loop.series], values[loop.series : end], values[end:]


@functools.cache
def shared_courses(text: str) -> tuple[int, ...]:
    """Of each output, the carried value it is the course of, each at most once, or −1."""
    loop, found = read_loop(text), []
    for register in loop.outputs:
        free = [k for k, r in enumerate(loop.carry) if r == register and k not in found]
        found.append(free[0] if free else -1)
    return tuple(found)
