"""The simple recurrent unit as one matrix: the literature's 14 parts, one block changed, and 10 parts."""

from collections.abc import Mapping

import torch

from onematrix.errors import ProgramError
from onematrix.networks.recurrent import TIME, Blocks
from onematrix.programs.block_matrix import BlockMatrix
from onematrix.programs.part import ONE, Part
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop, Node, Seq, Step
from onematrix.structures.base import Structure
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Ones, Zero, scale

SLOTS = ("x", "c_prev", "ones", "f", "1-f", "Wx", "c1", "c2", "c", "r", "1-r", "h1", "h2", "h")
NAMES = {"1-f": "not_f", "1-r": "not_r"}
FORMS = ("14", "14'", "10")


def sru(
    units: int = 8,
    form: str = "14",
    weights: Mapping[str, Structure] | None = None,
    generator: torch.Generator | None = None,
) -> Program:
    """f = σ(W_f x + v_f ∘ c' + b_f), r likewise, c = f ∘ c' + (1 − f) ∘ W x, h = r ∘ c + (1 − r) ∘ x, per tick.

    form "14": the 14 parts of Kale 2024, Figure 1, schedule G, G, F, F, F, F, carried by the corrected reset;
    "14'": row c_prev holds (one block changed), F six times; "10": ten parts, F four times.
    weights: W, W_f, W_r (n, n) and diagonals v_f, v_r, b_f, b_r, random where not given.
    Inputs "inputs" (time, n) and "c0"; outputs hidden (time, n) and the state c_prev.
    T. Lei et al., arXiv:1709.02755v5, eqs. 1–4.

    >>> sru(8).counts(time=1).stored_numbers == 3 * 8**2 + 4 * 8
    True
    """
    if form not in FORMS:
        raise ProgramError(f"sru form {form!r} is unknown; there are: {', '.join(FORMS)}")
    given = _weights(units, weights or {}, generator)
    return _ten(units, given) if form == "10" else _fourteen(units, given, holds=form == "14'")


def _weights(
    n: int, given: Mapping[str, Structure], generator: torch.Generator | None
) -> dict[str, Structure]:
    made: dict[str, Structure] = {}
    for name in ("W", "W_f", "W_r"):
        made[name] = given.get(name) or Dense.random(n, n, generator=generator)
    for name in ("v_f", "v_r", "b_f", "b_r"):
        made[name] = given.get(name) or Diagonal(torch.randn(n, generator=generator) * 0.1)
    return made


def fourteen_matrices(
    n: int, w: Mapping[str, Structure], holds: bool = False
) -> tuple[BlockMatrix, BlockMatrix]:
    """G (22 blocks) and H (14 blocks) over the 14 parts; `holds` changes row c_prev from I·c to I·c_prev."""
    I, minus = Identity(n), scale(Identity(n), -1)
    parts = dict.fromkeys((NAMES.get(s, s) for s in SLOTS), n)
    G: Blocks = {
        ("x", "x"): I,
        ("c_prev", "c_prev" if holds else "c"): I,
        ("ones", "ones"): I,
        ("f", "x"): w["W_f"],
        ("f", "c_prev"): w["v_f"],
        ("f", "ones"): w["b_f"],
        ("not_f", "ones"): I,
        ("not_f", "f"): minus,
        ("Wx", "x"): w["W"],
        ("c1", "f"): I,
        ("c2", "not_f"): I,
        ("c", "c1"): I,
        ("c", "c2"): I,
        ("r", "x"): w["W_r"],
        ("r", "c_prev"): w["v_r"],
        ("r", "ones"): w["b_r"],
        ("not_r", "ones"): I,
        ("not_r", "r"): minus,
        ("h1", "r"): I,
        ("h2", "not_r"): I,
        ("h", "h1"): I,
        ("h", "h2"): I,
    }
    H: Blocks = {(row, "ones"): I for row in parts}
    H |= {("c1", "c_prev"): I, ("c2", "Wx"): I, ("h1", "c"): I, ("h2", "x"): I}
    del H["c1", "ones"], H["c2", "ones"], H["h1", "ones"], H["h2", "ones"]
    return BlockMatrix(G, parts), BlockMatrix(H, parts)


