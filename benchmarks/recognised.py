"""What recognition gains: long convolutions, banded attention, a convolution given as CSR; and layouts. One thread.

python benchmarks/recognised.py
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import onematrix as om
from measure import HEAD, compare, conditions, require_close, row, time_call
from onematrix.compiler.form import Form
from onematrix.compiler.module import Compiled
from onematrix.structures.compressed import CSR
from onematrix.structures.convolution import Convolution

CHANNELS, TICKS = 64, 4096
HEADS, WIDTH, LONG, BAND = 8, 64, 2048, 64
BATCH = 64
PAIRS = 11
SEVERAL = 3.0  # "several times faster"


def main() -> None:
    """Check, measure and print every case."""
    torch.set_num_threads(1)
    print(conditions(PAIRS), "\n", HEAD, sep="")
    long_convolution()
    convolution_of_any_length()
    banded_attention()
    masks_in_buffers()
    convolution_as_csr()
    layouts()


def long_convolution(channels: int = CHANNELS, ticks: int = TICKS, calls: int | None = None) -> None:
    """A depthwise convolution whose kernel is as long as its input, against torch's."""
    torch.manual_seed(0)
    module = nn.Conv1d(channels, channels, ticks - 1, padding=ticks // 2 - 1, groups=channels)
    x = torch.randn(1, channels, ticks)
    ours = om.compile(module, x, measure=False, prove=False)
    size = 3 * ticks // 2
    spectrum = torch.fft.rfft(x, size)
    floor = time_call(lambda: (torch.fft.rfft(x, size), torch.fft.irfft(spectrum, size)), 5)
    both(f"long conv K={ticks - 1}", ours, module, [x], SEVERAL, floor, calls)


def convolution_of_any_length(
    channels: int = CHANNELS,
    taps: int = 1023,
    lengths: tuple[int, ...] = (16, 1024, TICKS),
    calls: int | None = None,
) -> None:
    """A depthwise convolution along a dimension whose length is free, compiled once, against torch's."""
    torch.manual_seed(0)
    module = nn.Conv1d(channels, channels, taps, padding=taps // 2, groups=channels)
    program = om.convert(module, torch.randn(1, channels, taps), free={"input": {2: "time"}})
    ours = om.compile(program, measure=False, prove=False)
    for length in lengths:
        x = torch.randn(1, channels, length)
        both(f"conv K={taps}, length {length} of any", ours, module, [x], 1.0, None, calls)


class Banded(nn.Module):
    """Torch's attention under a mask that shows each query the last `band` keys."""

    def __init__(self, band: int) -> None:
        super().__init__()
        self.band = band

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        place = torch.arange(q.shape[2])
        distance = place[:, None] - place
        mask = (distance >= 0) & (distance < self.band)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Masked(nn.Module):
    """The same with the mask made before."""

    def __init__(self, band: int, ticks: int) -> None:
        super().__init__()
        distance = torch.arange(ticks)[:, None] - torch.arange(ticks)
        self.register_buffer("mask", (distance >= 0) & (distance < band))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)


def banded_attention(ticks: int = LONG, band: int = BAND, calls: int | None = None) -> None:
    """Attention over a band against torch's under its mask, the mask made beforehand."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, ticks, WIDTH) for _ in range(3))
    ours = om.compile(Banded(band), q, k, v, measure=False, prove=False)
    blocks = q.view(-1, band, WIDTH)
    windows = torch.cat([blocks, blocks], 1)
    scores = blocks @ windows.mT
    floor = time_call(lambda: (blocks @ windows.mT, scores @ windows), 5)
    both(f"band {band} of {ticks}, attention", ours, Masked(band, ticks), [q, k, v], SEVERAL, floor, calls)


def masks_in_buffers(ticks: int = LONG, band: int = BAND, calls: int | None = None) -> None:
    """A frozen program whose masks are buffers, a band and a causal one, against torch's attention under them."""
    torch.manual_seed(0)
    inputs = [torch.randn(1, HEADS, ticks, WIDTH) for _ in range(3)]
    for name, width in (("band", band), ("causal", ticks)):
        module = Masked(width, ticks)
        ours = om.compile(module, *inputs, measure=False, prove=False).freeze()
        both(f"{name} mask in a buffer, frozen", ours, module, inputs, 1.0, None, calls)


def convolution_as_csr(side: int = 28, batch: int = BATCH, calls: int | None = None) -> None:
    """A block that is a convolution, given by its entries and frozen, against the sparse product of the entries."""
    torch.manual_seed(0)
    conv = Convolution(torch.randn(16, 8, 3, 3), side, side, padding="1 1 1 1")
    entries = by_entries(conv)
    parts = {"x": (8, side, side), "y": (16, side, side)}
    program = om.Program(om.Step(om.BlockMatrix({("y", "x"): entries}, parts)), ["x"], ["y"])
    ours = om.compile(program, prove=False).freeze()
    x = torch.randn(batch, 8, side, side)
    columns, weight = torch.randn(72, batch * side * side), conv.weight.flatten(1)
    floor = time_call(lambda: weight @ columns, 5)
    both("conv as CSR / torch's CSR", ours, Raw(entries), [x], SEVERAL, floor, calls)
    both("conv as CSR / own CSR", ours, Product(entries), [x], 1.0, floor, calls)


class Raw(nn.Module):
    """Torch's own sparse product on flattened features."""

    def __init__(self, a: CSR) -> None:
        super().__init__()
        indices = (a.crow_indices, a.col_indices)
        self.matrix = torch.sparse_csr_tensor(*indices, a.values.detach(), [int(size) for size in a.shape])

    def forward(self, x: Tensor) -> Tensor:
        return (self.matrix @ x.flatten(1).mT).mT.reshape(x.shape[0], 16, *x.shape[2:])


class Product(nn.Module):
    """The library's sparse product on flattened features."""

    def __init__(self, structure: CSR) -> None:
        super().__init__()
        self.structure = structure

    def forward(self, x: Tensor) -> Tensor:
        return self.structure.matmul(x.flatten(1)).view(x.shape[0], 16, *x.shape[2:])


def by_entries(a: Convolution, together: int = 256) -> CSR:
    """The compressed rows of a convolution: its products with the columns of the identity, some at a time."""
    m, n = int(a.shape[0]), int(a.shape[1])
    positions, values = [], []
    for start, unit in zip(range(0, n, together), torch.eye(n).split(together), strict=True):
        columns = a.matmul(unit)
        j, i = columns.nonzero().unbind(1)
        positions.append(i * n + j + start)
        values.append(columns[j, i])
    order = torch.cat(positions).argsort()
    return CSR.from_positions(m, n, torch.cat(positions)[order], torch.cat(values)[order])


def layouts(calls: int | None = None) -> None:
    """Channels last and shifted multiplies against the layout and the call of torch: what measuring chooses from."""
    torch.manual_seed(0)
    nets = {
        "conv net 32-64-64, 14×14": (conv_net(), torch.randn(64, 32, 14, 14), "channels_first"),
        "depthwise net 64, 56×56": (depthwise_net(), torch.randn(8, 64, 56, 56), "channels_first"),
        "depthwise K=3, B=1": (short(3), torch.randn(1, 64, 1024), "whole_kernels"),
        "depthwise K=3, B=8": (short(3), torch.randn(8, 64, 1024), "whole_kernels"),
    }
    for name, (net, x, question) in nets.items():
        plain = om.compile(net, x, measure=False, prove=False)
        other = Compiled(plain.program, plain.lowered, Form(**{question: False}))
        both(name, other, plain, [x], 1.0, None, calls)


def conv_net() -> nn.Module:
    """Two convolutions, a pool and a 1×1 convolution."""
    layers = [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())


def depthwise_net() -> nn.Module:
    """Two separable convolutions."""
    pair = [nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU()]
    again = [nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU()]
    return nn.Sequential(*pair, *again)


def short(taps: int) -> nn.Module:
    """One depthwise convolution of a few taps."""
    return nn.Conv1d(64, 64, taps, padding=taps // 2, groups=64)


def both(
    name: str,
    ours: nn.Module,
    peer: nn.Module,
    inputs: list[Tensor],
    target: float,
    floor: float | None,
    calls: int | None,
) -> None:
    """Two rows: forward, and forward with all gradients; after outputs and gradients were compared."""
    free = [x.clone().requires_grad_() for x in inputs]
    weight = torch.randn(peer(*inputs).shape)  # batch outermost, whatever layout the peer's own output has
    for a, b in zip(gradients(ours, free, weight), gradients(peer, free, weight), strict=False):
        require_close(f"{name}: gradient", a, b.reshape(a.shape), 1e-4)
    with torch.no_grad():
        require_close(name, ours(*inputs), peer(*inputs), 1e-4)
        ratio = compare(lambda: ours(*inputs), lambda: peer(*inputs), PAIRS, calls)
    print(row(f"{name} forward", ratio, target, floor or ratio.peer_seconds), flush=True)
    run: Callable[[nn.Module], tuple[Tensor, ...]] = lambda module: gradients(module, free, weight)  # noqa: E731
    ratio = compare(lambda: run(ours), lambda: run(peer), PAIRS, calls)
    print(row(f"{name} + backward", ratio, target, 3 * floor if floor else ratio.peer_seconds), flush=True)


def gradients(module: nn.Module, inputs: list[Tensor], weight: Tensor) -> tuple[Tensor, ...]:
    """Forward, then the gradients of the inputs and of what trains."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.autograd.grad(module(*inputs), (*inputs, *trained), weight)


if __name__ == "__main__":
    main()
