"""om.Iterated, run by the plain interpreter, against the same block products written by hand. One thread.

python benchmarks/interpreter.py
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import onematrix as om
from measure import HEAD, compare, conditions, require_close, row, time_call
from onematrix.networks import elman, inn, mlp

SLOWEST = 1.5  # at most so many times the seconds of the peer
Case = tuple[str, nn.Module, tuple[Tensor, ...], Callable[[], Tensor]]


def main(scale: int = 1) -> None:
    """Check, measure and print every network; scale divides the widths, for tests."""
    torch.set_num_threads(1)
    print(conditions(), "\n", HEAD, sep="")
    for case in (iterated(scale), perceptron(scale), recurrent(scale)):
        measure(*case)


def measure(name: str, net: nn.Module, inputs: tuple[Tensor, ...], by_hand: Callable[[], Tensor]) -> None:
    """Two rows: forward alone, and forward with all gradients; outputs and gradients are compared first."""
    parameters = list(net.parameters())
    require_close("output", run(net, inputs).detach(), by_hand().detach(), 1e-5)
    for ours, theirs in zip(
        gradients(lambda: run(net, inputs), parameters), gradients(by_hand, parameters), strict=True
    ):
        require_close("gradient", ours, theirs, 1e-4)
    with torch.no_grad():
        ratio = compare(lambda: run(net, inputs), by_hand)
        floor = time_call(by_hand)
    print(row(f"{name} forward", ratio, 1 / SLOWEST, floor))
    ratio = compare(
        lambda: gradients(lambda: run(net, inputs), parameters), lambda: gradients(by_hand, parameters)
    )
    print(row(f"{name} forward + backward", ratio, 1 / SLOWEST, 3 * floor))


def run(net: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """The first output."""
    out = net(*inputs)
    return out[0] if isinstance(out, tuple) else out


def gradients(function: Callable[[], Tensor], parameters: list[nn.Parameter]) -> tuple[Tensor, ...]:
    """Gradients of the sum of squares."""
    return torch.autograd.grad(function().square().sum(), parameters, materialize_grads=True)


def iterated(scale: int) -> Case:
    """[2500, 300, 20, 10], 10 images and 3 ticks more, batch 100: twelve products and three biases per tick."""
    widths = [2500 // scale, 300 // scale, 20, 10]
    net = om.Iterated(inn(widths))
    x = torch.randn(100, 10, widths[0], generator=torch.Generator().manual_seed(0))
    names = ["x", "h1", "h2", "y"]
    W = {(r, c): net.get_parameter(f"blocks.{r}.{c}.weight") for r in names[1:] for c in names}
    b = {r: net.get_parameter(f"blocks.{r}.one.vector") for r in names[1:]}

    def by_hand() -> Tensor:
        state = {n: x.new_zeros(100, w) for n, w in zip(names, widths, strict=True)}
        images = x.unbind(1)
        for t in range(13):
            state["x"] = images[min(t, 9)]
            new = {}
            for r in names[1:]:
                total = functional.linear(state["x"], W[r, "x"])
                for c in names[1:]:
                    total = total + functional.linear(state[c], W[r, c])
                total = total + b[r]
                new[r] = torch.relu(total) if r != "y" else total
            state |= new
        return state["y"]

    return "iterated net, 13 ticks, batch 100", net, (x,), by_hand


def perceptron(scale: int) -> Case:
    """784-512-512-10, batch 256."""
    widths = [784 // scale, 512 // scale, 512 // scale, 10]
    net = om.Iterated(mlp(widths))
    x = torch.randn(256, widths[0], generator=torch.Generator().manual_seed(0))
    W = [net.get_parameter(f"blocks.x{i}.x{i - 1}.weight") for i in (1, 2, 3)]
    b = [net.get_parameter(f"blocks.x{i}.one.vector") for i in (1, 2, 3)]

    def by_hand() -> Tensor:
        h = torch.relu(functional.linear(x, W[0]) + b[0])
        h = torch.relu(functional.linear(h, W[1]) + b[1])
        return functional.linear(h, W[2]) + b[2]

    return "784-512-512-10, batch 256", net, (x,), by_hand


def recurrent(scale: int) -> Case:
    """Elman 64 → 256, 64 ticks, batch 64."""
    n, m, ticks = 64 // scale, 256 // scale, 64 // scale
    net = om.Iterated(elman(n, m))
    g = torch.Generator().manual_seed(0)
    x, h0 = torch.randn(64, ticks, n, generator=g), torch.zeros(64, m)
    W, U = (net.get_parameter(f"blocks.h.{c}.weight") for c in ("x", "h_prev"))
    b = net.get_parameter("blocks.h.one.vector")

    def by_hand() -> Tensor:
        h, hidden = h0, []
        for x_t in x.unbind(1):
            h = torch.tanh(functional.linear(x_t, W) + functional.linear(h, U) + b)
            hidden.append(h)
        return torch.stack(hidden, 1)

    return "Elman 64 → 256, 64 ticks, batch 64", net, (x, h0), by_hand


if __name__ == "__main__":
    main()
