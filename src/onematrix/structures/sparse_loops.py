"""The sparse loops a compiler does better than torch's kernels, with numba where it is installed.

All are feature-major, (features, batch), and run on one thread: they do not divide their work, so with more
threads torch's kernels are taken. Where a row of the batch fills whole registers (`fills_registers`) it is
kept in them, and one pass gives both gradients, which share the loads of the output's gradient.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onematrix.structures.sparse_lanes import REGISTER_BYTES, lanes

Loop = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

NAMES = {torch.float32: "float32", torch.float64: "float64", torch.int32: "int32", torch.int64: "int64"}
LEAST = 1 << 18  # multiply-adds of a product below which compiling it (once, a second) is not worth while
CACHE_BYTES = 1 << 20  # what is read in random order has to stay in a core's own cache
WIDEST_ROW = 1 << 10  # bytes; of wider rows only a piece is read at a time, and torch's kernels are as fast


def fills_registers(v: Tensor, crow: Tensor, col: Tensor, x: Tensor) -> bool:
    """Whether the loops over registers serve x (B, n) and these: float32/64, one CPU thread, numba, sizes.

    The batch is whole registers, and what is read in random order stays in the cache.
    """
    batch, features = x.shape
    row = batch * x.element_size()
    return (
        col.shape[0] * batch >= LEAST
        and row % REGISTER_BYTES == 0
        and row <= WIDEST_ROW
        and row * max(features, crow.shape[0] - 1) <= CACHE_BYTES
        and (x.dtype is torch.float32 or x.dtype is torch.float64)
        and v.dtype is x.dtype
        and crow.dtype is col.dtype
        and (col.dtype is torch.int32 or col.dtype is torch.int64)
        and x.is_cpu
        and v.is_cpu
        and crow.is_cpu
        and col.is_cpu
        and v.is_contiguous()
        and crow.is_contiguous()
        and col.is_contiguous()
        and not v.is_neg()
        and torch.get_num_threads() == 1
        and _has_numba()
    )


def shares_passes(v: Tensor) -> bool:
    """Whether one pass gives both gradients: it takes the values in the order of the transpose."""
    return v.shape[0] * v.element_size() <= CACHE_BYTES


def turned_product(
    v: Tensor, crow: Tensor, col: Tensor, order: Tensor | None, x: Tensor
) -> tuple[Tensor, Tensor]:
    """(xᵀ (n, B), A xᵀ (m, B)), row-major, for A (m, n), x (B, n). Only where `fills_registers`.

    Entry k of the pattern has the value v[order[k]]; without an order, v[k].
    """
    source, xt = _turning(x)
    out = torch.empty((crow.shape[0] - 1, x.shape[0]), dtype=x.dtype)
    loop = _product_loop(x.dtype, col.dtype, _vector_bytes(x), order is not None)
    tensors = v, crow, col, order, source, xt, out
    loop(*map(_address, tensors), out.shape[0], *xt.shape)
    return xt, out


def turned_gradients(
    v: Tensor, crow: Tensor, col: Tensor, order: Tensor | None, xt: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """(entries (k,) of xt y at the pattern, A yᵀ (m, B)) for A (m, n), xt (m, B) row-major, y (B, n).

    Entry k of the pattern has the value v[order[k]], and its entry of the product goes to that place too;
    without an order, to k. Only where `fills_registers`.
    """
    source, yt = _turning(y)
    entries, out = torch.empty_like(v), torch.empty_like(xt)
    loop = _gradient_loop(y.dtype, col.dtype, _vector_bytes(y), order is not None)
    tensors = v, crow, col, order, xt, source, yt, entries, out
    loop(*map(_address, tensors), out.shape[0], *yt.shape)
    return entries, out


def _turning(x: Tensor) -> tuple[Tensor | None, Tensor]:
    """(what is to be turned, memory for xᵀ) of x (B, n); nothing where xᵀ lies in memory already."""
    x = x.resolve_neg()  # memory is read as it is
    if not x.is_contiguous():
        if x.t().is_contiguous():
            return None, x.t()
        x = x.contiguous()
    return x, torch.empty(x.shape[::-1], dtype=x.dtype)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _vector_bytes(x: Tensor) -> int:
    """The widest vector that divides a row of the batch; a loop keeps two, in at most half of the registers."""
    row = x.shape[0] * x.element_size()
    return min(row & -row, _widest_vector())


@functools.cache
def _widest_vector() -> int:
    return 256 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 128


@functools.cache
def _product_loop(dtype: torch.dtype, indices: torch.dtype, width: int, ordered: bool) -> Any:
    size, turn = dtype.itemsize, _turning_loop(dtype)
    op = lanes(NAMES[dtype], NAMES[indices], width // size)
    zero, load, store, add_scaled = op.zero, op.load, op.store, op.add_scaled
    number, index = op.number, op.index

    def product(
        v: int,
        crow: int,
        col: int,
        order: int,
        x: int,
        xt: int,
        out: int,
        rows: int,
        columns: int,
        batch: int,
    ) -> None:
        stride = size * batch
        if x != 0:
            turn(x, xt, columns, batch)
        for at in range(0, stride, width):
            for i in range(rows):
                total = zero()
                for k in range(index(crow, i), index(crow, i + 1)):
                    value = number(v, index(order, k) if ordered else k)
                    total = add_scaled(value, load(xt + at + stride * index(col, k)), total)
                store(out + at + stride * i, total)

    return _compiled(product)


@functools.cache
def _gradient_loop(dtype: torch.dtype, indices: torch.dtype, width: int, ordered: bool) -> Any:
    size, turn = dtype.itemsize, _turning_loop(dtype)
    op = lanes(NAMES[dtype], NAMES[indices], width // size)
    zero, load, store, add_scaled, dot = op.zero, op.load, op.store, op.add_scaled, op.dot
    number, put, index = op.number, op.put, op.index

    def gradients(
        v: int,
        crow: int,
        col: int,
        order: int,
        xt: int,
        y: int,
        yt: int,
        entries: int,
        out: int,
        rows: int,
        columns: int,
        batch: int,
    ) -> None:
        stride = size * batch
        if y != 0:
            turn(y, yt, columns, batch)
        for at in range(0, stride, width):
            for i in range(rows):
                total, here = zero(), load(xt + at + stride * i)
                for k in range(index(crow, i), index(crow, i + 1)):
                    place = index(order, k) if ordered else k
                    there = load(yt + at + stride * index(col, k))
                    total = add_scaled(number(v, place), there, total)
                    entry = dot(here, there)
                    if at > 0:
                        entry += number(entries, place)
                    put(entries, place, entry)
                store(out + at + stride * i, total)

    return _compiled(gradients)


@functools.cache
def _turning_loop(dtype: torch.dtype) -> Any:
    """xᵀ from x (batch, columns), by square blocks as wide as a register."""
    size = dtype.itemsize
    side = REGISTER_BYTES // size
    op = lanes(NAMES[dtype], "int64", side)
    turn, number, put = op.turn, op.number, op.put

    def turning(x: int, xt: int, columns: int, batch: int) -> None:
        whole = columns - columns % side
        for j in range(0, whole, side):
            for b in range(0, batch, side):
                at, to = x + size * (b * columns + j), xt + size * (j * batch + b)
                turn(at, to, size * columns, size * batch)
        for j in range(whole, columns):
            for b in range(batch):
                put(xt, j * batch + b, number(x, b * columns + j))

    return _compiled(turning)


def _compiled(function: Any) -> Any:
    return importlib.import_module("numba").njit(nogil=True)(function)


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
    _sampled_code()(*arrays, arrays[-1].dtype.type(0))
    return out


@functools.cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


@functools.cache
def _sampled_code() -> Any:
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
