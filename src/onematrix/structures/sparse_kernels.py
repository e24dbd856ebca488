"""Products of a compressed-row pattern with dense batches: torch's sparse kernels, and a portable form.

All work feature-major, (features, batch): one stored entry then multiplies a contiguous row of the batch.
The pattern of the transpose is derived from the indices once and remembered for as long as the index
tensor lives unchanged (its identity and version); it holds integers only, nothing derived from weights.
"""

import warnings
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from onematrix.structures.sparse_loops import (
    fills_registers,
    sampled_loop,
    turned_product,
)

Pattern = tuple[Tensor, Tensor, Tensor]

CHUNK = 1 << 22  # numbers the portable form holds at a time

with (
    warnings.catch_warnings()
):  # torch says once per process that its sparse layout is young; not our users' worry
    warnings.simplefilter("ignore")
    torch.zeros(1, 1, device="cpu").to_sparse_csr()


class _Reference(weakref.ref[Tensor]):
    """A weak reference that knows the id() its tensor had."""

    key: int


def _refer(tensor: Tensor, forget: Callable[[_Reference], None]) -> _Reference:
    reference = _Reference(tensor, forget)
    reference.key = id(tensor)
    return reference


# id of col → (col, crow, their versions and the width, pattern)
_TRANSPOSED: dict[int, tuple[_Reference, weakref.ref[Tensor], tuple[int, int, int], Pattern]] = {}


def uses_torch_kernels(tensor: Tensor) -> bool:
    """Whether torch's compressed-row kernels serve this tensor: float32/64 on CUDA, or on a CPU with MKL."""
    if tensor.dtype not in (torch.float32, torch.float64):
        return False
    return tensor.is_cuda or (tensor.device.type == "cpu" and torch._C.has_mkl)


def entry_rows(crow: Tensor, count: int) -> Tensor:
    """Row of each stored entry, from the row pointers."""
    rows = torch.arange(crow.shape[0] - 1, device=crow.device, dtype=crow.dtype)
    return torch.repeat_interleave(rows, crow.diff().long(), output_size=count)


def transposed_pattern(crow: Tensor, col: Tensor, columns: int) -> Pattern:
    """(crow, col, order) of Aᵀ: its entry j is entry order[j] of A. Remembered per index tensor."""
    known = _TRANSPOSED.get(id(col))
    if known is not None and known[0]() is col and known[1]() is crow:
        if known[2] == (crow._version, col._version, columns):
            return known[3]
    pattern = _transpose_pattern(crow, col, columns)
    if not (col.is_inference() or crow.is_inference()):  # such tensors do not count their changes
        facts = crow._version, col._version, columns
        _TRANSPOSED[id(col)] = _refer(col, _forget), weakref.ref(crow), facts, pattern
    return pattern


def _forget(dead: _Reference) -> None:
    if dead.key in _TRANSPOSED and _TRANSPOSED[dead.key][0] is dead:
        del _TRANSPOSED[dead.key]


def _transpose_pattern(crow: Tensor, col: Tensor, columns: int) -> Pattern:
    order = torch.argsort(col, stable=True)
    counts = torch.bincount(col, minlength=columns)
    pointers = torch.zeros(columns + 1, dtype=crow.dtype, device=crow.device)
    pointers[1:] = counts.cumsum(0)
    rows = entry_rows(crow, len(col)).index_select(0, order)
    return pointers, rows.to(col.dtype), order.to(col.dtype)


def turn(x: Tensor) -> Tensor:
    """xᵀ, row-major: (B, n) → (n, B); no copy where x is feature-major already."""
    # Shuffling B n channels of one pixel in B groups is this transpose, and torch vectorises it: 9 µs
    # against 37 µs for 64 × 1024 float32. Its float64 form is no faster than a plain copy.
    if x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous() and min(x.shape) > 1:
        pixel = x.as_strided((1, x.numel(), 1, 1), (x.numel(), 1, x.numel(), x.numel()))
        return torch.native_channel_shuffle(pixel, x.shape[0]).view(x.shape[1], x.shape[0])
    return x.t().contiguous()


