"""Self-attention: native, as third-order tensors, and with projections free over the positions."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from onematrix.errors import ShapeError
from onematrix.experiments.unified.patterns import tiled
from onematrix.programs.linear import Linear


class SelfAttention(nn.Module):
    """x (B, n, d) → O concat_h softmax(Q_h x (K_h x)ᵀ / √(d / heads)) V_h x + b; the scores read earlier places
    only where causal. hidden: bool (B, n), True at places nobody may read (padding).

    Queries and keys have no bias: one of the keys would change no output.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        for name in ("query", "key", "value"):
            self.add_module(name, nn.Linear(width, width, bias=False))
        self.out = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, n, d / heads)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        q, k, v = (self._split(part(x)) for part in (self.query, self.key, self.value))
        mask = None if hidden is None else ~hidden[:, None, None, :]
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))


class TiedAttention(SelfAttention):
    """vec(y) = Σ_h (P_h ⊗ W_h) vec(x) + 1 ⊗ b, P_h = softmax(x M_h xᵀ): the parameters of the native layer.

    M_h = Q_hᵀ K_h / √(d / heads) and W_h = O_h V_h, tensors (heads, d, d), are made from them in every call.
    """

    def __init__(self, native: SelfAttention) -> None:
        nn.Module.__init__(self)
        self.heads, self.causal = native.heads, native.causal
        for name, part in native.named_children():
            self.add_module(name, part)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """(M, W), each (heads, d, d)."""
        q, k, v = (part.weight.unflatten(0, (self.heads, -1)) for part in (self.query, self.key, self.value))
        o = self.out.weight.unflatten(1, (self.heads, -1))  # (d, heads, d / heads)
        m = torch.einsum("hri, hrj -> hij", q, k) / math.sqrt(q.shape[1])
        return m, torch.einsum("ehr, hrj -> hej", o, v)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        m, w = self.tensors()
        scores = torch.einsum("bid, hde, bje -> bhij", x, m, x)
        if hidden is not None:
            scores = scores.masked_fill(hidden[:, None, None, :], -math.inf)
        if self.causal:
            n = x.shape[1]
            scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -math.inf)
        return torch.einsum("bhij, hed, bjd -> bie", scores.softmax(-1), w, x) + self.out.bias


class PositionMap(nn.Module):
    """y = A x + b over all positions: (B, n, d) → (B, n, d'), A of tiles (d', d) that are all parameters."""

    def __init__(self, native: nn.Linear, positions: int, kind: str) -> None:
        super().__init__()
        bias = None if native.bias is None else native.bias.detach().repeat(positions)
        self.positions = positions
        self.matrix = Linear(tiled(native.weight, positions, kind), bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix(x.flatten(1)).unflatten(1, (self.positions, -1))


class FreeAttention(SelfAttention):
    """Query, key, value and output matrices over all positions at once, each entry its own parameter.

    regime "untied": block diagonal, a projection of its own for every position; "triangular": all tiles where a
    position reads itself or earlier ones, zero at first off the diagonal; causal attention only, since the
    matrix of the others is not triangular.
    """

    def __init__(self, native: SelfAttention, positions: int, regime: str) -> None:
        nn.Module.__init__(self)
        if regime == "triangular" and not native.causal:
            raise ShapeError(
                "attention: a triangular form was asked for, but only causal attention has one; "
                "use the regime 'untied'"
            )
        self.heads, self.causal = native.heads, native.causal
        kind = "diagonal" if regime == "untied" else "lower"
        for name, part in native.named_children():
            self.add_module(name, PositionMap(part, positions, kind))
