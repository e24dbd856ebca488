"""Making the activation-weighted error of a structure small: ‖(W − A) G^½‖ over all numbers of A at once."""

import contextlib
import math
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from onematrix.structures.base import SECONDS, Structure, relative_error
from onematrix.structures.multilinear import Cores, Form, Kernel
from onematrix.structures.multilinear_fit import Search, fit_form
from onematrix.structures.tree import map_tensors, unique_tensors

S = TypeVar("S", bound=Structure)


def root_of_gram(gram: Tensor) -> tuple[Tensor, Tensor]:
    """L with G = L Lᵀ and its pseudo-inverse, in float64; batches (..., n, n); unexcited directions at zero."""
    values, vectors = torch.linalg.eigh(gram.detach().double())
    values = values.clamp(min=0).sqrt()
    keep = values > values.amax(-1, keepdim=True) * 1e-8
    inverse = torch.where(keep, 1 / values.clamp(min=1e-300), torch.zeros_like(values))
    return vectors * values[..., None, :], inverse[..., :, None] * vectors.mT


def gram_blocks(gram: Tensor, count: int) -> tuple[Tensor, Tensor, bool]:
    """Roots and inverses (count, n ÷ count, n ÷ count) of the diagonal blocks; whether the rest is zero."""
    size = gram.shape[0] // count
    parts = gram.detach().double().reshape(count, size, count, size).permute(0, 2, 1, 3)
    blocks = parts.diagonal(dim1=0, dim2=1).permute(2, 0, 1)  # (count, size, size)
    exact = count == 1 or int(torch.count_nonzero(parts)) == int(torch.count_nonzero(blocks))
    return *root_of_gram(blocks), exact


def reduce_form(
    form: Form,
    cores: Cores,
    make: Callable[[Cores], S],
    dense: Tensor,
    gram: Tensor,
    seconds: float | None = SECONDS,
) -> S:
    """A structure, made of cores of the form (float64), whose weighted error is at most that of the given ones.

      Preconditioned descent on the cores while that gains, then `reduce_error` to the end: on a trained
    XX
    """
    begin = time.perf_counter()
    search = Search(seconds, starts=0)
    found = fit_form(Kernel(form), dense.detach(), form.sizes(cores), gram, search, [cores])
    better = min((make(cores), make(found)), key=lambda a: relative_error(a, dense, gram))
    left = None if seconds is None else seconds - (time.perf_counter() - begin)
    return reduce_error(better, dense, gram, left)


def reduce_error(
    start: S,
    dense: Tensor,
    gram: Tensor,
    seconds: float | None = SECONDS,
    *,
    steps: int = 100,
    rounds: int = 20,
) -> S:
    """A structure of the same sizes (float64) whose weighted error is at most that of the start.

    tr (W − A) G (W − A)ᵀ = tr W G Wᵀ − 2 ⟨A, W G⟩ + ⟨A, A G⟩, where A G is n fast products; limited-memory
    quasi-Newton steps (D. Liu, J. Nocedal, Mathematical Programming 45, 1989) on every tensor together,
    begun afresh until a round gains less than 1e-7 of the error, or the seconds are over (None: no limit).
    """
    w, g = dense.detach().double(), gram.detach().double()
    target = w @ g
    scale = float((target * w).sum())
    if scale <= 0:
        return start
    end = math.inf if seconds is None else time.perf_counter() + seconds
    best, error = start, relative_error(start, dense, gram)
    for _ in range(rounds):
        found = _descend(best, target, g, scale, steps, end)
        reached = relative_error(found, dense, gram)
        if not reached < error:
            return best
        gain, best, error = error - reached, found, reached
        if gain < 1e-7 * error or time.perf_counter() > end:
            break
    return best


class _Over(Exception):
    """The time of a descent is over; torch's optimiser knows no other way to end within a step."""


def _descend(start: S, target: Tensor, gram: Tensor, scale: float, steps: int, end: float) -> S:
    """The best point of one run of quasi-Newton steps."""
    free = [t.detach().double().clone().requires_grad_() for t in unique_tensors([start])]
    optimiser = torch.optim.LBFGS(
        free, max_iter=steps, history_size=20, line_search_fn="strong_wolfe",
        tolerance_grad=1e-14, tolerance_change=1e-16,
    )  # fmt: skip
    best = [t.detach().clone() for t in free]
    least = math.inf

    def loss() -> Tensor:
        nonlocal best, least
        if time.perf_counter() > end:
            raise _Over
        optimiser.zero_grad()
        a = _over(start, free)
        matrix = a.to_dense()
        value = (scale - 2 * (matrix * target).sum() + (matrix * a.matmul(gram).mT).sum()) / scale
        torch.autograd.backward(value)
        if float(value.detach()) < least:
            best, least = [t.detach().clone() for t in free], float(value.detach())
        return value

    with torch.enable_grad(), contextlib.suppress(_Over):
        optimiser.step(loss)  # type: ignore[no-untyped-call]
    return _over(start, best)


def _over(start: S, tensors: list[Tensor]) -> S:
    new = dict(zip((id(t) for t in unique_tensors([start])), tensors, strict=True))
    return map_tensors(start, lambda t: new[id(t)])