def matmul_kernel(v: Tensor, crow: Tensor, col: Tensor, x: Tensor) -> Tensor:
    """x Aᵀ: x (B, n) → (B, m)."""
    return product(v, crow, col, turn(x)).t()


def rmatmul_kernel(v: Tensor, crow: Tensor, col: Tensor, y: Tensor, columns: int) -> Tensor:
    """y A: y (B, m) → (B, n)."""
    return transposed_product(v, crow, col, turn(y), columns).t()


def sampled_kernel(crow: Tensor, col: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(yᵀ x) at the pattern: x (B, n), y (B, m) → (k,)."""
    return sampled_product(crow, col, turn(x), turn(y))


def product(v: Tensor, crow: Tensor, col: Tensor, xt: Tensor) -> Tensor:
    """A xt: xt (n, B), row-major → (m, B), row-major."""
    m, batch = crow.shape[0] - 1, xt.shape[1]
    if col.shape[0] == 0 or batch == 0:
        return xt.new_zeros(m, batch)
    if not uses_torch_kernels(xt):
        return gather_product(v, crow, col, xt)
    if fills_registers(v, crow, col, xt.t()):
        return turned_product(v, crow, col, None, xt.t())[1]
    matrix = torch.sparse_csr_tensor(crow, col, v, (m, xt.shape[0]), check_invariants=False)
    out = xt.new_empty(m, batch)
    return torch.addmm(out, matrix, xt, beta=0, out=out)  # mm would fill and copy besides


def transposed_product(v: Tensor, crow: Tensor, col: Tensor, yt: Tensor, columns: int) -> Tensor:
    """Aᵀ yt: yt (m, B), row-major → (n, B), by the rows of the transpose."""
    pointers, rows, order = transposed_pattern(crow, col, columns)
    if fills_registers(v, pointers, rows, yt.t()):
        return turned_product(v, pointers, rows, order, yt.t())[1]
    return product(v.index_select(0, order), pointers, rows, yt)


def sampled_product(crow: Tensor, col: Tensor, xt: Tensor, yt: Tensor) -> Tensor:
    """(yt xtᵀ) at the pattern: xt (n, B), yt (m, B), row-major → (k,)."""
    if xt.shape[1] == 0 or col.shape[0] == 0:
        return xt.new_zeros(col.shape[0])
    if not uses_torch_kernels(xt):
        return gather_sampled(crow, col, xt, yt)
    if (loop := sampled_loop(xt)) is not None:
        return loop(crow, col, xt, yt)
    out = xt.new_zeros(col.shape[0])  # what stands there is multiplied by beta: nan would stay
    pattern = torch.sparse_csr_tensor(crow, col, out, (yt.shape[0], xt.shape[0]), check_invariants=False)
    torch.sparse.sampled_addmm(pattern, yt, xt.t(), beta=0.0, out=pattern)
    return out


def gather_product(v: Tensor, crow: Tensor, col: Tensor, dense: Tensor) -> Tensor:
    """A @ dense with gather and index_add alone: any dtype and device, at most CHUNK numbers held."""
    wide = torch.promote_types(v.dtype, torch.float32)
    out = torch.zeros(crow.shape[0] - 1, dense.shape[1], dtype=wide, device=dense.device)
    rows = entry_rows(crow, len(col))
    step = max(1, CHUNK // max(1, dense.shape[1]))
    for start in range(0, len(col), step):
        part = slice(start, start + step)
        out.index_add_(0, rows[part], v[part, None].to(wide) * dense.index_select(0, col[part]).to(wide))
    return out.to(v.dtype)


def gather_sampled(crow: Tensor, col: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(y xᵀ) at the pattern for feature-major x (n, B), y (m, B), with gathers alone."""
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = entry_rows(crow, len(col))
    step = max(1, CHUNK // max(1, x.shape[1]))
    pieces = []
    for start in range(0, len(col), step):
        part = slice(start, start + step)
        picked = x.index_select(0, col[part]).to(wide) * y.index_select(0, rows[part]).to(wide)
        pieces.append(picked.sum(1))
    return torch.cat(pieces).to(x.dtype)
