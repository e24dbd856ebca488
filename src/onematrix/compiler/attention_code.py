"""Code of an attention: torch's kernel, causal, over a band, or under a mask."""

from math import prod

import torch
from torch import Tensor

from onematrix.compiler.attention import Attention, Axes, Mask, scaled_parts
from onematrix.compiler.code import Var
from onematrix.compiler.products import Terms
from onematrix.compiler.rows import Rows
from onematrix.kernels.attention import attend
from onematrix.kernels.banded_attention import banded_attention

Env = dict[str, Var]


def emit_attention(found: Attention, rows: Rows, env: Env) -> Var:
    """softmax(c Q Kᵀ + mask) V, with c also the ratios held back from queries and keys."""
    product, result = found.operands
    code = rows.code
    q, k = (rows.text(rows.operand(wires, product, env)) for wires in product.sums)
    v = rows.text(rows.operand(result.sums[1], result, env))
    axes = (found.queries, found.keys, found.values)
    turned = ", ".join(_heads_first(x, place) for x, place in zip((q, k, v), axes, strict=True))
    batch, sequence, feature = found.output
    order = [*batch, sequence, feature]  # where each axis of the kernel's result belongs
    back = ", ".join(str(1 + order.index(axis)) for axis in range(len(order)))
    scale = found.scores.scale * prod(rows.held_back.get(name, 1.0) for name in scaled_parts(found))
    single = "" if batch else ".squeeze(1)"
    call = _call(found, turned, scale, rows, env)
    return code.let(f"{call}{single}.permute(0, {back})", fresh=False)


def _heads_first(x: str, place: Axes) -> str:
    """(B, heads, sequence, features); one head where there are none, as torch's kernel is for four axes."""
    batch, sequence, feature = place
    text = f"{x}.permute(0, {', '.join(str(1 + a) for a in (*batch, sequence, feature))})"
    return text if batch else f"{text}.unsqueeze(1)"


def _call(found: Attention, turned: str, scale: float, rows: Rows, env: Env) -> str:
    band, mask = found.scores.band, found.scores.mask
    if band is not None and band.before is not None and band.after is not None:
        kernel = rows.code.constant(banded_attention)
        return f"{kernel}({turned}, {band.before}, {band.after}, {scale!r})"
    options = ", is_causal=True" if band is not None else ""
    if mask is not None:
        options = f", attn_mask={_mask(mask, found, rows, env)}"
    return f"{rows.code.constant(attend)}({turned}{options}, scale={scale!r})"


def _mask(mask: Mask, found: Attention, rows: Rows, env: Env) -> str:
    """The mask as torch takes it: true where a key is shown, or added; heads it repeats over stay one."""
    part, terms = rows.program.parts[mask.row.part], Terms()
    for wire in mask.wires:
        rows.sort(wire, part, terms, env)
    text = _heads_first(rows.text(rows.total(terms, part)), found.scored)
    if mask.shown is None:
        return text
    boolean = rows.code.let(f"as_boolean({text})").text
    rows.code.constants["as_boolean"] = as_boolean
    return boolean if mask.shown else f"~{boolean}"


def as_boolean(mask: Tensor) -> Tensor:
    """The mask, true where it is not 0."""
    return mask if mask.dtype == torch.bool else mask != 0
