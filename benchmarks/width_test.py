"""The one-step width test: does one Adam step at grouped rates change outputs alike at every width?

A dense rate of 0.256 ÷ n, a square layer of each structure from `random`, one input: the change of the output
relative to the output, after one step. It grows as n^exponent; |exponent| ≤ 0.15 is called flat.

python benchmarks/width_test.py [WIDTH …]
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

import onematrix as om
from onematrix.structures import STRUCTURES
from onematrix.structures.tree import stored_numbers
from onematrix.training.parameter_groups import parameter_groups

WIDTHS = (256, 1024, 4096)
RATE = 0.256  # of a dense layer, times its width: 1e-3 at width 256
FLAT = 0.15
SEEDS = 4

Draw = Callable[[int], dict[str, Any]]
CASES: dict[str, tuple[str, Draw]] = {  # row → structure, its size options at width n
    "dense": ("dense", lambda n: {}),
    "low_rank r = n/16": ("low_rank", lambda n: {"rank": n // 16}),
    "low_rank r = 16": ("low_rank", lambda n: {"rank": 16}),
    "monarch b = 4, E = 1/2": ("monarch", lambda n: {"budget": 0.5, "blocks": 4}),
    "monarch √n blocks, t = 1": ("monarch", lambda n: {"rank": 1}),
    "block_tensor_train r = 1": ("block_tensor_train", lambda n: {"rank": 1}),
    "block_tensor_train r = 4": ("block_tensor_train", lambda n: {"rank": 4}),
    "block_tensor_train 3 cores": ("block_tensor_train", lambda n: {"rank": 2, "cores": 3}),
    "block_kronecker E = 1/4": ("block_kronecker", lambda n: {"budget": 0.25}),
    "kronecker": ("kronecker", lambda n: {}),
    "tensor_train r = 4": ("tensor_train", lambda n: {"rank": 4}),
    "blast b = 4, r = n/8": ("blast", lambda n: {"blocks": (4, 4), "rank": n // 8}),
    "blast b = 16, E = 1/4": ("blast", lambda n: {"blocks": (16, 16), "budget": 0.25}),
    "butterfly": ("butterfly", lambda n: {"block": 1}),
    "butterfly of blocks": ("butterfly", lambda n: {"block": 16}),
    "canonical R = 4": ("canonical", lambda n: {"rank": 4}),
    "csr E = 1/10": ("csr", lambda n: {"budget": 0.1}),
    "csc E = 1/10": ("csc", lambda n: {"budget": 0.1}),
    "masked E = 1/10": ("masked", lambda n: {"budget": 0.1}),
    "block_sparse E = 1/4": ("block_sparse", lambda n: {"budget": 0.25, "tile": (16, 16)}),
    "circulant": ("circulant", lambda n: {}),
    "toeplitz": ("toeplitz", lambda n: {}),
    "diagonal": ("diagonal", lambda n: {}),
}
# A number that acts at k places has a gradient of k terms of either sign. The sign of their sum agrees with each
# of them by 1/√k only, and so the step moves the output by 1/√k of what the rule, made for k = 1, expects.
EXCEPTIONS = {
    "kronecker": "every number acts at √n places",
    "tensor_train": "every number acts at √n places",
    "circulant": "every number acts at n places",
    "toeplitz": "every number acts at up to n places",
    "diagonal": "a gain of one input per output keeps the rate of a vector",
}
NO_NUMBERS = {"permutation": "stores no numbers to train"}


def main(widths: Sequence[int] = WIDTHS) -> None:
    """One row per case: the change at every width, the exponent, and why where it is not flat."""
    torch.set_num_threads(1)
    print(f"relative change of the output after one Adam step; dense rate {RATE:g} ÷ width; {SEEDS} seeds")
    print(f"{'structure':<30}{''.join(f'{n:>9}' for n in widths)}  exponent")
    for case in CASES:
        changes = [change(case, n) for n in widths]
        grown = exponent(widths, changes)
        print(f"{case:<30}{''.join(f'{c:9.3f}' for c in changes)}  {grown:+8.2f}  {verdict(case, grown)}")


def change(case: str, n: int, seeds: int = SEEDS) -> float:
    """Relative change of the output of one random input after one step, the mean over seeds."""
    return sum(_change(case, n, seed) for seed in range(seeds)) / seeds


def _change(case: str, n: int, seed: int) -> float:
    name, options = CASES[case]
    draw = torch.Generator().manual_seed(seed)
    layer = om.Linear(STRUCTURES[name].random(n, n, generator=draw, **options(n)))
    assert stored_numbers(layer.structure) > 0, f"{name} has nothing to train"
    x, direction = (torch.randn(1, n, generator=draw) for _ in range(2))
    optimizer = torch.optim.Adam(parameter_groups(layer, RATE / n), lr=RATE / n)
    before = layer(x)
    (before * direction).sum().backward()
    optimizer.step()
    return float(((layer(x) - before).norm() / before.norm()).detach())


def exponent(widths: Sequence[int], changes: Sequence[float]) -> float:
    """e of change ~ width^e between the first and the last width."""
    return math.log(changes[-1] / changes[0]) / math.log(widths[-1] / widths[0])


def verdict(case: str, grown: float) -> str:
    """Flat, or the named reason; "NOT flat" when there is none."""
    if abs(grown) <= FLAT:
        return "flat"
    return f"exception: {EXCEPTIONS[CASES[case][0]]}" if CASES[case][0] in EXCEPTIONS else "NOT flat"


if __name__ == "__main__":
    main(tuple(map(int, sys.argv[1:])) or WIDTHS)