def _fourteen(n: int, w: Mapping[str, Structure], holds: bool) -> Program:
    G, H = fourteen_matrices(n, w, holds)
    sigma = {"f": "sigmoid", "r": "sigmoid"}
    first, full = Step(G, activations=sigma), Step(G, H, activations=sigma)
    I, half, zero = Identity(n), scale(Identity(n), 0.5), Zero(n, n)
    parts = {**G.parts, "inputs": Part((TIME, n)), "hidden": Part((TIME, n)), "c0": Part((n,))}
    if holds:  # exact from any content of the free slots, so that nothing but c_prev is moved
        reset: Blocks = {(k, k): I for k in G.parts if k not in ("x", "c_prev", ONE)} | {("c_prev", "c"): I}
        start: Blocks = {("c_prev", "c0"): I, ("ones", ONE): Ones(n, 1)}
        return _looped(Seq(*[full] * 6), start, reset, parts, n)
    reset = {(k, "c_prev"): half for k in ("f", "not_f", "c1", "c2")}
    reset |= {("c_prev", "c_prev"): I, ("c", "c_prev"): I, ("ones", "ones"): I, ("h", "h"): I}
    reset |= {(k, k): zero for k in ("Wx", "r", "not_r", "h1", "h2")}
    start = {(k, "c0"): half for k in ("f", "not_f", "c1", "c2")}
    start |= {("c_prev", "c0"): I, ("c", "c0"): I, ("ones", ONE): Ones(n, 1)}
    return _looped(Seq(first, first, full, full, full, full), start, reset, parts, n)


def _looped(body: Node, start: Blocks, reset: Blocks, parts: Mapping[str, Part], n: int) -> Program:
    I = Identity(n)
    loop = Loop(
        body,
        over=TIME,
        feeds=BlockMatrix({("x", "inputs"): I}, parts),
        outputs=BlockMatrix({("hidden", "h"): I}, parts),
        init=BlockMatrix(start, parts),
        carry=BlockMatrix(reset, parts),
    )
    return Program(loop, ["inputs", "c0"], ["hidden", "c_prev"])


def _ten(n: int, w: Mapping[str, Structure]) -> Program:
    """x, c', 1, u = W x, f, r, d = f ∘ (c' − u), c = d + u, e = r ∘ (c − x), h = e + x: 16 and 13 blocks, depth 4."""
    I, minus = Identity(n), scale(Identity(n), -1)
    names = ("x", "c_prev", "ones", "u", "f", "r", "d", "c", "e", "h")
    parts: dict[str, Part] = {name: Part((n,)) for name in names}
    parts |= {"inputs": Part((TIME, n)), "hidden": Part((TIME, n)), "c0": Part((n,))}
    G: Blocks = {(k, k): I for k in ("x", "c_prev", "ones")}
    G |= {
        ("u", "x"): w["W"],
        ("d", "f"): I,
        ("c", "d"): I,
        ("c", "u"): I,
        ("e", "r"): I,
        ("h", "e"): I,
        ("h", "x"): I,
    }
    for k in "fr":
        G |= {(k, "x"): w[f"W_{k}"], (k, "c_prev"): w[f"v_{k}"], (k, "ones"): w[f"b_{k}"]}
    H: Blocks = {(k, "ones"): I for k in names if k not in ("d", "e")}
    H |= {("d", "c_prev"): I, ("d", "u"): minus, ("e", "d"): I, ("e", "u"): I, ("e", "x"): minus}
    step = Step(BlockMatrix(G, parts), BlockMatrix(H, parts), activations={"f": "sigmoid", "r": "sigmoid"})
    carry: Blocks = {(k, k): I for k in names if k not in ("x", "c_prev")} | {("c_prev", "c"): I}
    start: Blocks = {("c_prev", "c0"): I, ("ones", ONE): Ones(n, 1)}
    return _looped(Seq(*[step] * 4), start, carry, parts, n)
