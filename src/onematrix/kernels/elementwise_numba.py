"""The elementwise recurrence as compiled loops: one forward, one backward, both over memory of torch tensors."""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onematrix.kernels.elementwise_code import ElementwiseLoop, read_loop
from onematrix.kernels.elementwise_memory import forward_memory, parted, series_gradient
from onematrix.kernels.elementwise_text import (
    CONSTANTS,
    BackwardVariant,
    ForwardVariant,
    backward_text,
    forward_text,
)
from onematrix.kernels.elementwise_torch import Sizes
from onematrix.kernels.scalar_functions import FORMATS, SAFE, scalar_functions

HAS_NUMBA = importlib.util.find_spec("numba") is not None
NO_SELECTION = np.empty(0, np.bool_)


def refusal(like: Tensor) -> str | None:
    """Why the compiled loops do not serve tensors like this one, or None."""
    if not HAS_NUMBA:
        return "numba is not installed: pip install onematrix[kernels]"
    if like.device.type != "cpu":
        return f"tensors on a CPU are needed, got {like.device.type}"
    if like.dtype not in (torch.float32, torch.float64):
        return f"float32 or float64 is needed, got {_format(like)}"
    return None


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
    variant, courses = written.variant, written.courses
    rows = [_row(c, keep=course) for c, course in zip(init, variant.courses, strict=True)]
    arrays = [a for s in series for a in _strided(s, sizes)]
    arrays += _flat([*vectors, *rows, *written.arrays])
    _forward(loop.text, variant, _format(tensors[0]))(*sizes, reverse, *arrays, _selection(valid))
    last = courses if sizes[0] else {}
    final = [
        _tick(last[k], reverse) if k in last else _row(row, k not in courses) for k, row in enumerate(rows)
    ]
    return written.outputs, final, list(courses.values())


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
    arrays = [a for s in series for a in _strided(s, sizes)]
    arrays += _flat([*vectors, *(_row(c, keep=True) for c in init), *courses])
    arrays += [a for g in (*given, *of_series) if g is not None for a in _strided(g, sizes)]
    arrays += _flat([*(v for v in of_vectors if v is not None), *of_init])
    _backward(loop.text, variant, _format(tensors[0]))(*sizes, reverse, *arrays, _selection(valid))
    # One sum per sample over the ticks, then one over the samples: errors grow with neither alone.
    summed = [None if v is None else v.sum(0) for v in of_vectors]
    return [*of_series, *summed, *(c if need else None for c, need in zip(of_init, needs[2], strict=True))]


def _row(value: Tensor, keep: bool = False) -> Tensor:
    """(B, n) without gaps; a copy unless `keep`."""
    return value.contiguous() if keep else value.clone(memory_format=torch.contiguous_format)


def _tick(course: Tensor, reverse: bool) -> Tensor:
    return course[0 if reverse else -1].clone()


def _flat(tensors: Iterable[Tensor]) -> list[Any]:
    return [t.detach().view(-1).numpy() for t in tensors]


def _strided(tensor: Tensor, sizes: Sizes) -> tuple[Any, int, int]:
    """The numbers from the first to the last, and how far ticks and samples are apart in them."""
    t = tensor.detach()
    if t.stride(2) != 1 and sizes[2] > 1:
        t = t.contiguous()
    ticks, batch, width = t.shape
    over_samples = t.stride(1) if batch == sizes[1] else 0
    if t.is_contiguous():
        return t.view(-1).numpy(), t.stride(0), over_samples
    length = (ticks - 1) * t.stride(0) + (batch - 1) * t.stride(1) + width
    return t.as_strided((length,), (1,)).numpy(), t.stride(0), over_samples


def _selection(valid: Tensor | None) -> Any:
    return NO_SELECTION if valid is None else valid.contiguous().view(-1).numpy()


def _format(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


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


@functools.cache
def _distinct() -> type:
    """numba's compiler, told that no array a loop writes shares memory with another it is given.

    So it is: what is written was allocated for the call. Without the promise LLVM tests each written array
    against each other one and, past some number of tests, gives up vector code: a backward loop over twenty
    arrays took 4 times as long.
    """
    base: Any = importlib.import_module("numba.core.compiler").Compiler

    class Distinct(base):  # type: ignore[misc]
        def define_pipelines(self) -> Any:
            if hasattr(self.state.flags, "noalias"):
                self.state.flags.noalias = True
            return super().define_pipelines()

    return Distinct


def _compiled(text: str, name: str, dtype: str) -> Callable[..., None]:
    numba = importlib.import_module("numba")
    options = {"fastmath": SAFE, "error_model": "numpy", "nogil": True, "pipeline_class": _distinct()}
    return numba.njit(**options)(defined(text, name, _names(dtype)))  # type: ignore[no-any-return]


def defined(text: str | CodeType, name: str, names: Mapping[str, Any]) -> Callable[..., None]:
    """The function of this name that the text of a loop defines, where it may use these names."""
    known = dict(names)
    exec(text, known)  # made from the tables of `elementwise_text`, register numbers and floats alone
    return known[name]  # type: ignore[no-any-return]
