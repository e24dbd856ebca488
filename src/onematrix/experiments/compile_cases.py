"""What the compiler is measured on: programs beside the native module, or the equations, they come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from onematrix.networks import elman, encoder_layer, gru, inn, lstm, mlp, sru
from onematrix.networks.attention import encoder_weights
from onematrix.networks.recurrent import elman_weights, gru_weights, lstm_weights
from onematrix.programs.program import Program
from onematrix.structures.dense import Dense

Outputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """A program, what it is compared with, and the targets: seconds of ours ÷ peer, forward and with gradients.

    products: (rows, inputs, outputs) of its matrix products: the floor is their time alone. floor_targets: of
    ours ÷ that time. fuses: compared under torch.compile too. A program may be a module, which is converted.
    """

    name: str
    peer_name: str
    program: Program | nn.Module
    peer: Callable[..., Tensor]
    peer_parameters: Sequence[Tensor]
    inputs: tuple[Tensor, ...]
    products: tuple[tuple[int, int, int], ...]
    targets: tuple[float, float]
    floor_targets: tuple[float, float] | None = None
    fuses: bool = False


def cases(scale: int = 1) -> list[Callable[[], Case]]:
    """Every case, made when asked for; scale divides the sizes, for tests."""
    s = scale

    def size(*numbers: int) -> list[int]:
        return [max(2, n // s) for n in numbers]

    return [
        lambda: _mlp(size(784, 512, 512, 10), 256 // s, (1.00, 1.01)),
        lambda: _mlp(size(64, 64, 64, 10), 1, (0.70, 0.85)),
        lambda: _elman(*size(64, 256, 64, 64), (0.97, 0.97)),
        lambda: _elman(*size(32, 128, 100, 16), (0.97, 0.97)),
        lambda: _elman(*size(64, 256, 64), 1, (0.97, 0.97)),
        lambda: _gated("LSTM", lstm, lstm_weights, nn.LSTM, *size(64, 128, 64, 32)),
        lambda: _gated("GRU", gru, gru_weights, nn.GRU, *size(64, 128, 64, 32)),
        lambda: _sru(*size(256, 64, 32), (0.86, 0.93)),
        lambda: _sru(size(256)[0], 1, size(512)[0], (0.15, 0.25)),
        lambda: _sru(*size(64, 8, 512), (0.20, 0.25)),
        lambda: _inn(size(2500, 300, 20, 10), 10, size(100)[0], (0.58, 0.35)),
        lambda: _inn(size(2500, 434, 434, 434, 10), 10, size(32)[0], (0.58, 0.52)),
        lambda: _encoder(64 // s, 4, *size(256, 32, 8)),
        lambda: _encoder(256 // s, 4, *size(1024, 64, 8)),
        lambda: _convolutions(*size(16, 32), 32 // s),
        lambda: _converted_encoder(64 // s, 4, *size(256, 32, 8)),
    ]


def _mlp(sizes: list[int], batch: int, targets: tuple[float, float]) -> Case:
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    modules: list[nn.Module] = [m for layer in layers for m in (layer, nn.ReLU())][:-1]
    peer = nn.Sequential(*modules)
    program = mlp(sizes, [Dense(layer.weight) for layer in layers], [layer.bias for layer in layers])
    return Case(
        f"MLP {'-'.join(map(str, sizes))}, batch {batch}",
        "nn.Sequential",
        program,
        peer,
        list(peer.parameters()),
        (torch.randn(batch, sizes[0]),),
        tuple((batch, layer.in_features, layer.out_features) for layer in layers),
        targets,
    )


def _elman(inputs: int, units: int, ticks: int, batch: int, targets: tuple[float, float]) -> Case:
    module = nn.RNN(inputs, units, batch_first=True)
    return Case(
        f"Elman {inputs} → {units}, T {ticks}, B {batch}",
        "nn.RNN",
        elman(inputs, units, elman_weights(module)),
        lambda x, h: module(x, h[None])[0],
        list(module.parameters()),
        (torch.randn(batch, ticks, inputs), torch.zeros(batch, units)),
        ((batch * ticks, inputs, units), *[(batch, units, units)] * ticks),
        targets,
    )


def _gated(
    name: str,
    build: Callable[..., Program],
    weights: Callable[..., dict[str, object]],
    native: type[nn.LSTM] | type[nn.GRU],
    inputs: int,
    units: int,
    ticks: int,
    batch: int,
) -> Case:
    module = native(inputs, units, batch_first=True)
    h = torch.zeros(batch, units)
    both = name == "LSTM"
    wide = (4 if both else 3) * units
    return Case(
        f"{name} {inputs} → {units}, T {ticks}, B {batch}",
        f"nn.{name}",
        build(inputs, units, weights(module)),
        lambda x, h, *c: module(x, (h[None], c[0][None]) if c else h[None])[0],
        list(module.parameters()),
        (torch.randn(batch, ticks, inputs), h, *([h.clone()] if both else [])),
        ((batch * ticks, inputs, wide), *[(batch, units, wide)] * ticks),
        (1.03, 1.03),
    )


def _sru(units: int, batch: int, ticks: int, targets: tuple[float, float]) -> Case:
    program = sru(units, "14")
    table = program.parameters
    W_f, v_f, b_f, W, W_r, v_r, b_r = (
        nn.Parameter(table[f"blocks.{name}"].detach().clone())
        for name in (
            "f.x.weight",
            "f.c_prev.vector",
            "f.ones.vector",
            "Wx.x.weight",
            "r.x.weight",
            "r.c_prev.vector",
            "r.ones.vector",
        )
    )

    def equations(x: Tensor, c: Tensor) -> Tensor:
        hidden = []
        for x_t in x.unbind(1):
            f = torch.sigmoid(functional.linear(x_t, W_f) + v_f * c + b_f)
            r = torch.sigmoid(functional.linear(x_t, W_r) + v_r * c + b_r)
            c = f * c + (1 - f) * functional.linear(x_t, W)
            hidden.append(r * c + (1 - r) * x_t)
        return torch.stack(hidden, 1)

    return Case(
        f"SRU matrix, n {units}, B {batch}, T {ticks}",
        "its equations",
        program,
        equations,
        [W_f, v_f, b_f, W, W_r, v_r, b_r],
        (torch.randn(batch, ticks, units), torch.zeros(batch, units)),
        ((batch * ticks, units, 3 * units),),
        targets,
    )


def _inn(widths: list[int], images: int, batch: int, targets: tuple[float, float]) -> Case:
    program = inn(widths)
    names = ["x", *(f"h{i}" for i in range(1, len(widths) - 1)), "y"]
    places = list(range(len(widths)))
    starts = [sum(widths[:i]) for i in range(len(widths) + 1)]
    W = {
        (i, j): nn.Parameter(program.parameters[f"blocks.{names[i]}.{names[j]}.weight"].detach().clone())
        for i in places[1:]
        for j in places
    }
    b = {i: nn.Parameter(torch.zeros(widths[i])) for i in places[1:]}
    ticks, last = images + len(widths) - 1, places[-1]

    def vector_form(x: Tensor) -> Tensor:
        """Sequential2D's forward_vector: one vector, a slice and a product per block, every row every tick."""
        z = x.new_zeros(len(x), starts[-1])
        for t in range(ticks):
            z = torch.cat([x[:, min(t, images - 1)], z[:, widths[0] :]], 1)
            rows = [z[:, : widths[0]]]
            for i in places[1:]:
                total = b[i].expand(len(x), -1)
                for j in places:
                    total = total + functional.linear(z[:, starts[j] : starts[j + 1]], W[i, j])
                rows.append(total if i == last else torch.relu(total))
            z = torch.cat(rows, 1)
        return z[:, starts[last] :]

    hidden = sum(widths[1:])
    return Case(
        f"iterated net {widths}, {ticks} ticks, B {batch}".replace(", ", " ", len(widths) - 1),
        "Sequential2D's vector form",
        program,
        vector_form,
        [*W.values(), *b.values()],
        (torch.randn(batch, images, widths[0]),),
        ((batch * images, widths[0], hidden), *[(batch, hidden, hidden)] * (ticks - 1)),
        targets,
        (1.15, 1.25),
    )


