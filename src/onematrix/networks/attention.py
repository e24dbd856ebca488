"""Attention as a program: the scores are a contraction of two parts, never a matrix of parameters."""

from collections.abc import Mapping

import torch
from torch import nn

from onematrix.errors import ShapeError
from onematrix.networks.recurrent import TIME, column
from onematrix.programs.block_matrix import Block, BlockMatrix
from onematrix.programs.part import ONE, Part
from onematrix.programs.program import Program
from onematrix.programs.schedule import Node, Seq, Step
from onematrix.structures.base import Structure
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, scale


def attention(
    width: int,
    heads: int,
    weights: Mapping[str, Structure] | None = None,
    mask: bool = False,
    generator: torch.Generator | None = None,
) -> Program:
    """softmax(Q Kᵀ ÷ √d) V per head, then W_o: parts x, q, k, v, scores, mixed, y of shape (time, …).

    q, k, v: (time, heads, d) = W x + b; scores: softmax over k of q·k ÷ √d, (heads, time, time). mask: an
    input part "mask" (time, time) is added before the softmax (−∞ hides; a row of −∞ gives nan).
    weights: W_q, W_k, W_v, W_o (n, n), b_q, … (n, 1); `attention_weights` takes them from torch.
    A. Vaswani et al., arXiv:1706.03762v7, eq. 1.

    >>> attention(8, 2).counts(time=5).multiply_adds == 4 * 5 * 8 * 8 + 5 * 8 + 4 * 5 * 8 + 2 * 5 * 5 * 8
    True
    """
    nodes, parts = attention_steps(width, heads, dict(weights or {}), mask, generator)
    return Program(Seq(*nodes), ["x", "mask"] if mask else ["x"], ["y"], parts)


def attention_steps(
    width: int, heads: int, given: Mapping[str, Structure], mask: bool, generator: torch.Generator | None
) -> tuple[list[Node], dict[str, Part]]:
    """The steps from x to y, and their parts."""
    if width % heads:
        raise ShapeError(f"attention: {heads} heads do not divide width {width}")
    d = width // heads
    parts = {"x": Part((TIME, width)), "y": Part((TIME, width)), "mixed": Part((TIME, heads, d))}
    parts |= {name: Part((TIME, heads, d)) for name in ("q", "q_scaled", "k", "v")}
    parts |= {name: Part((heads, TIME, TIME)) for name in ("products", "scores")}

    def affine(row: str, source: str, name: str) -> dict[tuple[str, str], Block]:
        W = given.get(f"W_{name}") or Dense.random(width, width, generator=generator)
        b = given.get(f"b_{name}") or column(torch.zeros(width))
        return {(row, source): Block(W, on="last"), (row, ONE): Block(b, on="last")}

    root = Block(scale(Identity(width), float(d) ** -0.5), on="last")
    qkv = affine("q", "x", "q") | affine("k", "x", "k") | affine("v", "x", "v")
    whole = {n: Block(Identity(d), on="last") for n in ("q_scaled", "k", "v")}
    square = Block(Identity("time"), on="last")
    sums: dict[tuple[str, str], Block] = {("scores", "products"): square}
    if mask:
        parts["mask"] = Part((heads, TIME, TIME))
        sums["scores", "mask"] = square
    nodes: list[Node] = [
        Step(BlockMatrix(qkv, parts)),
        Step(BlockMatrix({("q_scaled", "q"): root}, parts)),
        Step(
            BlockMatrix({("products", "q_scaled"): whole["q_scaled"]}, parts),
            BlockMatrix({("products", "k"): whole["k"]}, parts),
            joins={"products": "q h d, k h d -> h q k"},
        ),
        Step(BlockMatrix(sums, parts), activations={"scores": "softmax"}),
        Step(
            BlockMatrix({("mixed", "scores"): square}, parts),
            BlockMatrix({("mixed", "v"): whole["v"]}, parts),
            joins={"mixed": "h q k, k h d -> q h d"},
        ),
        Step(BlockMatrix(affine("y", "mixed", "o"), parts)),
    ]
    return nodes, parts


def attention_weights(module: nn.MultiheadAttention) -> dict[str, Structure]:
    """The four matrices and biases of nn.MultiheadAttention (copies: torch keeps three in one matrix)."""
    weights: dict[str, Structure] = {}
    W, b = module.in_proj_weight.detach().chunk(3), module.in_proj_bias.detach().chunk(3)
    for k, w, v in zip("qkv", W, b, strict=True):
        weights |= {f"W_{k}": Dense(w.clone()), f"b_{k}": column(v.clone())}
    out = module.out_proj
    return weights | {"W_o": Dense(out.weight), "b_o": column(out.bias.detach().clone())}


def encoder_layer(
    width: int, heads: int, inner: int, weights: Mapping[str, Structure] | None = None, epsilon: float = 1e-5
) -> Program:
    """The post-norm transformer encoder layer: u = N(x + A(x)), z = N(u + W_2 relu(W_1 u + b_1) + b_2).

    N: layer norm with scale g and shift s. weights: those of `attention`, W_1 (m, n), W_2 (n, m), b_1, b_2,
    g_1, s_1, g_2, s_2 (diagonal scales and shifts); `encoder_weights` takes them from torch.

    >>> encoder_layer(8, 2, 16).outputs
    ('z',)
    """
    given = dict(weights or {})
    nodes, parts = attention_steps(width, heads, given, False, None)
    parts |= {name: Part((TIME, width)) for name in ("n1", "u", "n2", "z")} | {"m": Part((TIME, inner))}
    I = Block(Identity(width), on="last")

    def last(name: str, default: Structure) -> Block:
        return Block(given.get(name) or default, on="last")

    zero, ones = column(torch.zeros(width)), Diagonal(torch.ones(width))
    norm = f"layer_norm({epsilon!r})"
    nodes += [
        Step(BlockMatrix({("n1", "x"): I, ("n1", "y"): I}, parts), activations={"n1": norm}),
        Step(BlockMatrix({("u", "n1"): last("g_1", ones), ("u", ONE): last("s_1", zero)}, parts)),
        Step(
            BlockMatrix(
                {
                    ("m", "u"): last("W_1", Dense.random(inner, width)),
                    ("m", ONE): last("b_1", column(torch.zeros(inner))),
                },
                parts,
            ),
            activations={"m": "relu"},
        ),
        Step(
            BlockMatrix(
                {
                    ("n2", "u"): I,
                    ("n2", "m"): last("W_2", Dense.random(width, inner)),
                    ("n2", ONE): last("b_2", zero),
                },
                parts,
            ),
            activations={"n2": norm},
        ),
        Step(BlockMatrix({("z", "n2"): last("g_2", ones), ("z", ONE): last("s_2", zero)}, parts)),
    ]
    return Program(Seq(*nodes), ["x"], ["z"], parts)


def encoder_weights(module: nn.TransformerEncoderLayer) -> dict[str, Structure]:
    """The weights of nn.TransformerEncoderLayer(norm_first=False, activation relu)."""
    weights = attention_weights(module.self_attn)
    for i, (linear, norm) in enumerate(
        ((module.linear1, module.norm1), (module.linear2, module.norm2)), start=1
    ):
        weights |= {f"W_{i}": Dense(linear.weight), f"b_{i}": column(linear.bias.detach().clone())}
        weights |= {f"g_{i}": Diagonal(norm.weight), f"s_{i}": column(norm.bias.detach().clone())}
    return weights
