"""om.Linear over compressed rows against nn.Linear: forward, and both gradients. One thread, batch 64.

python benchmarks/sparse_layer.py
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import onematrix as om
from measure import HEAD, compare, conditions, require_close, row, time_call
from onematrix.structures.compressed import CSR
from onematrix.structures.sparse_kernels import transposed_pattern

BATCH = 64
SIZES = (1024, 4096)
TARGETS = {0.01: (10.0, 12.0), 0.1: (2.3, 2.5)}  # E: (forward, forward + backward)


def main() -> None:
    """Check, measure and print every size and density."""
    torch.set_num_threads(1)
    print(conditions(), "\n", HEAD, sep="")
    for n in SIZES:
        for E in TARGETS:
            measure(n, E)


def measure(n: int, E: float) -> None:
    """Two rows: forward alone, and forward with the gradients of the input and of the stored values."""
    draw = torch.Generator().manual_seed(0)
    sparse, dense = om.Linear(CSR.random(n, n, E, draw)), nn.Linear(n, n, bias=False)
    x, g = (torch.randn(BATCH, n, generator=draw) for _ in range(2))
    check(sparse, x, g)
    products = floors(sparse.structure, x.mT.contiguous(), g.mT.contiguous())
    forward, both = TARGETS[E]
    with torch.no_grad():
        ratio = compare(lambda: sparse(x), lambda: dense(x))
    print(row(f"n={n} E={E:.0%} forward", ratio, forward, products[0]))
    x.requires_grad_()
    ratio = compare(lambda: gradients(sparse, x, g), lambda: gradients(dense, x, g))
    print(row(f"n={n} E={E:.0%} forward + backward", ratio, both, sum(products)))


def gradients(layer: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """Forward, then the gradients of the input and of the weight."""
    return torch.autograd.grad(layer(x), (x, *layer.parameters()), g)


def check(layer: om.Linear, x: Tensor, g: Tensor) -> None:
    """Output and both gradients against the dense definition in float64."""
    a = layer.structure
    free, weight = x.double().requires_grad_(), a.to_dense(torch.float64).detach().requires_grad_()
    y = free @ weight.mT
    dx, dw = torch.autograd.grad(y, (free, weight), g.double())
    rows = torch.repeat_interleave(torch.arange(a.shape[0]), a.crow_indices.diff().long())
    ours = gradients(layer, x.clone().requires_grad_(), g)
    require_close("output", layer(x).detach(), y.detach(), 1e-5)
    require_close("gradient of the input", ours[0], dx, 1e-5)
    require_close("gradient of the values", ours[1], dw[rows, a.col_indices.long()], 1e-5)


def floors(a: CSR, xt: Tensor, gt: Tensor) -> list[float]:
    """Seconds of the three sparse products alone, on operands already in the layout they want."""
    n, zeros = a.columns, torch.zeros_like(a.values)
    crow, col, order = transposed_pattern(a.crow_indices, a.col_indices, n)
    values = a.values.detach()

    def matrix(crow: Tensor, col: Tensor, v: Tensor) -> Tensor:
        return torch.sparse_csr_tensor(crow, col, v, (n, n), check_invariants=False)

    forward, turned = matrix(a.crow_indices, a.col_indices, values), matrix(crow, col, values[order.long()])
    pattern, out = matrix(a.crow_indices, a.col_indices, zeros), torch.empty_like(xt)
    products: list[Callable[[], Tensor]] = [
        lambda: torch.addmm(out, forward, xt, beta=0, out=out),
        lambda: torch.addmm(out, turned, gt, beta=0, out=out),
        lambda: torch.sparse.sampled_addmm(pattern, gt, xt.t(), beta=0.0, out=pattern),
    ]
    return [time_call(product) for product in products]


if __name__ == "__main__":
    main()