def _encoder(width: int, heads: int, inner: int, ticks: int, batch: int) -> Case:
    module = nn.TransformerEncoderLayer(width, heads, inner, dropout=0.0, batch_first=True)
    rows = batch * ticks
    return Case(
        f"encoder layer {width}, {heads} heads, T {ticks}, B {batch}",
        "nn.TransformerEncoderLayer",
        encoder_layer(width, heads, inner, encoder_weights(module)),
        module,
        list(module.parameters()),
        (torch.randn(batch, ticks, width),),
        ((rows, width, 3 * width), (rows, width, width), (rows, width, inner), (rows, inner, width)),
        (1.02, 1.02),
    )


def _convolutions(first: int, second: int, batch: int) -> Case:
    module = nn.Sequential(
        nn.Conv2d(3, first, 3, padding=1),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(second, 10),
    ).eval()
    products = ((batch * 1024, 27, first), (batch * 256, 9 * first, second), (batch, second, 10))
    return _converted(
        f"conv net 3-{first}-{second}-10, 32 × 32, B {batch}", module, (3, 32, 32), batch, products
    )


def _converted_encoder(width: int, heads: int, inner: int, ticks: int, batch: int) -> Case:
    module = nn.TransformerEncoderLayer(width, heads, inner, dropout=0.0, batch_first=True)
    rows = batch * ticks
    products = ((rows, width, 3 * width), (rows, width, width), (rows, width, inner), (rows, inner, width))
    name = f"converted encoder layer {width}, T {ticks}, B {batch}"
    return _converted(name, module, (ticks, width), batch, products)


def _converted(
    name: str,
    module: nn.Module,
    shape: tuple[int, ...],
    batch: int,
    products: tuple[tuple[int, int, int], ...],
) -> Case:
    x = torch.randn(batch, *shape)
    parameters = [p for p in module.parameters() if p.requires_grad]
    return Case(name, "the module", module, module, parameters, (x,), products, (1.02, 1.02), fuses=True)
