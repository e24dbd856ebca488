"""The elementwise recurrence as compiled loops: one forward, one backward, both over memory of torch tensors."""

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onematrix.kernels.elementwise_code import ElementwiseLoop, read_loop
from onematrix.kernels.elementwise_memory import Written, forward_memory, parted, series_gradient
from onematrix.kernels.elementwise_text import (
    CONSTANTS,
    BackwardVariant,
    ForwardVariant,
    backward_text,
    forward_text,
)
from onematrix.kernels.elementwise_torch import Sizes
from onematrix.kernels.numba_arrays import distinct, flat, format_of, strided
from onematrix.kernels.scalar_functions import FORMATS, SAFE, scalar_functions

NO_SELECTION = np.empty(0, np.bool_)


def run_forward(
    loop: ElementwiseLoop,
    tensors: Sequence[Tensor],
    sizes: Sizes,
    reverse: bool,
    valid: Tensor | None,
    keep: bool,
    share: bool = True,
    overlap: bool = False,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Outputs, final carried values, and courses: the carried values after every tick, (T, B, n).

    keep, share, overlap: as in `forward_memory`.
    """
    series, vectors, init = parted(loop, tensors)
    written = forward_memory(loop, tensors, sizes, reverse, valid, keep, share, overlap)
    rows = [_row(c, keep=course) for c, course in zip(init, written.variant.courses, strict=True)]
    arrays = [a for s in series for a in strided(s, sizes[1])]
    arrays += flat([*vectors, *rows, *written.arrays])
    _forward(loop.text, written.variant, format_of(tensors[0]))(*sizes, reverse, *arrays, _selection(valid))
    courses = written.courses
    last = courses if sizes[0] else {}
    final = [
        _tick(last[k], reverse) if k in last else _row(row, k not in courses) for k, row in enumerate(rows)
    ]
    return written.outputs, final, list(courses.values())


def run_pieces(
    loop: ElementwiseLoop,
    series: Sequence[Tensor | None],
    vectors: Sequence[Tensor],
    init: Sequence[Tensor],
    pieces: Iterable[tuple[int, int, Tensor]],
    widths: Sequence[int],
    written: Written,
    sizes: Sizes,
    reverse: bool,
    valid: Tensor | None,
) -> list[Tensor]:
    """A forward run into `written` whose series come piece by piece of the ticks; the final carried values.

    pieces: (start, stop, (B, stop − start, Σ widths)), in the order they run; the series that are None side by side.
    """
    batch, size = sizes[1], sizes[1] * sizes[2]
    rows = [_row(c) for c in init]
    fixed, stored, mask = flat([*vectors, *rows]), flat(written.arrays), _selection(valid)
    run = _forward(loop.text, written.variant, format_of(rows[0]))
    given = [None if s is None else strided(s, batch) for s in series]
    for start, stop, made in pieces:
        columns = iter(_columns(made, widths))
        arrays: list[Any] = []
        for whole in given:
            arrays += next(columns) if whole is None else (whole[0][start * whole[1] :], *whole[1:])
        cut = [array[start * size :] for array in stored]
        run(stop - start, *sizes[1:], reverse, *arrays, *fixed, *cut, mask[start * batch :])
        for k, course in written.courses.items():
            rows[k].copy_(course[start if reverse else stop - 1])
    return rows


def _columns(made: Tensor, widths: Sequence[int]) -> list[tuple[Any, int, int]]:
    """As `strided`, of the slices of (B, T, Σ widths) without gaps."""
    _, ticks, height = made.shape
    numbers = made.view(-1).numpy()
    starts = accumulate(widths[:-1], initial=0)
    return [(numbers[start:], height, ticks * height) for start in starts]


def run_backward(
    loop: ElementwiseLoop,
    tensors: Sequence[Tensor],
    courses: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    wanted: Sequence[bool],
    sizes: Sizes,
    reverse: bool,
    valid: Tensor | None,
) -> list[Tensor | None]:
    """Gradient of each wanted tensor, from those of the outputs and of the final carried values."""
    series, vectors, init = parted(loop, tensors)
    needs = parted(loop, wanted)
    given, final = grads[: len(loop.outputs)], grads[len(loop.outputs) :]
    shared = tuple(s.shape[1] != sizes[1] for s in series)
    variant = BackwardVariant(
        tuple(g is not None for g in given), tuple(needs[0]), tuple(needs[1]), shared, valid is not None
    )
    of_series = [
        (s.new_zeros(s.shape) if one else series_gradient(s, sizes)) if need else None
        for s, one, need in zip(series, shared, needs[0], strict=True)
    ]
    of_vectors = [v.new_zeros(sizes[1:]) if need else None for v, need in zip(vectors, needs[1], strict=True)]
    of_init = [c.new_zeros(c.shape) if g is None else _row(g) for c, g in zip(init, final, strict=True)]
    arrays = [a for s in series for a in strided(s, sizes[1])]
    arrays += flat([*vectors, *(_row(c, keep=True) for c in init), *courses])
    arrays += [a for g in (*given, *of_series) if g is not None for a in strided(g, sizes[1])]
    arrays += flat([*(v for v in of_vectors if v is not None), *of_init])
    _backward(loop.text, variant, format_of(tensors[0]))(*sizes, reverse, *arrays, _selection(valid))
    # One sum per sample over the ticks, then one over the samples: errors grow with neither alone.
    summed = [None if v is None else v.sum(0) for v in of_vectors]
    return [*of_series, *summed, *(c if need else None for c, need in zip(of_init, needs[2], strict=True))]


def _row(value: Tensor, keep: bool = False) -> Tensor:
    """(B, n) without gaps; a copy unless `keep`."""
    return value.contiguous() if keep else value.clone(memory_format=torch.contiguous_format)


def _tick(course: Tensor, reverse: bool) -> Tensor:
    return course[0 if reverse else -1].clone()


def _selection(valid: Tensor | None) -> Any:
    return NO_SELECTION if valid is None else valid.contiguous().view(-1).numpy()


@functools.cache
def _forward(text: str, variant: ForwardVariant, dtype: str) -> Callable[..., None]:
    return _compiled(forward_text(read_loop(text), variant), "forward", dtype)


@functools.cache
def _backward(text: str, variant: BackwardVariant, dtype: str) -> Callable[..., None]:
    return _compiled(backward_text(read_loop(text), variant), "backward", dtype)


@functools.cache
def _names(dtype: str) -> dict[str, Any]:
    """What the text of a loop may name."""
    constants = {name: FORMATS[dtype].real(value) for name, value in CONSTANTS.items()}
    return scalar_functions(dtype) | constants | {"unsigned": np.uint64}


def _compiled(text: str, name: str, dtype: str) -> Callable[..., None]:
    numba = importlib.import_module("numba")
    options = {"fastmath": SAFE, "error_model": "numpy", "nogil": True, "pipeline_class": distinct()}
    return numba.njit(**options)(defined(text, name, _names(dtype)))  # type: ignore[no-any-return]


def defined(text: str | CodeType, name: str, names: Mapping[str, Any]) -> Callable[..., None]:
    """The function of this name that the text of a loop defines, where it may use these names."""
    known = dict(names)
    exec(text, known)  # made from the tables of `elementwise_text`, register numbers and floats alone
    return known[name]  # type: ignore[no-any-return]
