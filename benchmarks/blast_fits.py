"""How near BLAST fits come, and in what time: Gaussian noise, planted members, block low-rank. One thread.

python benchmarks/blast_fits.py [SEEDS]
"""

import sys
import time
from itertools import product
from typing import Any

import torch
from torch import Tensor

from measure import conditions
from onematrix.structures.blast import Blast
from onematrix.structures.low_rank import LowRank

GAUSSIAN = ((5.0, 0.373), (20.0, 0.366))  # seconds, relative error; 256 × 256, 16 × 16 blocks, rank 48
PLANTED = (  # rows, blocks down, columns, blocks across, rank
    (64, 4, 64, 4, 8),
    (64, 8, 64, 8, 8),
    (64, 8, 64, 8, 12),
    (36, 6, 30, 3, 6),
    (128, 8, 96, 4, 12),
    (96, 3, 128, 8, 20),
    (128, 16, 64, 2, 10),
    (256, 4, 128, 16, 24),
    (256, 4, 256, 4, 32),
    (256, 16, 256, 16, 8),
    (256, 16, 256, 16, 32),
)
PLANTED_ERROR, PLANTED_SECONDS, PLANTED_SHARE = 1e-5, 30.0, 0.95


def main(seeds: int = 2) -> None:
    """Print one line per target, with the error of the singular value decomposition of equal size."""
    torch.set_num_threads(1)
    print(conditions().split("; ratio")[0])
    for seconds, target in GAUSSIAN:
        gaussian(256, (16, 16), 48, seconds, target)
    planted(PLANTED, seeds)
    block_low_rank(64, 4, 2)


def gaussian(n: int, blocks: tuple[int, int], rank: int, seconds: float, target: float) -> None:
    """Noise, which no structure is made for: what the best of so many numbers can do."""
    dense = normal(0, n, n)
    error, took = timed(dense, rank=rank, blocks=blocks, seconds=seconds)
    numbers = rank * (2 * n + blocks[0] * blocks[1])
    low_rank = LowRank.fit(dense, rank=numbers // (2 * n)).error
    print(
        f"gaussian {n}, blocks {blocks}, rank {rank}, {seconds:g} s: error {error:.4f} "
        f"(low rank {low_rank:.4f}) in {took:.1f} s, target {target}: {met(error <= target)}"
    )


def planted(cases: tuple[tuple[int, int, int, int, int], ...], seeds: int) -> None:
    """Random members: the share that one fit recovers."""
    good = 0
    for (m, b1, n, b2, rank), seed in product(cases, range(seeds)):
        dense = (
            Blast.random(m, n, rank=rank, blocks=(b1, b2), generator=torch.Generator().manual_seed(seed))
            .to_dense(torch.float64)
            .contiguous()
        )
        error, took = timed(dense, rank=rank, blocks=(b1, b2))
        good += error <= PLANTED_ERROR and took <= PLANTED_SECONDS
        print(f"planted {m}×{n}, blocks ({b1}, {b2}), rank {rank}, seed {seed}: {error:.1e} in {took:.1f} s")
    share = good / (len(cases) * seeds)
    print(f"planted: {share:.0%} recovered to {PLANTED_ERROR:g}: {met(share >= PLANTED_SHARE)}")


def block_low_rank(n: int, blocks: int, rank: int) -> None:
    """A member of the block low-rank matrices on the same grid."""
    u, v = normal(1, blocks, blocks, n // blocks, rank), normal(2, blocks, blocks, rank, n // blocks)
    dense = (u @ v).transpose(1, 2).reshape(n, n)
    error, took = timed(dense, rank=blocks * rank, blocks=(blocks, blocks))
    print(
        f"block low-rank {n}, blocks {blocks}, rank {rank}: {error:.1e} in {took:.1f} s: {met(error < 1e-12)}"
    )


def timed(dense: Tensor, **size: Any) -> tuple[float, float]:
    """Relative error and seconds of one fit."""
    start = time.perf_counter()
    return Blast.fit(dense, **size).error, time.perf_counter() - start


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def met(yes: bool) -> str:
    return "met" if yes else "NOT met"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
