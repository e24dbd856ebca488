"""Where the entries of a layer's explicit matrix stand, and which native number each of them is."""

from functools import lru_cache

import torch
from torch import Tensor, nn

from onematrix.structures.block_sparse import BlockSparse
from onematrix.structures.convolution import Convolution

Size = tuple[int, int]


def as_structure(native: nn.Conv2d, size: Size) -> Convolution:
    """The convolution as a structure over an image of `size` = (height, width), channels outermost, no bias.

    Zeros around the image; `native.padding` must be numbers.
    """
    above, beside = (int(p) for p in native.padding)
    return Convolution(
        native.weight,
        *size,
        stride=" ".join(map(str, native.stride)),
        padding=f"{above} {above} {beside} {beside}",
        dilation=" ".join(map(str, native.dilation)),
        groups=native.groups,
    )


def convolution_entries(a: Convolution) -> tuple[Tensor, Tensor]:
    """(flat positions i n + j, ascending; place in weight.flatten() of the number that stands there).

    Read off the definition: the dense matrix of a kernel that holds the numbers 1, 2, …; with zeros around
    the image no two taps meet in one entry.
    """
    return _entries(a.weight.shape, a.height, a.width, a.stride, a.padding, a.dilation, a.groups)


@lru_cache(maxsize=4)  # every seed and regime of an experiment asks for the same two
def _entries(kernel: torch.Size, *geometry: int | str) -> tuple[Tensor, Tensor]:
    height, width, stride, padding, dilation, groups = geometry
    numbered = torch.arange(1, kernel.numel() + 1, dtype=torch.float64).view(kernel)
    a = Convolution(numbered, height, width, stride=stride, padding=padding, dilation=dilation, groups=groups)
    dense = a.to_dense().flatten()
    positions = dense.nonzero()[:, 0]
    return positions, dense[positions].long() - 1


def triangular_entries(a: Convolution) -> Tensor:
    """Flat positions, ascending, of the upper triangle of the padded frame: R U E with U any such matrix.

    Output i stands at place i s of the frame, input j at place j + p, places counted row by row; an entry is
    kept where the input's place is not before the output's. Every entry of the convolution is among them.
    """
    (above, _), (left, right) = a.paddings
    width = int(a.width) + left + right
    rows = _frame(a.output_sizes, a.strides, (0, 0), width).repeat(a.weight.shape[0])
    columns = _frame(a.sizes, [1, 1], (above, left), width).repeat(a.channels)
    return (columns >= rows[:, None]).flatten().nonzero()[:, 0]


def _frame(sizes: list[int | str], steps: list[int], start: Size, width: int) -> Tensor:
    """Number in the frame of every place of a grid, row by row."""
    down, across = (torch.arange(int(n)) * s + b for n, s, b in zip(sizes, steps, start, strict=True))
    return (down[:, None] * width + across).flatten()


def tick_tiles(ticks: int, kind: str) -> tuple[Tensor, Tensor]:
    """(tile rows, tile columns) int32, row by row, of a matrix over `ticks` places.

    "diagonal": I ⊗ W; "delayed": Z ⊗ W, one tile below the diagonal; "lower" and "strictly lower": all tiles
    there.

    >>> tick_tiles(3, "delayed")[0].tolist(), tick_tiles(3, "strictly lower")[1].tolist()
    ([1, 2], [0, 0, 1])
    """
    t, s = torch.arange(ticks)[:, None], torch.arange(ticks)
    kept = {"diagonal": t == s, "delayed": t == s + 1, "lower": t >= s, "strictly lower": t > s}[kind]
    rows, columns = kept.nonzero().to(torch.int32).T.contiguous()
    return rows.contiguous(), columns.contiguous()


def tiled(weight: Tensor, ticks: int, kind: str) -> BlockSparse:
    """The block matrix of `kind` over the ticks with `weight` (p, q) where the native one has it, else zeros.

    Native tiles are those of "diagonal" and "delayed"; the others keep these and start at zero elsewhere.
    """
    rows, columns = tick_tiles(ticks, kind)
    distance = 1 if kind in ("delayed", "strictly lower") else 0
    native = (rows - columns == distance)[:, None, None]
    tiles = torch.where(native, weight.detach(), weight.new_zeros(()))
    p, q = weight.shape
    return BlockSparse(tiles.contiguous(), rows, columns, ticks * p, ticks * q)
