"""Torch tensors as compiled loops read and write them, and what numba's compiler is told about them."""

import functools
import importlib
import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

HAS_NUMBA = importlib.util.find_spec("numba") is not None


def refusal(like: Tensor) -> str | None:
    """Why compiled loops do not serve tensors like this one, or None."""
    if not HAS_NUMBA:
        return "numba is not installed: pip install onematrix[kernels]"
    if like.device.type != "cpu":
        return f"tensors on a CPU are needed, got {like.device.type}"
    if like.dtype not in (torch.float32, torch.float64):
        return f"float32 or float64 is needed, got {format_of(like)}"
    return None


def format_of(tensor: Tensor) -> str:
    """The dtype as numpy names it."""
    return str(tensor.dtype).removeprefix("torch.")


def flat(tensors: Iterable[Tensor]) -> list[Any]:
    """The numbers of each, which has no gaps, in one row."""
    return [t.detach().view(-1).numpy() for t in tensors]


def strided(tensor: Tensor, batch: int) -> tuple[Any, int, int]:
    """Of (T, B, n) or (T, 1, n): the numbers from first to last, and how far ticks and samples are apart in them."""
    t = tensor.detach()
    if t.stride(2) != 1 and t.shape[2] > 1:
        t = t.contiguous()
    ticks, given, width = t.shape
    over_samples = t.stride(1) if given == batch else 0
    if t.is_contiguous():
        return t.view(-1).numpy(), t.stride(0), over_samples
    length = (ticks - 1) * t.stride(0) + (given - 1) * t.stride(1) + width
    return t.as_strided((length,), (1,)).numpy(), t.stride(0), over_samples


@functools.cache
def distinct() -> type:
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
