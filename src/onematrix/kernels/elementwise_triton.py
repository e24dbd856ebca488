"""The elementwise recurrence as Triton kernels, one forward, one backward: a thread per sample and feature."""

import functools
import itertools
import linecache
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from onematrix.kernels.elementwise_code import ElementwiseLoop, read_loop
from onematrix.kernels.elementwise_memory import forward_memory, parted
from onematrix.kernels.elementwise_numba import defined
from onematrix.kernels.elementwise_text import BackwardVariant, ForwardVariant
from onematrix.kernels.elementwise_torch import Sizes
from onematrix.kernels.elementwise_triton_text import backward_text, forward_text
from onematrix.kernels.triton_language import (
    LANES,
    jit,
    on_device,
    storage_type,
    working_dtype,
    working_type,
)

WARP = 32


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
    """As `elementwise_numba.run_forward`. Computed in float32, or float64 for it; carried in the dtype given."""
    series, vectors, init = parted(loop, tensors)
    written = forward_memory(loop, tensors, sizes, reverse, valid, keep, share, overlap)
    final = [c.new_empty(c.shape) for c in init]
    arrays = [a for s in series for a in _strided(s, sizes, reverse)]
    arrays += [*_rows([*vectors, *init]), *_from(written.arrays, reverse), *final]
    _launch(_forward(loop.text, written.variant), tensors[0], sizes, reverse, arrays, valid)
    return written.outputs, final, list(written.courses.values())


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
    """As `elementwise_numba.run_backward`; gradients of vectors and of shared series are summed afterwards."""
    series, vectors, init = parted(loop, tensors)
    needs = parted(loop, wanted)
    given, final = grads[: len(loop.outputs)], grads[len(loop.outputs) :]
    flags = (tuple(g is not None for g in given), tuple(needs[0]), tuple(needs[1]))
    variant = BackwardVariant(*flags, (False,) * loop.series, valid is not None)
    like, real = tensors[0], working_dtype(tensors[0])
    shared = [s.shape[1] != sizes[1] for s in series]
    of_series = [
        s.new_empty(sizes, dtype=real if one else None)
        for s, one in itertools.compress(zip(series, shared, strict=True), needs[0])
    ]
    of_vectors = [v.new_zeros(sizes[1:], dtype=real) for v in itertools.compress(vectors, needs[1])]
    of_init = [
        c.new_zeros(c.shape, dtype=real) if g is None else g.to(real, copy=True).contiguous()
        for c, g in zip(init, final, strict=True)
    ]
    back = not reverse
    arrays = [a for s in series for a in _strided(s, sizes, back)]
    arrays += [*_rows([*vectors, *init]), *_from(courses, back)]
    arrays += [a for g in given if g is not None for a in _strided(g, sizes, back)]
    arrays += [*_from(of_series, back), *of_vectors, *of_init]
    _launch(_backward(loop.text, variant), like, sizes, back, arrays, valid)
    ones = itertools.compress(shared, needs[0])
    made = [s.sum(1, keepdim=True) if one else s for s, one in zip(of_series, ones, strict=True)]
    made += [*(v.sum(0) for v in of_vectors), *itertools.compress(of_init, needs[2])]
    found = iter(made)
    return [next(found).to(like.dtype) if want else None for want in wanted]


def _rows(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [t.detach().contiguous() for t in tensors]


def _from(tensors: Iterable[Tensor], reverse: bool) -> list[Tensor]:
    """Each from its first tick in the order of the run."""
    return [t[-1:] if reverse and len(t) else t for t in tensors]


def _strided(tensor: Tensor, sizes: Sizes, reverse: bool) -> tuple[Tensor, int, int]:
    """From the first tick in the order of the run, with the strides to the next tick and the next sample."""
    t = tensor.detach()
    if t.stride(2) != 1 and sizes[2] > 1:
        t = t.contiguous()
    over_ticks = -t.stride(0) if reverse else t.stride(0)
    return _from([t], reverse)[0], over_ticks, t.stride(1) if t.shape[1] == sizes[1] else 0


def _launch(
    kernel: Any, like: Tensor, sizes: Sizes, reverse: bool, arrays: Sequence[Any], valid: Tensor | None
) -> None:
    ticks, batch, width = sizes
    if batch * width == 0:
        return
    # A warp of threads, each with as many neighbouring features as still keep the device busy.
    block = WARP * max(1, min(4, batch * width // LANES))
    selection = like if valid is None else _from([valid.contiguous().view(torch.uint8)], reverse)[0]
    dense, chosen = batch * width, batch
    if reverse:
        dense, chosen = -dense, -chosen
    grid = (batch * -(-width // block),)
    types = {"real": working_type(like), "stored": storage_type(like)}
    with on_device(like):
        kernel[grid](
            ticks, width, dense, *arrays, selection, chosen, BLOCK=_power(block), num_warps=1, **types
        )


def _power(number: int) -> int:
    """The power of two at or below it."""
    return 1 << (number.bit_length() - 1)


@functools.cache
def _forward(text: str, variant: ForwardVariant) -> Any:
    return _kernel(forward_text(read_loop(text), variant), "forward")


@functools.cache
def _backward(text: str, variant: BackwardVariant) -> Any:
    return _kernel(backward_text(read_loop(text), variant), "backward")


def _kernel(text: str, name: str) -> Any:
    """Triton reads the text of what it compiles, here from the cache of lines that tracebacks use."""
    from onematrix.kernels.triton_functions import triton_functions

    file = f"<elementwise {name} {len(text)} {hash(text):x}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    return jit(defined(compile(text, file, "exec"), name, triton_functions()), ["T"])
