"""Products of structures against a dense layer of the same size. One thread, batch 256.

python benchmarks/structure_products.py
"""

import torch
from torch import Tensor, nn

import onematrix as om
from measure import HEAD, compare, conditions, require_close, row, time_call
from onematrix.structures import STRUCTURES, Structure

BATCH = 256
SIZE = 4096
CASES = (  # structure, size options as shares of n, time ÷ dense allowed
    ("low_rank", "n/16", 0.15),
    ("block_tensor_train", "r=1", 0.10),
    ("block_tensor_train", "r=4", 0.36),
    ("monarch", "b=4", 0.52),
    ("kronecker", "r=1", 0.10),
    ("tensor_train", "r=4", 0.36),
)


def main() -> None:
    """Check, measure and print every structure."""
    torch.set_num_threads(1)
    print(conditions(), f"n = {SIZE}, batch {BATCH}; the peer is the dense layer", HEAD, sep="\n")
    for name, option, share in CASES:
        measure(name, option, share)


def draw(name: str, option: str, n: int) -> Structure:
    """A random member: rank n ÷ 16; rank r over √n × √n factors; a 4 × 4 grid at half the numbers."""
    g, cls = torch.Generator().manual_seed(0), STRUCTURES[name]
    if option == "n/16":
        return cls.random(n, n, rank=n // 16, generator=g)
    if option == "b=4":
        return cls.random(n, n, 0.5, g, blocks=4)
    if name == "kronecker":
        return cls.random(n, n, generator=g, left=(int(n**0.5), int(n**0.5)))
    return cls.random(n, n, rank=int(option[2:]), generator=g)


def measure(name: str, option: str, share: float = 1.0, n: int = SIZE) -> None:
    """Two rows: forward alone, and forward with all gradients."""
    a = draw(name, option, n)
    layer, dense = om.Linear(a), nn.Linear(n, n, bias=False)
    with torch.no_grad():
        dense.weight.copy_(a.to_dense())
    g = torch.Generator().manual_seed(1)
    x, back = (torch.randn(BATCH, n, generator=g) for _ in range(2))
    check(layer, dense, x, back)
    side = round((a.multiply_adds() / 2) ** 0.5)  # two square products of as many multiply-adds together
    u, h = torch.randn(side, side), torch.empty(BATCH, side)
    narrow = torch.randn(BATCH, side)
    floor = 2 * time_call(lambda: torch.mm(narrow, u, out=h))
    with torch.no_grad():
        ratio = compare(lambda: layer(x), lambda: dense(x))
    print(row(f"{name} {option} forward", ratio, 1 / share, floor))
    x.requires_grad_()
    ratio = compare(lambda: gradients(layer, x, back), lambda: gradients(dense, x, back))
    print(row(f"{name} {option} forward + backward", ratio, 1 / share, 3 * floor))


def gradients(layer: nn.Module, x: Tensor, back: Tensor) -> tuple[Tensor, ...]:
    """Forward, then the gradients of the input and of every core."""
    return torch.autograd.grad(layer(x), (x, *layer.parameters()), back)


def check(layer: om.Linear, dense: nn.Linear, x: Tensor, back: Tensor) -> None:
    """Output and gradient of the input against the dense matrix."""
    require_close("output", layer(x).detach(), dense(x).detach(), 1e-5)
    free = x.clone().requires_grad_()
    ours, theirs = gradients(layer, free, back)[0], gradients(dense, free, back)[0]
    require_close("gradient of input", ours, theirs, 1e-5)


if __name__ == "__main__":
    main()
