"""Attention as the literature writes it: Σ_h P_h ⊗ W_h for given weights, third-order tensors before the softmax.

Y. Zhu, arXiv:2506.01966v3. Column convention: y = G x, the tokens one below the other. No biases.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onematrix.errors import ShapeError


def attention_matrix(weights: Tensor, values: Tensor, outputs: Tensor) -> Tensor:
    """G = Σ_h P_h ⊗ (W_o^h W_v^h): (T d, S d), exact for the weights P it was made for; they depend on x.

    weights P: (heads, T, S), after the softmax. values W_v: (heads, e, d). outputs W_o: (heads, d, e).
    A causal mask makes every P_h lower triangular, and with it G block lower triangular.
    Raises ShapeError where heads or widths differ. 1 multiply-add per entry of every term.

    >>> one = torch.ones(1, 1, 1, dtype=torch.float64)
    >>> attention_matrix(torch.eye(2, dtype=torch.float64)[None], one, 3 * one)
    tensor([[3., 0.],
            [0., 3.]], dtype=torch.float64)
    """
    _check_heads("attention_matrix: W_v and W_o", values, outputs.mT)
    if weights.dim() != 3 or len(weights) != len(values):
        raise ShapeError(
            f"attention_matrix: weights ({len(values)}, T, S) were needed, got {tuple(weights.shape)}",
            got=tuple(weights.shape),
        )
    maps = outputs @ values
    terms = [torch.kron(p.contiguous(), w.contiguous()) for p, w in zip(weights, maps, strict=True)]
    return torch.stack(terms).sum(0)


@dataclass(frozen=True, eq=False)
class ScoreFactors:
    """CP form M[h, a, b] = Σ_r head[h, r] query[a, r] key[b, r] of the score tensor, r = 1 … heads · e."""

    head: Tensor  # (heads, R), 1 where term r belongs to head h, ÷ √e
    query: Tensor  # (d, R)
    key: Tensor  # (d, R)

    def tensor(self) -> Tensor:
        """M: (heads, d, d)."""
        return torch.einsum("hr,ar,br->hab", self.head, self.query, self.key)


def score_tensor(queries: Tensor, keys: Tensor) -> Tensor:
    """M_h = W_q^hᵀ W_k^h ÷ √e: (heads, d, d); the scores before the softmax are x_i M_h x_jᵀ.

    queries, keys: (heads, e, d). (W_q, W_k) → (G W_q, G⁻ᵀ W_k) leaves M as it is: the weights are not unique.
    Raises ShapeError where they differ in shape.
    """
    _check_heads("score_tensor: W_q and W_k", queries, keys)
    return torch.einsum("hea,heb->hab", queries, keys) / math.sqrt(queries.shape[1])


def score_factors(queries: Tensor, keys: Tensor) -> ScoreFactors:
    """The CP form of the score tensor, of rank at most heads · e = d. Raises ShapeError as `score_tensor`."""
    _check_heads("score_factors: W_q and W_k", queries, keys)
    heads, e, d = queries.shape
    belongs = torch.eye(heads, dtype=queries.dtype, device=queries.device).repeat_interleave(e, dim=1)
    return ScoreFactors(belongs / e**0.5, queries.reshape(-1, d).mT, keys.reshape(-1, d).mT)


def _check_heads(who: str, a: Tensor, b: Tensor) -> None:
    if a.dim() != 3 or a.shape[:2] != b.shape[:2] or b.dim() != 3:
        raise ShapeError(
            f"{who} must share heads and width per head, got {tuple(a.shape)} and {tuple(b.shape)}",
            got=(tuple(a.shape), tuple(b.shape)),
        )
