"""Resampling along one axis: pooling by averages and interpolation, each output a few weighted inputs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from onematrix.errors import ShapeError
from onematrix.structures.base import Structure
from onematrix.structures.sizes import Size

KINDS = (
    "average",
    "adaptive",
    "nearest",
    "nearest-exact",
    "linear",
    "linear-corners",
    "cubic",
    "cubic-corners",
)
CUBIC = -0.75  # the coefficient torch takes for cubic interpolation


@dataclass(frozen=True, eq=False)
class Resampling(Structure):
    """A[i, j] = weight of input j in output i: (rows, columns), nothing stored; torch's rules, per axis.

    average: windows of `kernel` from i stride − padding, divided by the places in the frame (counts_padding) or in
    the input; adaptive: windows ⌊i n/m⌋ … ⌈(i + 1) n/m⌉; nearest, linear, cubic: torch's interpolation at scale
    n ÷ m, or at numerator ÷ denominator inputs per output; "-corners": align_corners=True.

    >>> Resampling("average", 2, 4, kernel=2, stride=2).to_dense()
    tensor([[0.5000, 0.5000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.5000, 0.5000]])
    """

    kind: str
    rows: int
    columns: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    counts_padding: bool = True
    numerator: int = 0
    denominator: int = 1

    def check(self) -> None:
        if self.kind not in KINDS:
            raise ShapeError(f"resampling.kind: one of {', '.join(KINDS)} was needed, got {self.kind!r}")
        if min(self.rows, self.columns) < 1:
            raise ShapeError(f"resampling: sizes of at least 1 were needed, got {self.rows}×{self.columns}")

    @property
    def shape(self) -> tuple[Size, Size]:
        return self.rows, self.columns

    @property
    def scale(self) -> float:
        """Inputs per output."""
        if self.kind.endswith("corners"):
            return (self.columns - 1) / (self.rows - 1) if self.rows > 1 else 0.0
        return self.numerator / self.denominator if self.numerator else self.columns / self.rows

    def taps(self) -> tuple[list[list[int]], list[list[float]]]:
        """Inputs each output reads and their weights, (rows, k) each; absent ones have weight 0."""
        name = self.kind.removesuffix("-corners")
        rule = {"average": _average, "adaptive": _adaptive, "linear": _linear, "cubic": _cubic}.get(
            name, _nearest
        )
        lines = [rule(self, i) for i in range(self.rows)]
        most = max(len(line) for line in lines)
        index = [[min(max(j, 0), self.columns - 1) for j, _ in line] for line in lines]
        weight = [[w for _, w in line] for line in lines]
        return [a + a[:1] * (most - len(a)) for a in index], [a + [0.0] * (most - len(a)) for a in weight]

    def _tensors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        index, weight = self.taps()
        return torch.tensor(index, device=x.device), torch.tensor(weight, dtype=x.dtype, device=x.device)

    def _to_dense(self) -> Tensor:
        dense = torch.zeros(self.rows, self.columns, dtype=torch.float64)
        for i, (index, weight) in enumerate(zip(*self.taps(), strict=True)):
            for j, w in zip(index, weight, strict=True):
                dense[i, j] += w
        return dense

    def _matmul(self, x: Tensor) -> Tensor:
        wide = widened(x)  # in half precision the weights alone would lose more than the sums of torch
        index, weight = self._tensors(wide)
        picked = wide.index_select(-1, index.reshape(-1)).reshape(*x.shape[:-1], *index.shape)
        return torch.einsum("...mk,mk->...m", picked, weight).to(x.dtype)

    def _rmatmul(self, y: Tensor) -> Tensor:
        wide = widened(y)
        index, weight = self._tensors(wide)
        terms = (wide.unsqueeze(-1) * weight).flatten(-2)
        zero = wide.new_zeros(*y.shape[:-1], self.columns)
        return zero.index_add(-1, index.reshape(-1), terms).to(y.dtype)

    def multiply_adds(self) -> int:
        index, _ = self.taps()
        return len(index) * len(index[0])

    def nonzeros(self) -> int:
        index, weight = self.taps()
        return len(
            {
                (i, j)
                for i, (a, w) in enumerate(zip(index, weight, strict=True))
                for j, v in zip(a, w, strict=True)
                if v
            }
        )

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        yield cls("nearest", 1, 1)
        yield cls("average", 3, 5, kernel=3, stride=2, padding=1)
        yield cls("average", 3, 5, kernel=3, stride=2, padding=1, counts_padding=False)
        yield cls("adaptive", 3, 7)
        yield cls("nearest-exact", 5, 3)
        yield cls("linear", 5, 3)
        yield cls("linear-corners", 4, 3)
        yield cls("cubic", 4, 5)


Line = list[tuple[int, float]]  # (input, weight) of one output; inputs outside stand for the edge


def _average(a: Resampling, i: int) -> Line:
    first = i * a.stride - a.padding
    inside = [j for j in range(first, first + a.kernel) if 0 <= j < a.columns]
    last = min(first + a.kernel, a.columns + a.padding)  # a window over the frame's end is cut there
    return [(j, 1 / ((last - first) if a.counts_padding else len(inside))) for j in inside]


def _adaptive(a: Resampling, i: int) -> Line:
    first, last = i * a.columns // a.rows, ((i + 1) * a.columns + a.rows - 1) // a.rows
    return [(j, 1 / (last - first)) for j in range(first, last)]


def _nearest(a: Resampling, i: int) -> Line:
    half = 0.5 if a.kind == "nearest-exact" else 0.0
    # torch computes this place in float32, and so must this to take the same neighbour
    return [(math.floor(np.float32(i + half) * np.float32(a.scale)), 1.0)]


def _linear(a: Resampling, i: int) -> Line:
    place = i * a.scale if a.kind.endswith("corners") else max((i + 0.5) * a.scale - 0.5, 0.0)
    low = min(math.floor(place), a.columns - 1)
    part = min(max(place - low, 0.0), 1.0)
    return [(low, 1 - part), (low + 1, part)]


def _cubic(a: Resampling, i: int) -> Line:
    """Weights of the four neighbours: R. Keys, IEEE ASSP 29, 1981, with the coefficient −3/4."""
    place = i * a.scale if a.kind.endswith("corners") else (i + 0.5) * a.scale - 0.5
    low = math.floor(place)
    part = place - low

    def near(t: float) -> float:
        return ((CUBIC + 2) * t - (CUBIC + 3)) * t * t + 1

    def far(t: float) -> float:
        return ((CUBIC * t - 5 * CUBIC) * t + 8 * CUBIC) * t - 4 * CUBIC

    weights = (far(part + 1), near(part), near(1 - part), far(2 - part))
    return [(low + k - 1, w) for k, w in enumerate(weights)]


def widened(x: Tensor) -> Tensor:
    """x in float32 where its dtype has 16 bits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
