"""Exact projections of a large matrix: seconds, and memory beside the matrix. One thread, each in a fresh process.

python benchmarks/projections.py [SIZE]
"""

import subprocess
import sys
import time

import torch

from measure import conditions
from onematrix.structures import STRUCTURES

STRUCTURED = ("low_rank", "monarch", "block_tensor_train", "kronecker", "block_kronecker")
SIZE, BUDGET = 4096, 0.25
SECONDS, MEMORY = 60.0, 4.0  # of the processor, and × the matrix, which itself does not count; at most


def main(size: int = SIZE) -> None:
    """One line per structure."""
    torch.set_num_threads(1)
    print(conditions().split(", float32")[0], f"n = {size}, Gaussian, E = {BUDGET}", sep="\n")
    for name in STRUCTURED:
        subprocess.run([sys.executable, __file__, str(size), name], check=True)


def measure(size: int, name: str) -> None:
    """Seconds and peak memory of one fit, after a small one has loaded what it needs."""
    torch.set_num_threads(1)
    dense = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    STRUCTURES[name].fit(dense[: size // 8, : size // 8].contiguous(), BUDGET)
    before = memory("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark starts again from here
    start, worked = time.perf_counter(), time.process_time()
    found = STRUCTURES[name].fit(dense, BUDGET)
    took, worked = time.perf_counter() - start, time.process_time() - worked
    peak = (memory("VmHWM") - before) / (dense.numel() * dense.element_size())
    met = "met" if worked <= SECONDS and peak <= MEMORY else "NOT met"
    print(
        f"{name:<20}{took:6.1f} s ({worked:.1f} s of the processor), {peak:.2f} × the matrix, "
        f"error {found.error:.4f}: {met}"
    )


def memory(what: str) -> int:
    """Bytes Linux counts for this process."""
    with open("/proc/self/status") as lines:
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        measure(int(sys.argv[1]), sys.argv[2])
    else:
        main(*map(int, sys.argv[1:]))
