"""The one sparse loop a compiler does better than torch's kernel, with numba where it is installed."""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Loop = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def sampled_loop(like: Tensor) -> Loop | None:
    """The compiled loop for entries of a product at a pattern; None where torch's kernel is to be used.

    On one thread it takes 0.7 to 0.8 of the time of torch.sparse.sampled_addmm; it does not divide its
    work, so with more threads torch's kernel is taken.
    """
    if like.device.type != "cpu" or torch.get_num_threads() > 1 or not _has_numba():
        return None
    return _sampled


def _sampled(crow: Tensor, col: Tensor, xt: Tensor, yt: Tensor) -> Tensor:
    out = torch.empty(col.shape[0], dtype=xt.dtype)
    arrays = [t.detach().numpy() for t in (crow, col, xt, yt, out)]
    _compiled()(*arrays, arrays[-1].dtype.type(0))
    return out


@functools.cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


@functools.cache
def _compiled() -> Any:
    numba: Any = importlib.import_module("numba")

    # Inexact only in the order of the sums: nan and infinities stay what they are.
    # Four entries at a time share the loads of yt and overlap their sums: 0.87 of the time of one by one.
    def sampled(crow: Any, col: Any, xt: Any, yt: Any, out: Any, zero: Any) -> None:
        for i in range(crow.size - 1):
            k, end = crow[i], crow[i + 1]
            while k + 4 <= end:
                c0, c1, c2, c3 = col[k], col[k + 1], col[k + 2], col[k + 3]
                s0, s1, s2, s3 = zero, zero, zero, zero
                for b in range(xt.shape[1]):
                    y = yt[i, b]
                    s0 += xt[c0, b] * y
                    s1 += xt[c1, b] * y
                    s2 += xt[c2, b] * y
                    s3 += xt[c3, b] * y
                out[k], out[k + 1], out[k + 2], out[k + 3] = s0, s1, s2, s3
                k += 4
            while k < end:
                c, s = col[k], zero
                for b in range(xt.shape[1]):
                    s += xt[c, b] * yt[i, b]
                out[k] = s
                k += 1

    return numba.njit(fastmath={"reassoc", "contract", "nsz"}, nogil=True)(sampled)
