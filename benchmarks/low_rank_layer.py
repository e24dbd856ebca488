"""om.Linear over a low-rank structure against two nn.Linear of the same sizes. One thread, batch 64.

python benchmarks/low_rank_layer.py
"""

import torch
from torch import Tensor, nn

import onematrix as om
from measure import HEAD, compare, conditions, require_close, row, time_call
from onematrix.structures.low_rank import LowRank

BATCH = 64
SIZES = ((1024, 64), (1024, 256), (4096, 256))
SLOWEST = 1.05  # at most so many times the seconds of the peer


def main() -> None:
    """Check, measure and print every size and rank."""
    torch.set_num_threads(1)
    print(conditions(), "\n", HEAD, sep="")
    for n, rank in SIZES:
        measure(n, rank)


def measure(n: int, rank: int) -> None:
    """Two rows: forward alone, and forward with all gradients."""
    draw = torch.Generator().manual_seed(0)
    layer = om.Linear(LowRank.random(n, n, rank=rank, generator=draw))
    pair = nn.Sequential(nn.Linear(n, rank, bias=False), nn.Linear(rank, n, bias=False))
    with torch.no_grad():
        pair[0].weight.copy_(layer.right)
        pair[1].weight.copy_(layer.left)
    x, g = (torch.randn(BATCH, n, generator=draw) for _ in range(2))
    check(layer, x, g)
    u, v = layer.left.detach(), layer.right.detach()
    down, h = torch.empty(BATCH, rank), torch.empty(BATCH, n)
    floor = time_call(lambda: torch.mm(torch.mm(x, v.t(), out=down), u.t(), out=h))
    with torch.no_grad():
        ratio = compare(lambda: layer(x), lambda: pair(x))
    print(row(f"n={n} r={rank} forward", ratio, 1 / SLOWEST, floor))
    x.requires_grad_()
    ratio = compare(lambda: gradients(layer, x, g), lambda: gradients(pair, x, g))
    print(row(f"n={n} r={rank} forward + backward", ratio, 1 / SLOWEST, 3 * floor))


def gradients(layer: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """Forward, then the gradients of the input and of both factors."""
    return torch.autograd.grad(layer(x), (x, *layer.parameters()), g)


def check(layer: om.Linear, x: Tensor, g: Tensor) -> None:
    """Output and gradients against the product written out in float64."""
    free, u, v = (t.detach().double().requires_grad_() for t in (x, layer.left, layer.right))
    y = free @ (u @ v).mT
    expected = torch.autograd.grad(y, (free, u, v), g.double())
    require_close("output", layer(x).detach(), y.detach(), 1e-5)
    ours = gradients(layer, x.clone().requires_grad_(), g)
    for name, actual, wanted in zip(("input", "left", "right"), ours, expected, strict=True):
        require_close(f"gradient of {name}", actual, wanted, 1e-5)


if __name__ == "__main__":
    main()
