"""Coordinates: the entries of a structure that are not structurally zero, without its dense form."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse  # type: ignore[import-untyped]
from torch import Tensor

from onematrix.errors import DataError
from onematrix.structures.algebra import (
    BlockDiagonal,
    HorizontalStack,
    Product,
    Sum,
    Transposed,
    VerticalStack,
)
from onematrix.structures.averaging import Mean
from onematrix.structures.base import Structure
from onematrix.structures.compressed import CSR
from onematrix.structures.convolution import Convolution
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Scaled, Zero
from onematrix.structures.kronecker import Kronecker
from onematrix.structures.masked import Masked
from onematrix.structures.per_axis import PerAxis
from onematrix.structures.permutation import Permutation, Selection
from onematrix.structures.window import Window

Matrix = Any  # scipy.sparse.csr_array, float64


def coordinates(structure: Structure) -> Matrix:
    """The matrix as scipy's csr_array in float64; only what is not structurally zero is ever held.

    Structures without sparse rules of their own go through their definition, m n numbers.
    Raises ShapeError while a named size is free, DataError when the numbers are not there (device meta).

    >>> coordinates(Identity(100_000)).nnz
    100000
    """
    m, n = structure.fixed_shape
    if (weight := structure.any_weight()) is not None and weight.is_meta:
        raise DataError(f"{structure.name} {m}×{n}: numbers were needed, its tensors are on the meta device")
    rule = RULES.get(type(structure), _through_the_definition)
    return sparse.csr_array(rule(structure))


def has_coordinates(structure: Structure) -> bool:
    """Whether the pattern is known without the dense form, here and in the structures inside."""
    inner = [v if isinstance(v, tuple) else (v,) for v in vars(structure).values()]
    inside = [s for group in inner for s in group if isinstance(s, Structure)]
    return type(structure) in RULES and all(has_coordinates(s) for s in inside)


def numbers(tensor: Tensor) -> Any:
    """The numbers in float64, off the device and the graph."""
    return tensor.detach().to("cpu", torch.float64).numpy()


def _through_the_definition(structure: Structure) -> Matrix:
    return sparse.csr_array(numbers(structure.to_dense(torch.float64)))


def _entries(m: int, n: int, rows: Any, columns: Any, values: Any) -> Matrix:
    return sparse.coo_array((values, (rows, columns)), shape=(m, n))


def _selection(structure: Any) -> Matrix:
    m, n = structure.fixed_shape
    index = structure.index.cpu().numpy()
    return _entries(m, n, np.arange(m), index, np.ones(m))


def _window(structure: Window) -> Matrix:
    m, n = structure.fixed_shape
    columns = int(structure.start) + np.arange(m) * structure.pace
    return _entries(m, n, np.arange(m), columns, np.ones(m))


def _compressed(structure: CSR) -> Matrix:
    arrays = (structure.col_indices.cpu().numpy(), structure.crow_indices.cpu().numpy())
    return sparse.csr_array((numbers(structure.values), *arrays), shape=structure.fixed_shape)


def _masked(structure: Masked) -> Matrix:
    m, n = structure.fixed_shape
    rows, columns = np.divmod(structure.positions.cpu().numpy(), n)
    return _entries(m, n, rows, columns, numbers(structure.values))


def _per_axis(structure: PerAxis) -> Matrix:
    """P (A_1 ⊗ … ⊗ A_k)."""
    matrix = functools.reduce(kronecker, [coordinates(term) for term in structure.axes])
    rows = [term.fixed_shape[0] for term in structure.axes]
    order = np.arange(math.prod(rows)).reshape(rows).transpose(structure.places).reshape(-1)
    return sparse.csr_array(matrix)[order]


def kronecker(a: Matrix, b: Matrix) -> Matrix:
    """A ⊗ B of two sparse matrices."""
    return sparse.csr_array(sparse.kron(a, b, format="csr"))


def _convolution(structure: Convolution) -> Matrix:
    """One entry per output, input channel of its group and tap whose source lies inside: (o, i) ← (c, j)."""
    weight = numbers(structure.weight)
    outputs, per_group = weight.shape[:2]
    o, c = (a.reshape(-1) for a in np.indices((outputs, per_group)))
    rows = o[:, None]
    columns = (c + (o // (outputs // structure.groups)) * per_group)[:, None]
    taps = np.zeros(1, dtype=np.int64)
    for i in range(structure.dimensions):
        source = structure._sources(i)[structure._places(i)].numpy()
        output, tap = np.nonzero(source >= 0)
        rows = _append(rows, output, source.shape[0])
        columns = _append(columns, source[output, tap], int(structure.sizes[i]))
        taps = _append(taps[None], tap, source.shape[1])[0]
    values = weight.reshape(outputs * per_group, -1)[:, taps]
    m, n = structure.fixed_shape
    return _entries(m, n, rows.reshape(-1), columns.reshape(-1), values.reshape(-1))


def _append(index: Any, last: Any, size: int) -> Any:
    """Flat indices with one more dimension: (pairs, places) → (pairs, places × further places)."""
    return (index[:, :, None] * size + last).reshape(len(index), -1)


RULES: dict[type[Structure], Callable[[Any], Matrix]] = {
    Identity: lambda a: sparse.eye_array(a.size, format="csr"),
    Zero: lambda a: sparse.csr_array(a.fixed_shape),
    Diagonal: lambda a: sparse.dia_array((numbers(a.vector)[None], [0]), shape=a.fixed_shape),
    Permutation: _selection,
    Selection: _selection,
    Window: _window,
    Mean: lambda a: np.full(a.fixed_shape, 1 / a.fixed_shape[1]),
    CSR: _compressed,
    Masked: _masked,
    Scaled: lambda a: coordinates(a.inner) * a.factor,
    Product: lambda a: coordinates(a.left) @ coordinates(a.right),
    Sum: lambda a: functools.reduce(lambda p, q: p + q, map(coordinates, a.terms)),
    Transposed: lambda a: coordinates(a.inner).T,
    BlockDiagonal: lambda a: sparse.block_diag(list(map(coordinates, a.terms)), format="csr"),
    VerticalStack: lambda a: sparse.vstack(list(map(coordinates, a.terms)), format="csr"),
    HorizontalStack: lambda a: sparse.hstack(list(map(coordinates, a.terms)), format="csr"),
    PerAxis: _per_axis,
    Kronecker: lambda a: kronecker(sparse.csr_array(numbers(a.left)), sparse.csr_array(numbers(a.right))),
    Convolution: _convolution,
}
