"""Triton where it is installed: its language, its compiler, and why it does not serve some tensor."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None
# In its interpreter, which this variable asks for, kernels run on a CPU, slowly: for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
LANES = 132 * 1024  # numbers that keep a GPU of 132 multiprocessors busy, one of them a thread


def refusal(like: Tensor) -> str | None:
    """Why Triton kernels do not serve tensors like this one, or None."""
    if not HAS_TRITON:
        return "triton is not installed: pip install triton"
    if like.device.type != "cuda" and not (INTERPRETED and like.device.type == "cpu"):
        return f"tensors on a CUDA device are needed, got {like.device.type}"
    if like.dtype not in DTYPES:
        return (
            f"a floating-point dtype of 16 to 64 bits is needed, got {str(like.dtype).removeprefix('torch.')}"
        )
    return None


def serves(like: Tensor) -> bool:
    """Whether a Triton kernel is the choice for such a tensor: it is on a CUDA device, and nothing refuses it."""
    return like.device.type == "cuda" and refusal(like) is None


def language() -> Any:
    """triton.language, or None where Triton is not installed."""
    return importlib.import_module("triton.language") if HAS_TRITON else None


def jit(function: Callable[..., Any], unspecialized: Sequence[str] = ()) -> Any:
    """The function as a Triton kernel, made when first called; no new kernel per value of `unspecialized`."""
    if not HAS_TRITON:
        return function
    return importlib.import_module("triton").jit(function, do_not_specialize=list(unspecialized))


def storage_type(like: Tensor) -> Any:
    """The type in Triton of the numbers of a tensor."""
    return getattr(language(), DTYPES[like.dtype])


def working_dtype(like: Tensor) -> torch.dtype:
    """What kernels compute and sum in: float32, for float64 itself."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def working_type(like: Tensor) -> Any:
    """`working_dtype` as a type in Triton."""
    return getattr(language(), DTYPES[working_dtype(like)])


def on_device(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launches inside go to the device of the tensor."""
    return torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext()
