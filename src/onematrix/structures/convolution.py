"""Convolutions as matrices: banded, with one free number per tap and pair of channels."""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from onematrix.errors import ShapeError
from onematrix.structures.base import Structure
from onematrix.structures.sizes import Size, multiply_sizes

CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
CONVOLVE_BACK = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True, eq=False)
class Convolution(Structure):
    """A[(o, i), (c, j)] = Σ w[o, c, a] over taps a with j = source(i s + a d − p): channels outermost, no bias.

    torch's cross-correlation in 1, 2 or 3 dimensions. source: the place itself ("zeros": nothing outside), or the
    mirrored, clamped or wrapped one ("reflect", "replicate", "circular"). stride, dilation: one integer per
    dimension, as "2 1"; padding: two, before and after. height, width, depth: sizes of the input's dimensions
    in their order, possibly named. Output size (N + p + p' − d (K − 1) − 1) ÷ s + 1; multiply-adds: outputs times
    taps times C ÷ groups. Its transpose is the transposed convolution.
    Y. Zhu, arXiv:2506.01966v3, convolution as a banded matrix.

    >>> Convolution(torch.tensor([[[1.0, 2.0]]]), 3).to_dense()
    tensor([[1., 2., 0.],
            [0., 1., 2.]])
    """

    source = "arXiv:2506.01966v3"
    sizes_are_free = ("height", "width", "depth")

    weight: Tensor  # (outputs, channels ÷ groups, *kernel)
    height: int | str
    width: int | str = 1
    depth: int | str = 1
    stride: str = ""
    padding: str = ""
    dilation: str = ""
    groups: int = 1
    mode: str = "zeros"

    def check(self) -> None:
        n = self.weight.dim() - 2
        if n not in CONVOLVE:
            raise ShapeError(
                f"convolution.weight: 3 to 5 dimensions were needed, got {tuple(self.weight.shape)}"
            )
        for name, count in (("stride", n), ("dilation", n), ("padding", 2 * n)):
            if len(_integers(getattr(self, name), count, 1)) != count:
                raise ShapeError(
                    f"convolution.{name}: {count} integers were needed, got {getattr(self, name)!r}"
                )
        if self.mode not in MODES or self.weight.shape[0] % self.groups:
            raise ShapeError(
                f"convolution: a mode of {', '.join(MODES)} and groups that divide {self.weight.shape[0]} "
                f"were needed, got {self.mode!r} and {self.groups}"
            )

    @property
    def dimensions(self) -> int:
        """1, 2 or 3."""
        return self.weight.dim() - 2

    @property
    def sizes(self) -> list[Size]:
        """Input size of each dimension."""
        return [self.height, self.width, self.depth][: self.dimensions]

    @property
    def strides(self) -> list[int]:
        return _integers(self.stride, self.dimensions, 1)

    @property
    def dilations(self) -> list[int]:
        return _integers(self.dilation, self.dimensions, 1)

    @property
    def paddings(self) -> list[tuple[int, int]]:
        """(before, after) per dimension."""
        flat = _integers(self.padding, 2 * self.dimensions, 0)
        return list(zip(flat[::2], flat[1::2], strict=True))

    @property
    def output_sizes(self) -> list[Size]:
        """Output size of each dimension; an expression where the input's is a name."""
        return [self._output_size(i) for i in range(self.dimensions)]

    def _output_size(self, i: int) -> Size:
        size, stride, (before, after) = self.sizes[i], self.strides[i], self.paddings[i]
        more = before + after - self.dilations[i] * (self.weight.shape[2 + i] - 1) - 1
        if isinstance(size, int):
            return (size + more) // stride + 1
        if stride == 1:
            return _shifted(size, more + 1)
        return f"({size} {'-' if more < 0 else '+'} {abs(more)}) // {stride} + 1"

    @property
    def channels(self) -> int:
        """Input channels."""
        return self.weight.shape[1] * self.groups

    @property
    def shape(self) -> tuple[Size, Size]:
        outputs = self.weight.shape[0]
        return multiply_sizes(outputs, *self.output_sizes), multiply_sizes(self.channels, *self.sizes)

    def _places(self, i: int) -> Tensor:
        """For the outputs (rows) and taps (columns) of a dimension the place read in the frame around the input."""
        count, taps = int(self._output_size(i)), self.weight.shape[2 + i]
        first = torch.arange(count)[:, None] * self.strides[i]
        return first + torch.arange(taps) * self.dilations[i]

    def _sources(self, i: int) -> Tensor:
        """The input's coordinate each place of the frame holds; −1 for a zero."""
        before, after = self.paddings[i]
        size = int(self.sizes[i])
        place = torch.arange(-before, size + after)
        if self.mode == "zeros":
            return torch.where((place >= 0) & (place < size), place, -1)
        if self.mode == "circular":
            return place % size
        if self.mode == "reflect":
            place = place.abs()
            return torch.minimum(place, 2 * (size - 1) - place)
        return place.clamp(0, size - 1)

    def _taps(self, i: int) -> Tensor:
        """0/1 matrices (taps, outputs, inputs): M_a[i, j] = 1 where tap a of output i reads input j."""
        source = self._sources(i)[self._places(i)]
        ones = torch.arange(int(self.sizes[i])) == source[..., None]
        return ones.movedim(1, 0).to(torch.float64)

    def _to_dense(self) -> Tensor:
        o, c = self.weight.shape[:2]
        kernel = self.weight.shape[2:]
        dense = torch.zeros(self.fixed_shape, dtype=torch.float64, device=self.weight.device)
        per_group = o // self.groups
        grid = torch.cat(
            [
                functional.pad(
                    self.weight[g * per_group : (g + 1) * per_group].to(torch.float64).movedim(1, -1),
                    (g * c, self.channels - (g + 1) * c),
                )
                for g in range(self.groups)
            ]
        ).movedim(-1, 1)
        matrices = [self._taps(i).to(self.weight.device) for i in range(self.dimensions)]
        for tap in itertools.product(*map(range, kernel)):
            index: tuple[slice | int, ...] = (slice(None), slice(None), *tap)
            term = grid[index]
            for i, a in enumerate(tap):
                term = torch.kron(term.contiguous(), matrices[i][a])
            dense = dense + term
        return dense

    def _native_padding(self) -> list[int] | None:
        """Padding torch's convolution can do itself; None where a frame must be made first."""
        same = all(before == after for before, after in self.paddings)
        return [before for before, _ in self.paddings] if same and self.mode == "zeros" else None

    def _matmul(self, x: Tensor) -> Tensor:
        batch = x.shape[:-1]
        x = x.reshape(math.prod(batch), self.channels, *map(int, self.sizes))
        padding = self._native_padding()
        if padding is None:
            x, padding = self._framed(x), [0] * self.dimensions
        y = CONVOLVE[self.dimensions](
            x, self.weight, None, self.strides, padding, self.dilations, self.groups
        )
        return y.reshape(*batch, self.fixed_shape[0])

    def _framed(self, x: Tensor) -> Tensor:
        if self.mode == "zeros":
            return functional.pad(x, [p for pair in reversed(self.paddings) for p in pair])
        for i in range(self.dimensions):
            if self.paddings[i] != (0, 0):
                x = x.index_select(2 + i, self._sources(i).to(x.device))
        return x

    def _rmatmul(self, y: Tensor) -> Tensor:
        batch = y.shape[:-1]
        y = y.reshape(math.prod(batch), self.weight.shape[0], *map(int, self.output_sizes))
        paddings = self._native_padding()
        pads = [0] * self.dimensions if paddings is None else paddings
        frames = [
            int(size) + (0 if paddings is not None else before + after)
            for size, (before, after) in zip(self.sizes, self.paddings, strict=True)
        ]
        rest = [
            (frames[i] + 2 * pads[i] - self.dilations[i] * (self.weight.shape[2 + i] - 1) - 1)
            % self.strides[i]
            for i in range(self.dimensions)
        ]
        x = CONVOLVE_BACK[self.dimensions](
            y, self.weight, None, self.strides, pads, rest, self.groups, self.dilations
        )
        if paddings is None:
            x = self._unframed(x)
        return x.reshape(*batch, self.fixed_shape[1])

    def _unframed(self, x: Tensor) -> Tensor:
        for i, (before, _) in enumerate(self.paddings):
            size = int(self.sizes[i])
            if self.mode == "zeros":
                x = x.narrow(2 + i, before, size)
            elif self.paddings[i] != (0, 0):
                zero = x.new_zeros(*x.shape[: 2 + i], size, *x.shape[3 + i :])
                x = zero.index_add(2 + i, self._sources(i).to(x.device), x)
        return x

    def multiply_adds(self) -> int:
        return self.weight.numel() * math.prod(map(int, self.output_sizes))

    def nonzeros(self) -> int:
        hit = [int((self._sources(i)[self._places(i)] >= 0).sum()) for i in range(self.dimensions)]
        m, n = self.fixed_shape
        return min(m * n, self.weight.shape[0] * self.weight.shape[1] * math.prod(hit))

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Self]:
        def weight(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        yield cls(weight(1, 1, 1), 1)
        yield cls(weight(2, 3, 2), 5, stride="2", padding="1 1", dilation="2")
        yield cls(weight(4, 1, 2, 3), 3, 4, stride="1 2", padding="0 1 1 1", groups=2)
        yield cls(weight(1, 2, 3, 2), 4, 3, padding="1 1 0 1", mode="reflect")
        yield cls(weight(2, 1, 3), 4, padding="2 1", mode="circular")
        yield cls(weight(1, 1, 2, 2, 1), 2, 3, 2, padding="1 0 1 1 0 0", mode="replicate")


def _shifted(size: str, number: int) -> str:
    """size + number; a number the text ends in is taken together with it."""
    if match := re.fullmatch(r"([^-+]*) ([+-]) (\d+)", size):
        size, number = match[1], number + int(match[2] + match[3])
    return f"{size} {'-' if number < 0 else '+'} {abs(number)}" if number else size


def _integers(text: str, count: int, default: int) -> list[int]:
    """The integers of a text; the default for each where the text is empty."""
    words = text.split()
    if not all(word.removeprefix("-").isdigit() for word in words):
        return []
    return [int(word) for word in words] or [default] * count
