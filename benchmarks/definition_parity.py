"""Structures written as one einsum against those written by hand: error of the fit, time of the product.

One thread. The peer is the structure by hand with the same numbers.

python benchmarks/definition_parity.py [fits | products]
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import onematrix as om
from measure import compare, conditions, require_close
from onematrix.structures import STRUCTURES, Structure
from onematrix.structures.definition import define, forget

MOST_ERROR = 1.01  # error ÷ that of the fit by hand
MOST_TIME = 1.3  # seconds ÷ those of the product by hand
SIZE, BATCH = 1024, 256
FIT_SIZE, FIT_SECONDS = 256, 20.0

Sizes = dict[str, int]


@dataclass(frozen=True)
class Case:
    """A structure by hand and its einsum; its cores in the order of the pattern, and how it is drawn and fitted."""

    structure: str
    pattern: str
    cores: Callable[[Any], tuple[Tensor, ...]]  # of a member by hand, with the axes of the pattern
    options: Callable[[int], dict[str, Any]]  # size n → options of the structure by hand


def train_cores(a: Any) -> tuple[Tensor, ...]:
    """The two cores of a block tensor train with an axis each: (j, i, r, q) and (i, p, r, j)."""
    (i, p), (q, j) = a._factors()
    first, second = (core.weight for core in a.cores)
    return first.view(j, i, -1, q), second.view(i, p, -1, j)


CASES = (
    Case(
        "low_rank",
        "left[i r], right[r j] -> (i) (j)",
        lambda a: (a.left, a.right),
        lambda n: {"rank": n // 16},
    ),
    Case(
        "kronecker",
        "left[a c], right[b d] -> (a b) (c d)",
        lambda a: (a.left, a.right),
        lambda n: {"left": (round(n**0.5), round(n**0.5))},
    ),
    Case(
        "monarch",
        "left[i p t j], right[j i t q] -> (i p) (j q)",
        lambda a: (a.left, a.right),
        lambda n: {"blocks": 4, "rank": n // 16},
    ),
    Case(
        "block_tensor_train",
        "first[j i r q], second[i p r j] -> (i p) (j q)",
        train_cores,
        lambda n: {"rank": 4, "rows": (round(n**0.5),) * 2, "columns": (round(n**0.5),) * 2},
    ),
    Case(
        "blast",
        "u[i p r], s[r i j], v[j r q] -> (i p) (j q)",
        lambda a: (a.left, a.coupling, a.right),
        lambda n: {"blocks": (16, 16) if n > 64 else (4, 4), "rank": 3 * n // 16},
    ),
)


def main(what: str = "") -> None:
    """Both tables, or the one named."""
    torch.set_num_threads(1)
    print(conditions())
    for case in CASES if what != "fits" else ():
        products(case)
    for case in CASES if what != "products" else ():
        fits(case)


def pair(case: Case, n: int) -> tuple[Structure, Structure]:
    """A random member by hand, and the same matrix by definition."""
    options = case.options(n)
    a = STRUCTURES[case.structure].random(n, n, generator=torch.Generator().manual_seed(0), **options)
    derived = define(f"{case.structure}_by_einsum", case.pattern)
    return a, derived(*(core.contiguous() for core in case.cores(a)))


def products(case: Case, n: int = SIZE, batch: int = BATCH) -> list[float]:
    """Seconds of the derived product ÷ by hand, forward and with gradients; a row is printed for each."""
    hand, derived = (om.Linear(a) for a in pair(case, n))
    forget(f"{case.structure}_by_einsum")
    draw = torch.Generator().manual_seed(1)
    x, back = (torch.randn(batch, n, generator=draw) for _ in range(2))
    require_close(case.structure, derived(x).detach(), hand(x).detach(), 1e-5)
    free = x.clone().requires_grad_()
    found = []
    for what, run in (
        ("forward", lambda layer: layer(x)),
        ("backward", lambda layer: _gradients(layer, free, back)),
    ):
        with torch.set_grad_enabled(what == "backward"):
            ratio = compare(lambda run=run: run(derived), lambda run=run: run(hand))
        times = 1 / ratio.median
        found.append(times)
        print(
            f"{case.structure} {n}, batch {batch}, {what}: {times:.2f} × by hand "
            f"[{1 / ratio.high:.2f}, {1 / ratio.low:.2f}], at most {MOST_TIME}: {met(times <= MOST_TIME)}"
        )
    return found


def _gradients(layer: om.Linear, x: Tensor, back: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(layer(x), (x, *layer.parameters()), back)


def fits(case: Case, n: int = FIT_SIZE, seconds: float = FIT_SECONDS) -> float:
    """Error of the derived fit to noise ÷ that of the fit by hand; both have the same time."""
    dense = torch.randn(n, n, generator=torch.Generator().manual_seed(2))
    limit = {"seconds": seconds}
    a, b = pair(case, n)
    by_hand = type(a).fit(dense, **case.options(n), **(limit if case.structure == "blast" else {})).error
    derived = type(b).fit(dense, **b.exact_size(), **limit).error
    forget(b.name)
    ratio = derived / by_hand
    print(
        f"{case.structure} fit {n}: {derived:.5f} by einsum, {by_hand:.5f} by hand, "
        f"ratio {ratio:.4f}, at most {MOST_ERROR}: {met(ratio <= MOST_ERROR)}"
    )
    return ratio


def met(yes: bool) -> str:
    """The verdict of a row."""
    return "met" if yes else "NOT met"


if __name__ == "__main__":
    main(*sys.argv[1:2])
