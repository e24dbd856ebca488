"""Values that depend on the inputs by a matrix and a constant, and the products that keep them so."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse  # type: ignore[import-untyped]
from torch import Tensor

from onematrix.programs.coordinates import Matrix, kronecker
from onematrix.programs.joins import contraction_axes

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Affine:
    """x ↦ A x + b: matrix (product of the shape, inputs + 1), its last column b. Shape without the batch."""

    shape: Shape
    matrix: Matrix


@dataclass(frozen=True)
class Broken:
    """A value that is not affine: the row where that began, and why."""

    row: str
    reason: str


Value = Affine | Broken | Tensor  # a tensor (1, *shape) does not depend on the inputs


def constant(value: Tensor, width: int) -> Affine:
    """A constant as the affine value it is."""
    flat = value.detach().to("cpu", torch.float64).reshape(-1).numpy()
    place = np.flatnonzero(flat)
    columns = np.full(len(place), width - 1)
    matrix = sparse.coo_array((flat[place], (place, columns)), shape=(len(flat), width))
    return Affine(tuple(value.shape[1:]), sparse.csr_array(matrix))


def picked(value: Affine, places: Any) -> Affine:
    """The coordinates at the places, in the shape of the places."""
    return Affine(tuple(places.shape), value.matrix[places.reshape(-1)])


def places_of(shape: Shape) -> Any:
    """Flat position of every coordinate."""
    return np.arange(math.prod(shape)).reshape(shape)


def multiplied(matrix: Matrix, value: Affine, kept: int) -> Affine:
    """(I ⊗ A) x over the dimensions behind the kept ones."""
    times = math.prod(value.shape[:kept])
    whole = matrix if times == 1 else kronecker(sparse.eye_array(times, format="csr"), matrix)
    return Affine((*value.shape[:kept], matrix.shape[0]), sparse.csr_array(whole @ value.matrix))


def added(values: Sequence[Affine]) -> Affine:
    """The sum, repeated along dimensions of length 1 as tensors are."""
    shape = np.broadcast_shapes(*(v.shape for v in values))
    matrices = [_repeated(v, shape).matrix for v in values]
    return Affine(shape, functools.reduce(lambda a, b: a + b, matrices))


def _repeated(value: Affine, shape: Shape) -> Affine:
    if value.shape == shape:
        return value
    return picked(value, np.broadcast_to(places_of(value.shape), shape))


def scaled(value: Affine, factor: Tensor) -> Affine:
    """The value times a constant (1, *shape), coordinate by coordinate."""
    array = factor.detach().to("cpu", torch.float64).numpy()[0]
    shape = np.broadcast_shapes(value.shape, array.shape)
    diagonal = np.broadcast_to(array, shape).reshape(-1)
    matrix = sparse.dia_array((diagonal[None], [0]), shape=(len(diagonal), len(diagonal)))
    return Affine(shape, sparse.csr_array(matrix @ _repeated(value, shape).matrix))


def copied(function: Callable[..., Tensor], operands: Sequence[Affine | Tensor]) -> Affine:
    """A function that copies coordinates (gather, take, select): asked once where each one comes from."""
    matrices: list[Matrix] = []
    asked: list[Tensor] = []
    for v in operands:
        if isinstance(v, Affine):
            first = sum(m.shape[0] for m in matrices)
            asked.append(torch.from_numpy(first + places_of(v.shape))[None].double())
            matrices.append(v.matrix)
        else:
            asked.append(v)
    places = function(*asked)[0].long().numpy()
    return picked(Affine((), sparse.vstack(matrices, format="csr")), places)


def contracted(pattern: str, operands: Sequence[Affine | Tensor]) -> Affine:
    """An einsum of constants and exactly one affine operand: the matrix from its axes to those of the output."""
    axes, output = contraction_axes(pattern)
    shapes = [v.shape if isinstance(v, Affine) else tuple(v.shape[1:]) for v in operands]
    length: dict[str, int] = {}
    for names, shape in zip(axes, shapes, strict=True):
        for name, size in zip(names, shape, strict=True):
            length[name] = max(size, length.get(name, 1))
    factors, place = np.ones([1] * len(length)), 0
    for i, value in enumerate(operands):
        if isinstance(value, Affine):
            place = i
        else:
            array = value.detach().to("cpu", torch.float64).numpy()[0]
            factors = factors * _spread(array, axes[i], length)
    full = np.broadcast_to(factors, list(length.values()))
    rows = _spread(places_of(tuple(length[a] for a in output)), output, length)
    columns = _spread(places_of(shapes[place]), axes[place], length)
    kept = np.nonzero(full.reshape(-1))[0]
    entries = [np.broadcast_to(a, full.shape).reshape(-1)[kept] for a in (full, rows, columns)]
    target = tuple(length[a] for a in output)
    sizes = (math.prod(target), math.prod(shapes[place]))
    matrix = sparse.csr_array(sparse.coo_array((entries[0], (entries[1], entries[2])), shape=sizes))
    affine: Any = operands[place]
    return Affine(target, sparse.csr_array(matrix @ affine.matrix))


def _spread(array: Any, names: Sequence[str], length: dict[str, int]) -> Any:
    """The array with its axes at the places of their names; an axis named twice is its diagonal."""
    order = list(length)
    different = list(dict.fromkeys(names))
    letters = {name: i for i, name in enumerate(different)}
    array = np.einsum(array, [letters[n] for n in names], sorted(letters.values()))
    array = array.transpose(sorted(range(len(different)), key=lambda i: order.index(different[i])))
    sizes = iter(array.shape)
    return array.reshape([next(sizes) if name in letters else 1 for name in order])
