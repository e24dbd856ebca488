"""BLAST against a dense layer, and structures written as einsums against the same by hand. One thread.

python benchmarks/blast_layer.py
"""

from collections.abc import Callable

import torch
from torch import Tensor

import onematrix as om
from measure import HEAD, compare, conditions, require_close, row, time_call
from onematrix.structures.base import Structure
from onematrix.structures.blast import Blast
from onematrix.structures.definition import define
from onematrix.structures.low_rank import LowRank

BATCH = 256
SIZES = ((4096, 4, 512, 0.27, 0.27), (1024, 16, 128, 0.55, 0.65))  # n, blocks, rank, seconds ÷ dense
DERIVED = 1.3  # at most so many times the seconds of the product by hand


def main() -> None:
    """Check, measure and print every size."""
    torch.set_num_threads(1)
    print(conditions(), "\n", HEAD, sep="")
    for size in SIZES:
        measure(*size)
    derived(1024, 16, 128)


def measure(n: int, blocks: int, rank: int, forward: float, backward: float) -> None:
    """Three rows: forward, backward alone, and both, each against a dense layer."""
    draw = torch.Generator().manual_seed(0)
    a = Blast.random(n, n, rank=rank, blocks=(blocks, blocks), generator=draw)
    layer, dense = om.Linear(a), torch.nn.Linear(n, n, bias=False)
    x, g = (torch.randn(BATCH, n, generator=draw) for _ in range(2))
    check(layer, x, g)
    floor = products(a, x)
    name = f"n={n} b={blocks} r={rank}"
    with torch.no_grad():
        ratio = compare(lambda: layer(x), lambda: dense(x))
    print(row(f"{name} forward", ratio, 1 / forward, floor))
    x.requires_grad_()
    outs = layer(x), dense(x)
    frees = (x, *layer.parameters()), (x, dense.weight)
    ratio = compare(*(backward_of(y, free, g) for y, free in zip(outs, frees, strict=True)))
    print(row(f"{name} backward", ratio, 1 / backward, 2 * floor))
    ratio = compare(lambda: gradients(layer, x, g), lambda: gradients(dense, x, g))
    print(row(f"{name} forward + backward", ratio, 1 / backward, 3 * floor))


def derived(n: int, blocks: int, rank: int) -> None:
    """Two rows: the product `define` derives for BLAST and for low rank, against the structure's own."""
    draw = torch.Generator().manual_seed(0)
    a = Blast.random(n, n, rank=rank, blocks=(blocks, blocks), generator=draw)
    written = define("bench_blast", "u[i p r], s[r i j], v[j r q] -> (i p) (j q)", "r")
    against(f"derived BLAST n={n} b={blocks} r={rank}", written(a.left, a.coupling, a.right), a, draw)
    low = LowRank.random(n, n, rank=rank, generator=draw)
    pair = define("bench_low_rank", "u[i r], v[r j] -> (i) (j)", "r")
    against(f"derived low rank n={n} r={rank}", pair(low.left, low.right), low, draw)


def against(name: str, ours: Structure, by_hand: Structure, draw: torch.Generator) -> None:
    """One row of forward times."""
    x = torch.randn(BATCH, by_hand.fixed_shape[1], generator=draw)
    require_close(name, ours.matmul(x), by_hand.matmul(x), 1e-5)
    ratio = compare(lambda: ours.matmul(x), lambda: by_hand.matmul(x))
    print(row(name, ratio, 1 / DERIVED, ratio.peer_seconds))


def gradients(layer: torch.nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """Forward, then the gradients of the input and of every parameter."""
    return torch.autograd.grad(layer(x), (x, *layer.parameters()), g)


def backward_of(y: Tensor, free: tuple[Tensor, ...], g: Tensor) -> Callable[[], object]:
    """The backward pass alone."""
    return lambda: torch.autograd.grad(y, free, g, retain_graph=True)


def products(a: Blast, x: Tensor) -> float:
    """Seconds of the three batched products on operands laid out for them."""
    (b1, b2), rank = a.blocks, a.rank
    first = x.mT.contiguous().view(b2, -1, len(x))
    inner, coupled = torch.randn(rank, b2, len(x)), torch.randn(b1, rank, len(x))
    outs = (
        torch.empty(b2, rank, len(x)),
        torch.empty(rank, b1, len(x)),
        torch.empty(*a.left.shape[:2], len(x)),
    )
    return time_call(
        lambda: (
            torch.bmm(a.right, first, out=outs[0]),
            torch.bmm(a.coupling, inner, out=outs[1]),
            torch.bmm(a.left, coupled, out=outs[2]),
        )
    )


def check(layer: om.Linear, x: Tensor, g: Tensor) -> None:
    """Output and gradients against the blocks written out in float64."""
    free = [t.detach().double().requires_grad_() for t in (x, *layer.parameters())]
    matrix = torch.einsum("ipr,rij,jrq->ipjq", *free[1:]).reshape(g.shape[1], x.shape[1])
    y = free[0] @ matrix.mT
    expected = torch.autograd.grad(y, free, g.double())
    require_close("output", layer(x).detach(), y.detach(), 1e-5)
    ours = gradients(layer, x.clone().requires_grad_(), g)
    for name, actual, wanted in zip(("input", "left", "coupling", "right"), ours, expected, strict=True):
        require_close(f"gradient of {name}", actual, wanted, 1e-5)


if __name__ == "__main__":
    main()
