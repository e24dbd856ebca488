"""Products of one value with several matrices: as one product, or each alone where copying them costs more."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import linear

ALONE = 2**15, 64  # numbers and rows of a matrix from which on it is multiplied alone where memory counts
FEW = ((2**21, 384), (2**19, 128))  # from so many numbers on, apart up to so many rows of x


def merged_product(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None) -> Tensor:
    """[W_1; …; W_k] x + [b_1; …; b_k], the results side by side.

    x: (…, n). weights: (m_i, n). biases: (m_i,) each, or None. → (…, Σ m_i). N = n Σ m_i multiply-adds a row of x.
    One product is the faster one for many rows, but the matrices are copied for it, once a call. Of three matrices
    1024 × 1024, products apart take 0.36 of its time for one row, 0.8 for 64, 0.98 for 320; of 2500 × 1312 0.84 for
    320 and 1.08 for 1,024.

    >>> merged_product(torch.ones(1, 2), [torch.eye(2), torch.ones(1, 2)], None)
    tensor([[1., 1., 2.]])
    """
    if len(weights) == 1:
        return linear(x, weights[0], None if biases is None else biases[0])
    if _apart(x, weights):
        vectors = biases or [None] * len(weights)
        return torch.cat([linear(x, w, b) for w, b in zip(weights, vectors, strict=True)], -1)
    return linear(x, torch.cat(list(weights)), None if biases is None else torch.cat(list(biases)))


@dataclass(frozen=True)
class Group:
    """Wᵀ, b or None, and the features of the results that are W x + b."""

    turned: Tensor
    bias: Tensor | None
    start: int
    stop: int

    def write(self, x: Tensor, out: Tensor) -> None:
        """W x + b of x (rows, n) into its features of `out` (rows, Σ m_i)."""
        place = out[:, self.start : self.stop]
        if self.bias is None:
            torch.mm(x, self.turned, out=place)
        else:
            torch.addmm(self.bias, x, self.turned, out=place)


def grouped(weights: Sequence[Tensor], biases: Sequence[Tensor] | None) -> list[Group]:
    """The products of one value as few that copy little: large matrices alone, small neighbours put together.

    >>> [(g.start, g.stop) for g in grouped([torch.ones(300, 2500), torch.ones(20, 2500), torch.ones(10, 2500)], None)]
    [(0, 300), (300, 330)]
    """
    edges = list(accumulate((len(w) for w in weights), initial=0))
    runs: list[list[int]] = []
    for place in range(len(weights)):
        if not runs or _is_large(weights[place]) or _is_large(weights[place - 1]):
            runs.append([])
        runs[-1].append(place)
    return [
        Group(
            _joined([weights[i] for i in run]).t(),
            None if biases is None else _joined([biases[i] for i in run]),
            edges[run[0]],
            edges[run[-1] + 1],
        )
        for run in runs
    ]


def _is_large(weight: Tensor) -> bool:
    return weight.numel() >= ALONE[0] and len(weight) >= ALONE[1]


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _apart(x: Tensor, weights: Sequence[Tensor]) -> bool:
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False  # a graph holds for any number of rows
    rows, numbers = math.prod(x.shape[:-1]), sum(w.numel() for w in weights)
    return any(numbers >= large and rows <= few for large, few in FEW)
