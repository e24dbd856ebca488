"""Recurrent networks as programs: Elman, LSTM, GRU, two-layer bidirectional."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onematrix.programs.block_matrix import BlockMatrix
from onematrix.programs.part import ONE, Part
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop, Node, Seq, Step
from onematrix.structures.base import Structure
from onematrix.structures.column import Column
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity, scale

Blocks = dict[tuple[str, str], Structure]
TIME = "time"


def column(vector: Tensor) -> Column:
    """A bias (n,) as a block from `one`: (n, 1)."""
    return Column(vector.contiguous())


def elman(
    inputs: int,
    units: int,
    weights: Mapping[str, Structure] | None = None,
    activation: str = "tanh",
    generator: torch.Generator | None = None,
    reverse: bool = False,
) -> Program:
    """h_t = σ(W x_t + U h_(t-1) + b): parts x, h_prev, h; inputs "inputs" (time, n), "h0"; outputs hidden, h_prev.

    weights: W (m, n), U (m, m), b (m, 1), random where not given. J. Elman, Cognitive Science 14, 1990.

    >>> elman(3, 4).counts(time=5).multiply_adds
    160
    """
    given = dict(weights or {})
    W = given.get("W") or Dense.random(units, inputs, generator=generator)
    U = given.get("U") or Dense.random(units, units, generator=generator)
    b = given.get("b") or column(torch.zeros(units))
    parts = {"x": inputs, "h_prev": units, "h": units}
    G: Blocks = {("h", "x"): W, ("h", "h_prev"): U, ("h", ONE): b}
    step = Step(BlockMatrix(G, parts), activations={"h": activation})
    loop = over_time(
        step, {"x": inputs}, {"hidden": ("h", units)}, {"h_prev": ("h", units, "h0")}, parts, reverse
    )
    return Program(loop, ["inputs", "h0"], ["hidden", "h_prev"])


def over_time(
    body: Node,
    fed: Mapping[str, int],
    read: Mapping[str, tuple[str, int]],
    carried: Mapping[str, tuple[str, int, str | None]],
    parts: Mapping[str, Any],
    reverse: bool = False,
    source: str = "inputs",
    init: Mapping[tuple[str, str], Structure] | None = None,
) -> Loop:
    """A loop over time: fed {inner: width}, read {outer: (inner, width)}, carried {old: (new, width, initial)}."""
    outer: dict[str, Part | int] = {source: Part((TIME, *fed.values()))}
    outer |= {name: Part((TIME, width)) for name, (_, width) in read.items()}
    outer |= {first: width for _, width, first in carried.values() if first is not None}
    every = {**parts, **outer}
    starts: Blocks = {
        (old, first): Identity(w) for old, (_, w, first) in carried.items() if first is not None
    }
    starts |= dict(init or {})
    return Loop(
        body,
        over=TIME,
        feeds=BlockMatrix({(inner, source): Identity(w) for inner, w in fed.items()}, every),
        outputs=BlockMatrix({(o, inner): Identity(w) for o, (inner, w) in read.items()}, every),
        init=BlockMatrix(starts, every) if starts else None,
        carry=BlockMatrix({(old, new): Identity(w) for old, (new, w, _) in carried.items()}, every),
        reverse=reverse,
    )


def lstm(
    inputs: int,
    units: int,
    weights: Mapping[str, Structure] | None = None,
    generator: torch.Generator | None = None,
) -> Program:
    """The long short-term memory as 11 parts, 16 blocks in G and 3 in H.

    i, f, o = σ(W x + U h' + b); g = tanh(W x + U h' + b); p = f ∘ c'; q = i ∘ g; c = p + q; h = tanh(c) ∘ o.
    Four steps, each part as soon as it is final. weights: W_k (m, n), U_k (m, m), b_k (m, 1) for k in i, f, g,
    o; `lstm_weights` takes them from nn.LSTM. S. Hochreiter, J. Schmidhuber, Neural Computation 9, 1997.

    >>> lstm(3, 4).counts(time=1).stored_numbers
    128
    """
    given = dict(weights or {})
    parts = dict.fromkeys(["h_prev", "c_prev", "i", "f", "g", "o", "p", "q", "c", "h"], units) | {"x": inputs}
    I = Identity(units)
    gates: Blocks = {}
    for k in "ifgo":
        gates[k, "x"] = given.get(f"W_{k}") or Dense.random(units, inputs, generator=generator)
        gates[k, "h_prev"] = given.get(f"U_{k}") or Dense.random(units, units, generator=generator)
        gates[k, ONE] = given.get(f"b_{k}") or column(torch.zeros(units))
    body = Seq(
        Step(
            BlockMatrix(gates, parts),
            activations={"i": "sigmoid", "f": "sigmoid", "o": "sigmoid", "g": "tanh"},
        ),
        Step(
            BlockMatrix({("p", "f"): I, ("q", "i"): I}, parts),
            BlockMatrix({("p", "c_prev"): I, ("q", "g"): I}, parts),
        ),
        Step(BlockMatrix({("c", "p"): I, ("c", "q"): I}, parts)),
        Step(
            BlockMatrix({("h", "c"): I}, parts),
            BlockMatrix({("h", "o"): I}, parts),
            activations={"h": "tanh"},
        ),
    )
    carried = {"h_prev": ("h", units, "h0"), "c_prev": ("c", units, "c0")}
    loop = over_time(body, {"x": inputs}, {"hidden": ("h", units)}, carried, parts)
    return Program(loop, ["inputs", "h0", "c0"], ["hidden", "h_prev", "c_prev"])


def gru(
    inputs: int,
    units: int,
    weights: Mapping[str, Structure] | None = None,
    generator: torch.Generator | None = None,
) -> Program:
    """The gated recurrent unit, in torch's form, as 8 parts, 12 blocks in G and 3 in H (bias blocks besides).

    r, z = σ(W x + U h' + b); m = r ∘ (U_n h' + b_hn); n = tanh(W_n x + m + b_in); d = z ∘ (h' − n); h = n + d.
    weights: W_k, U_k, b_k for k in r, z, n and c (m, 1) = b_hn; `gru_weights` takes them from nn.GRU.
    K. Cho et al., arXiv:1406.1078v3.

    >>> gru(3, 4).counts(time=1).stored_numbers
    100
    """
    given = dict(weights or {})
    parts = dict.fromkeys(["h_prev", "r", "z", "m", "n", "d", "h"], units) | {"x": inputs}
    I = Identity(units)

    def weight(name: str, width: int) -> Structure:
        return given.get(name) or Dense.random(units, width, generator=generator)

    def bias(name: str) -> Structure:
        return given.get(name) or column(torch.zeros(units))

    gates: Blocks = {}
    for k in "rz":
        gates |= {
            (k, "x"): weight(f"W_{k}", inputs),
            (k, "h_prev"): weight(f"U_{k}", units),
            (k, ONE): bias(f"b_{k}"),
        }
    new: Blocks = {("n", "x"): weight("W_n", inputs), ("n", "m"): I, ("n", ONE): bias("b_n")}
    body = Seq(
        Step(BlockMatrix(gates, parts), activations={"r": "sigmoid", "z": "sigmoid"}),
        Step(
            BlockMatrix({("m", "r"): I}, parts),
            BlockMatrix({("m", "h_prev"): weight("U_n", units), ("m", ONE): bias("c_n")}, parts),
        ),
        Step(BlockMatrix(new, parts), activations={"n": "tanh"}),
        Step(
            BlockMatrix({("d", "z"): I}, parts),
            BlockMatrix({("d", "h_prev"): I, ("d", "n"): scale(I, -1)}, parts),
        ),
        Step(BlockMatrix({("h", "n"): I, ("h", "d"): I}, parts)),
    )
    loop = over_time(body, {"x": inputs}, {"hidden": ("h", units)}, {"h_prev": ("h", units, "h0")}, parts)
    return Program(loop, ["inputs", "h0"], ["hidden", "h_prev"])


def bidirectional(
    inputs: int,
    units: int,
    layers: int = 2,
    weights: Mapping[str, Structure] | None = None,
    generator: torch.Generator | None = None,
) -> Program:
    """Layers of two Elman networks each, one forwards and one backwards in time, as nn.RNN(bidirectional=True).

    Layer l reads [forward; backward] of layer l − 1. weights: W_l_d (m, n), U_l_d (m, m), b_l_d (m, 1) for
    layer l and direction d in f, b; `bidirectional_weights` takes them from nn.RNN. Output: both hidden
    series of the last layer.

    >>> bidirectional(3, 4).outputs
    ('hidden_2_f', 'hidden_2_b')
    """
    given = dict(weights or {})
    parts: dict[str, Part | int] = {"inputs": Part((TIME, inputs))}
    loops: list[Node] = []
    sources = {"inputs": inputs}
    for layer in range(1, layers + 1):
        parts |= {f"hidden_{layer}_{d}": Part((TIME, units)) for d in "fb"}
        for d in "fb":
            loops.append(_direction(layer, d, sources, units, given, parts, generator))
        sources = {f"hidden_{layer}_{d}": units for d in "fb"}
    return Program(Seq(*loops), ["inputs"], list(sources))


def _direction(
    layer: int,
    d: str,
    sources: Mapping[str, int],
    units: int,
    given: Mapping[str, Structure],
    outer: Mapping[str, Part | int],
    generator: torch.Generator | None,
) -> Loop:
    tag = f"{layer}_{d}"
    inner = {f"x{i}_{tag}": width for i, width in enumerate(sources.values())}
    parts = {**outer, **inner, f"h_prev_{tag}": units, f"h_{tag}": units}
    G: Blocks = {
        (f"h_{tag}", x): given.get(f"W{i}_{tag}") or Dense.random(units, width, generator=generator)
        for i, (x, width) in enumerate(inner.items())
    }
    G[f"h_{tag}", f"h_prev_{tag}"] = given.get(f"U_{tag}") or Dense.random(units, units, generator=generator)
    G[f"h_{tag}", ONE] = given.get(f"b_{tag}") or column(torch.zeros(units))
    feeds: Blocks = {(x, s): Identity(w) for (x, w), s in zip(inner.items(), sources, strict=True)}
    return Loop(
        Step(BlockMatrix(G, parts), activations={f"h_{tag}": "tanh"}),
        over=TIME,
        feeds=BlockMatrix(feeds, parts),
        outputs=BlockMatrix({(f"hidden_{tag}", f"h_{tag}"): Identity(units)}, parts),
        carry=BlockMatrix({(f"h_prev_{tag}", f"h_{tag}"): Identity(units)}, parts),
        reverse=d == "b",
    )


def elman_weights(module: nn.RNN) -> dict[str, Structure]:
    """W, U, b of a one-layer nn.RNN; its two biases are added."""
    return {
        "W": Dense(module.weight_ih_l0),
        "U": Dense(module.weight_hh_l0),
        "b": column(module.bias_ih_l0.detach() + module.bias_hh_l0.detach()),
    }


def lstm_weights(module: nn.LSTM) -> dict[str, Structure]:
    """The gate matrices of a one-layer nn.LSTM (copies: torch keeps the four gates in one matrix)."""
    return _gate_weights(module, "ifgo")


def gru_weights(module: nn.GRU) -> dict[str, Structure]:
    """The gate matrices of a one-layer nn.GRU; c_n is the bias inside the reset gate's product."""
    weights = _gate_weights(module, "rzn")
    weights["b_n"] = column(module.bias_ih_l0.detach().chunk(3)[2].clone())
    weights["c_n"] = column(module.bias_hh_l0.detach().chunk(3)[2].clone())
    return weights


def _gate_weights(module: nn.RNNBase, gates: str) -> dict[str, Structure]:
    count = len(gates)
    W, U = (m.detach().chunk(count) for m in (module.weight_ih_l0, module.weight_hh_l0))
    b = (module.bias_ih_l0.detach() + module.bias_hh_l0.detach()).chunk(count)
    weights: dict[str, Structure] = {}
    for k, w, u, v in zip(gates, W, U, b, strict=True):
        weights |= {f"W_{k}": Dense(w.clone()), f"U_{k}": Dense(u.clone()), f"b_{k}": column(v.clone())}
    return weights


def bidirectional_weights(module: nn.RNN) -> dict[str, Structure]:
    """The matrices of an nn.RNN(bidirectional=True); inputs of a higher layer are split by direction."""
    weights: dict[str, Structure] = {}
    for layer in range(module.num_layers):
        for d, suffix in (("f", ""), ("b", "_reverse")):
            W, U, bi, bh = (
                getattr(module, f"{kind}_l{layer}{suffix}").detach()
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            for i, piece in enumerate(W.chunk(2 if layer else 1, dim=1)):
                weights[f"W{i}_{layer + 1}_{d}"] = Dense(piece.contiguous().clone())
            weights[f"U_{layer + 1}_{d}"] = Dense(U.clone())
            weights[f"b_{layer + 1}_{d}"] = column(bi + bh)
    return weights
