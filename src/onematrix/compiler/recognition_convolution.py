"""Recognition of convolutions: one number per pair of channels and tap, wherever the tap reads."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onematrix.compiler.recognition_entries import Entries
from onematrix.structures.convolution import Convolution

STRIDES = 8  # strides looked for: 1 to so many
MANY = 20_000  # entries that decide the stride
SAMPLE = 2000  # entries a grid is judged by first
GUESSED_TAPS = 31  # per dimension, of a kernel on a grid nobody named

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Axis:
    """Along one dimension, tap a of output i reads input i stride + a dilation − before."""

    inputs: int
    outputs: int
    stride: int
    dilation: int
    taps: int
    before: int

    def reads(self) -> Tensor:
        """How many outputs read inside the input, per tap."""
        first = torch.arange(self.outputs) * self.stride - self.before
        place = first[:, None] + torch.arange(self.taps) * self.dilation
        return ((place >= 0) & (place < self.inputs)).sum(0)

    @property
    def after(self) -> int:
        """Padding behind: as much as before where that gives the same outputs, else what is read."""
        span = self.dilation * (self.taps - 1) + 1
        if (self.inputs + 2 * self.before - span) // self.stride + 1 == self.outputs:
            return self.before
        return (self.outputs - 1) * self.stride + span - self.inputs - self.before


def find_convolution(e: Entries, target: Grid, source: Grid) -> Convolution | None:
    """The convolution with these entries, from parts of shape (channels, *sizes); None where there is none.

    Padding is zero; strides 1 to 8, dilation and groups are found. A class of entries, those of one output
    channel, input channel and tap, must hold one number (within e.allowed) at every place inside the input.
    Cost: a few passes over the entries per dimension.
    """
    if len(target) != len(source) or not 2 <= len(source) <= 4 or not len(e):
        return None
    if math.prod(target) != e.m or math.prod(source) != e.n:
        return None
    into, out_of = _coordinates(e.rows, target), _coordinates(e.columns, source)
    axes = [_axis(i, j, target[k], source[k]) for k, (i, j) in enumerate(zip(into, out_of, strict=True)) if k]
    size = target[0] * source[0] * math.prod(axis.taps for axis in axes)
    if size > 2 * len(e) + target[0] * source[0]:
        return None
    place = into[0] * source[0] + out_of[0]
    for axis, i, j in zip(axes, into[1:], out_of[1:], strict=True):
        tap = torch.div(j - i * axis.stride + axis.before, axis.dilation, rounding_mode="floor")
        place = place * axis.taps + tap
    kernel = _kernel(e, place, size, axes, target[0] * source[0])
    if kernel is None:
        return None
    return _build(kernel.reshape(target[0], source[0], *(axis.taps for axis in axes)), axes)


def _coordinates(flat: Tensor, grid: Grid) -> list[Tensor]:
    return list(torch.unravel_index(flat, grid))


def _axis(i: Tensor, j: Tensor, outputs: int, inputs: int) -> Axis:
    """The stride with the fewest different places read, and the taps that reach them."""
    some = (
        torch.randint(len(i), (MANY,), generator=torch.Generator().manual_seed(0)) if len(i) > MANY else ...
    )
    strides = range(1, min(STRIDES, inputs) + 1 if outputs > 1 else 2)
    stride = min(strides, key=lambda s: len(_offsets(i[some], j[some], s, outputs)))
    used = _offsets(i, j, stride, outputs)
    dilation = math.gcd(*used.diff().tolist()) or 1
    taps, before = int(used[-1] - used[0]) // dilation + 1, -int(used[0])
    while before < 0:  # torch pads and never crops: more taps of 0 in front
        taps, before = taps + 1, before + dilation
    return Axis(inputs, outputs, stride, dilation, taps, before)


def _offsets(i: Tensor, j: Tensor, stride: int, outputs: int) -> Tensor:
    """The different j − i stride."""
    shift = stride * (outputs - 1)
    return torch.bincount(j - stride * i + shift, minlength=1).nonzero().flatten() - shift


def _kernel(e: Entries, place: Tensor, size: int, axes: Sequence[Axis], pairs: int) -> Tensor | None:
    """The number of every class, 0 where it has no entry; None unless each has one number everywhere."""
    counts = torch.bincount(place, minlength=size)
    kernel = e.values.new_zeros(size)
    kernel[place] = e.values
    if e.allowed:
        kernel = torch.zeros_like(kernel).index_add(0, place, e.values) / counts.clamp(min=1)
    if not e.same(kernel[place]):
        return None
    wanted = torch.ones(1, dtype=torch.int64)
    for axis in axes:
        wanted = (wanted[:, None] * axis.reads()).reshape(-1)
    missing = counts != wanted.repeat(pairs)
    return None if bool((kernel[missing].abs() > e.allowed).any()) else kernel


def _build(kernel: Tensor, axes: Sequence[Axis]) -> Convolution:
    o, c = kernel.shape[:2]
    groups = _groups((kernel != 0).flatten(2).any(2))
    blocks = kernel.reshape(groups, o // groups, groups, c // groups, *kernel.shape[2:])
    own = torch.arange(groups)
    weight = blocks[own, :, own].reshape(o, c // groups, *kernel.shape[2:])
    height, width, depth = [axis.inputs for axis in axes] + [1] * (3 - len(axes))
    return Convolution(
        weight.contiguous(),
        height,
        width,
        depth,
        stride=" ".join(str(axis.stride) for axis in axes),
        padding=" ".join(f"{axis.before} {axis.after}" for axis in axes),
        dilation=" ".join(str(axis.dilation) for axis in axes),
        groups=groups,
    )


def _groups(used: Tensor) -> int:
    """The largest number of groups whose blocks hold every pair of channels in use."""
    o, c = used.shape
    rows, columns = used.nonzero().T
    for groups in range(math.gcd(o, c), 1, -1):
        if math.gcd(o, c) % groups == 0 and bool(
            (torch.div(rows, o // groups, rounding_mode="floor") == columns // (c // groups)).all()
        ):
            return groups
    return 1


def guess_grids(e: Entries) -> Iterator[tuple[Grid, Grid]]:
    """Grids for a matrix between flat parts: one channel, and channels of squares, judged by a few entries."""
    yield (1, e.m), (1, e.n)
    few = e.sample(SAMPLE)
    for target in _squares(e.m):
        for source in _squares(e.n):
            if target[1] <= source[1] and _plausible(few, target, source):
                yield target, source


def _squares(size: int) -> list[Grid]:
    """(channels, side, side) of this size, sides from 4."""
    sides = range(4, math.isqrt(size) + 1)
    return [(size // (side * side), side, side) for side in sides if size % (side * side) == 0]


def _plausible(few: Entries, target: Grid, source: Grid) -> bool:
    into, out_of = _coordinates(few.rows, target), _coordinates(few.columns, source)
    return all(
        _axis(into[k], out_of[k], target[k], source[k]).taps <= min(GUESSED_TAPS, source[k]) for k in (1, 2)
    )
