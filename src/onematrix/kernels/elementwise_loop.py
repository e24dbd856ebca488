"""A recurrence whose body is elementwise, run over all ticks: by torch operations or by one compiled loop."""

import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from onematrix.errors import CompileError, DTypeError, ShapeError
from onematrix.kernels import numba_arrays, triton_language
from onematrix.kernels.elementwise_code import ElementwiseLoop
from onematrix.kernels.elementwise_operator import run_compiled
from onematrix.kernels.elementwise_scan import prefers_scan, run_by_scan
from onematrix.kernels.elementwise_torch import Sizes, run_by_torch
from onematrix.structures.ordinary import is_ordinary

__all__ = ["KERNELS", "ElementwiseLoop", "run_elementwise_loop"]

KERNELS = ("torch", "numba", "triton", "scan")
WORTHWHILE = 2048  # numbers per series from which on compiled loops are the choice


def run_elementwise_loop(
    loop: ElementwiseLoop,
    series: Sequence[Tensor],
    vectors: Sequence[Tensor],
    init: Sequence[Tensor],
    *,
    reverse: bool = False,
    valid: Tensor | None = None,
    overlap: bool = False,
    kernel: str | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs, each (T, B, n), and the final carried values, each (B, n): new tensors all of them.

    reverse: from the last tick to the first; outputs stay in the order of time. valid: (T, B) bool, where it
    is False a sample's carried values hold and its outputs are 0, by selection: what was not selected
    reaches neither value nor gradient, be it infinite or nan.
    overlap: outputs are only read, so they may share memory with each other: a carried value before every tick
    is, one tick later, what it is after a tick.
    kernel: "torch" runs on any device and dtype; one compiled loop per direction are "numba" on a CPU and
    "triton" on a GPU, which computes a tick in float32 where less is stored; "scan" computes what is linear in
    its carried values for all ticks side by side; None chooses. Derivatives other than the first reverse one
    always take torch. Under autocast the dtypes may differ; the widest is computed in.

    >>> import torch
    >>> mean = ElementwiseLoop(1, 0, 1, (("add", 0, 1), ("scale", 2, 0.5)), outputs=(3,), carry=(3,))
    >>> run_elementwise_loop(mean, [torch.ones(3, 1, 1)], [], [torch.zeros(1, 1)])[0][0].flatten()
    tensor([0.5000, 0.7500, 0.8750])
    """
    series, vectors, init = _in_one_dtype(series, vectors, init)
    sizes = check_inputs(loop, series, vectors, init, valid)
    tensors = (*series, *vectors, *init)
    chosen = choose(kernel, loop, tensors, sizes)
    if chosen == "scan":
        return run_by_scan(loop, series, vectors, init, sizes, reverse, valid)
    if chosen != "torch":
        made = run_compiled(loop, tensors, sizes, reverse, valid, overlap, chosen)
        return made[: len(loop.outputs)], made[len(loop.outputs) :]
    return run_by_torch(loop, series, vectors, init, sizes, reverse, valid)


def _in_one_dtype(*groups: Sequence[Tensor]) -> Sequence[Sequence[Tensor]]:
    """Under autocast, which narrows some of them, all in the widest dtype; else as they are."""
    first = next(itertools.chain(*groups), None)
    if first is None or first.is_meta or not torch.is_autocast_enabled(first.device.type):
        return groups
    wide = functools.reduce(torch.promote_types, [t.dtype for group in groups for t in group])
    return [[t.to(wide) for t in group] for group in groups]


def choose(kernel: str | None, loop: ElementwiseLoop, tensors: Sequence[Tensor], sizes: Sizes) -> str:
    """The kernel that runs: a compiled one if asked for, or worth its compilation; never inside a transform."""
    if kernel not in (None, *KERNELS):
        raise CompileError(f"loop: kernel {kernel!r} is unknown; there are: {', '.join(KERNELS)}", got=kernel)
    if kernel in ("torch", "scan") or not tensors:
        return kernel if kernel and tensors else "torch"
    chosen = kernel or ("numba" if tensors[0].device.type == "cpu" else "triton")
    refusal = numba_arrays.refusal if chosen == "numba" else triton_language.refusal
    reason = refusal(tensors[0])
    if kernel is not None and reason is not None:
        raise CompileError(f"loop: kernel {kernel!r} cannot run: {reason}", got=reason)
    if reason is not None or (kernel is None and not _is_worthwhile(sizes)):
        return "torch"
    if torch.compiler.is_compiling():
        return chosen
    whole = tensors[0].dtype.itemsize > 2  # a scan of less would round its factors
    if chosen == "triton" and kernel is None and whole and prefers_scan(loop, sizes):
        return "scan"
    return chosen if is_ordinary(*tensors) else "torch"


def _is_worthwhile(sizes: Sizes) -> bool:
    """Torch's operations cost microseconds a tick, the loops a second or two of compilation, once."""
    return not torch.compiler.is_exporting() and math.prod(sizes) >= WORTHWHILE


def check_inputs(
    loop: ElementwiseLoop,
    series: Sequence[Tensor],
    vectors: Sequence[Tensor],
    init: Sequence[Tensor],
    valid: Tensor | None,
) -> Sizes:
    """Ticks, batch and features; raise ShapeError or DTypeError where the tensors do not fit the loop."""
    needed, got = (loop.series, loop.vectors, loop.carried), (len(series), len(vectors), len(init))
    if needed != got:
        raise ShapeError(
            f"loop: {needed} series, vectors and carried values needed, got {got}", needed=needed, got=got
        )
    sizes = _sizes(series, vectors, init, valid)
    _check_dtypes((*series, *vectors, *init), valid)
    return sizes


def _sizes(
    series: Sequence[Tensor], vectors: Sequence[Tensor], init: Sequence[Tensor], valid: Tensor | None
) -> Sizes:
    timed = [*series] if valid is None else [*series, valid]
    dims = {3: series, 1: vectors, 2: [*init] if valid is None else [*init, valid]}
    fits = bool(timed) and all(t.dim() == d for d, tensors in dims.items() for t in tensors)
    if fits:
        sizes = _first_sizes(timed, (*init, *vectors, *series), init)
        ticks, batch, width = sizes
        fits = all(s.shape in (sizes, (ticks, 1, width)) for s in series)
        fits = fits and all(v.shape == (width,) for v in vectors)
        fits = fits and all(c.shape == (batch, width) for c in init)
        if fits and (valid is None or valid.shape == (ticks, batch)):
            return sizes
    got = [tuple(t.shape) for t in (*series, *vectors, *init, *([] if valid is None else [valid]))]
    raise ShapeError(
        "loop: series (T, B, n) or (T, 1, n), vectors (n,), carried values (B, n) and valid (T, B) are needed, "
        f"at least one of them with ticks T; got {got}",
        got=got,
    )


def _first_sizes(timed: list[Tensor], wide: Sequence[Tensor], init: Sequence[Tensor]) -> Sizes:
    """Sizes of one tensor each; a batch of 1 in a series may be shared by a larger one."""
    batches = [c.shape[0] for c in init] + [t.shape[1] for t in timed]
    width = wide[0].shape[-1] if wide else 0
    return timed[0].shape[0], next((b for b in batches if b != 1), 1), width


def _check_dtypes(tensors: Sequence[Tensor], valid: Tensor | None) -> None:
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
        raise DTypeError(
            f"loop: one floating-point dtype needed for all, got {[str(t.dtype) for t in tensors]}"
        )
    if valid is not None and valid.dtype != torch.bool:
        raise DTypeError(f"loop: valid has to be torch.bool, got {valid.dtype}", got=valid.dtype)
