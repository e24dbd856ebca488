"""Trains of block-diagonal cores: their product, its adjoint, and the fit by successive singular values."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from onematrix.structures.block_projection import truncate
from onematrix.structures.deviations import core_deviations
from onematrix.structures.grouped_product import multiply_groups
from onematrix.structures.train_sizes import TrainSizes, balance, count_blocks

# Core t is K_t blocks W[(i1 … i(t−1)), (jc … j(t+1))] of size (m_t r_t) × (r(t−1) n_t), for K_t as
# `count_blocks` says. Its input is (i1 … i(t−1)), (jc … j(t+1)), (r(t−1), j_t), and its output stands at
# (i1 … i(t−1)), (jc … j(t+1)), (i_t, r_t): between two cores only i_t moves to the left.


def multiply_train(
    weights: Sequence[Tensor], rows: tuple[int, ...], columns: tuple[int, ...], x: Tensor
) -> Tensor:
    """x Aᵀ for x: (..., (jc … j1)) → (..., (i1 … ic)); weights: per core (K_t m_t r_t, r(t−1) n_t).

    Batch last between the cores, so that what moves is runs of a whole batch; with two cores nothing does.
    """
    last = len(rows) - 1
    k = x.shape[:-1].numel()
    z = x.reshape(k, math.prod(columns[1:]), columns[0]).permute(1, 2, 0)  # (jc … j2), j1, k
    for t in range(last):
        w = _blocks(weights[t], rows, columns, t)
        done, rest, j, i = math.prod(rows[:t]), math.prod(columns[t + 2 :]), columns[t + 1], rows[t]
        r = w.shape[1] // i
        if done == rest == 1:
            y = multiply_groups(w, z)  # (i r, j, k)
        else:
            y = torch.bmm(w, z).reshape(done, rest, j, i, r, k).permute(0, 3, 1, 4, 2, 5)
        z = y.reshape(done * i * rest, r * j, k)
    y = multiply_groups(z.mT, _blocks(weights[last], rows, columns, last).mT)  # (k, i1 … , ic)
    return y.reshape(*x.shape[:-1], math.prod(rows))


def multiply_train_adjoint(
    weights: Sequence[Tensor], rows: tuple[int, ...], columns: tuple[int, ...], y: Tensor
) -> Tensor:
    """y A for y: (..., (i1 … ic)) → (..., (jc … j1)): the cores of `multiply_train` in reverse."""
    last = len(rows) - 1
    k = y.shape[:-1].numel()
    z = y.reshape(k, math.prod(rows[:last]), rows[last]).permute(1, 2, 0)  # (i1 … ), ic, k
    for t in range(last, 0, -1):
        w = _blocks(weights[t], rows, columns, t)
        done, rest, j, i = math.prod(rows[: t - 1]), math.prod(columns[t + 1 :]), columns[t], rows[t - 1]
        r = w.shape[2] // j
        u = torch.bmm(w.mT, z)  # (done i rest, r j, k)
        if done == rest == 1:
            z = u.reshape(i * r, j, k).transpose(0, 1)
        else:
            moved = u.reshape(done, i, rest, r, j, k).permute(0, 2, 4, 1, 3, 5)
            z = moved.reshape(done * rest * j, i * r, k)
    x = multiply_groups(z.mT, _blocks(weights[0], rows, columns, 0))  # (k, jc … j2, j1)
    return x.reshape(*y.shape[:-1], math.prod(columns))


def dense_train(weights: Sequence[Tensor], rows: tuple[int, ...], columns: tuple[int, ...]) -> Tensor:
    """A[(i1 … ic), (jc … j1)] = Σ_r Π_t W_t[i1 … i(t−1), jc … j(t+1)][(i_t, r_t), (r(t−1), j_t)]."""
    whole = weights[0].new_ones(1, math.prod(columns), 1, 1)  # (i1 … it, jc … j(t+1), r_t, j_t … j1)
    for t, (m, n) in enumerate(zip(rows, columns, strict=True)):
        done, r, seen = whole.shape[0], whole.shape[2], whole.shape[3]
        rest = math.prod(columns[t + 1 :])
        w = weights[t].reshape(done, rest, m, -1, r, n)
        terms = torch.einsum("phjrJ,phisrj->pihsjJ", whole.reshape(done, rest, n, r, seen), w)
        whole = terms.reshape(done * m, rest, w.shape[3], n * seen)
    return whole.reshape(math.prod(rows), math.prod(columns))


def fit_train(dense: Tensor, sizes: TrainSizes) -> tuple[list[Tensor], float]:
    """Cores from the first to the last by truncated singular values of every block, and Σ σ² left out.

    What a core leaves out is orthogonal to all that later cores keep, so the squares add up to the error
    exactly; with two cores this is the nearest member, with more at most √(c − 1) times as far.
    """
    rows, columns = sizes.rows, sizes.columns
    cores, left_out = [], 0.0
    rest = dense.reshape(1, math.prod(rows), math.prod(columns[1:]), columns[0])
    for t in range(len(rows) - 1):
        done, tall, wide, q = rest.shape
        i, r, j = rows[t], sizes.ranks[t + 1], columns[t + 1]
        blocks = rest.reshape(done, i, tall // i, wide, q).transpose(2, 3)  # (done, i, wide, tall ÷ i, q)
        u, v, lost = truncate(blocks.reshape(-1, tall // i, q), r)
        norms = v.norm(dim=2, keepdim=True).clamp(min=1e-300)  # √σ: what is kept aside is orthonormal
        kept = (v / norms).reshape(done, i, wide, r, q).transpose(1, 2)
        cores.append(kept.reshape(-1, q))
        left_out += float(lost.sum())
        u = (u * norms.mT).reshape(done, i, wide // j, j, tall // i, r).permute(0, 1, 4, 2, 5, 3)
        rest = u.reshape(done * i, tall // i, wide // j, r * j)
    cores.append(rest.reshape(-1, rest.shape[3]))
    return balance(cores), left_out


def random_train(
    sizes: TrainSizes, generator: torch.Generator | None, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Cores of the deviations of `core_deviations`: core t sums over r(t−1) n_t inputs."""
    counts = [rank * n for rank, n in zip(sizes.ranks[:-1], sizes.columns, strict=True)]
    cores = []
    for t, (m, inputs, size) in enumerate(zip(sizes.rows, counts, core_deviations(counts), strict=True)):
        tall = count_blocks(sizes.rows, sizes.columns, t) * m * sizes.ranks[t + 1]
        cores.append(torch.randn(tall, inputs, generator=generator, dtype=dtype) * size)
    return cores


def train_numbers(sizes: TrainSizes) -> int:
    """Stored numbers, and multiply-adds: Σ_t K_t m_t r_t r(t−1) n_t."""
    return sum(
        count_blocks(sizes.rows, sizes.columns, t) * m * n * sizes.ranks[t] * sizes.ranks[t + 1]
        for t, (m, n) in enumerate(zip(sizes.rows, sizes.columns, strict=True))
    )


def _blocks(weight: Tensor, rows: tuple[int, ...], columns: tuple[int, ...], t: int) -> Tensor:
    """A core as its blocks: (K_t, m_t r_t, r(t−1) n_t)."""
    count = count_blocks(rows, columns, t)
    return weight.reshape(count, weight.shape[0] // count, weight.shape[1])
