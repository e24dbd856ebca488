"""A linear recurrence as one block lower bidiagonal system and its block lower triangular inverse.

Y. Zhu, arXiv:2506.01966v3. Column convention: the states h_1 … h_T stand below each other.
"""

import torch
from torch import Tensor

from onematrix.errors import ShapeError


def _check(weight: Tensor, ticks: int) -> None:
    if weight.dim() != 2 or weight.shape[0] != weight.shape[1] or ticks < 1:
        raise ShapeError(
            f"recurrence: a square W and at least 1 tick were needed, got {tuple(weight.shape)} and {ticks}",
            got=tuple(weight.shape),
        )


def delay(ticks: int) -> Tensor:
    """Z with Z[t, t − 1] = 1: (T, T), the lower shift; Z^T = 0.

    >>> delay(2)
    tensor([[0., 0.],
            [1., 0.]], dtype=torch.float64)
    """
    return torch.diag(torch.ones(ticks - 1, dtype=torch.float64), -1)


def recurrence_matrix(weight: Tensor, ticks: int) -> Tensor:
    """I − Z ⊗ W: (T n, T n), block lower bidiagonal; (I − Z ⊗ W) h = x says h_t = W h_(t−1) + x_t, h_0 = 0.

    An initial state enters as W h_0 in x_1. Raises ShapeError unless W is square and T ≥ 1.

    >>> recurrence_matrix(torch.tensor([[2.0]]), 2)
    tensor([[ 1.,  0.],
            [-2.,  1.]], dtype=torch.float64)
    """
    _check(weight, ticks)
    whole = torch.eye(ticks * len(weight), dtype=torch.float64)
    return whole - torch.kron(delay(ticks), weight.double().contiguous())


def recurrence_inverse(weight: Tensor, ticks: int) -> Tensor:
    """(I − Z ⊗ W)⁻¹ = Σ_(k<T) Z^k ⊗ W^k: block lower triangular Toeplitz, block (t, s) = W^(t−s), h = L x.

    The sum ends since Z^T = 0, so the inverse exists for every W. Raises as `recurrence_matrix`.

    >>> recurrence_inverse(torch.tensor([[2.0]]), 3)
    tensor([[1., 0., 0.],
            [2., 1., 0.],
            [4., 2., 1.]], dtype=torch.float64)
    """
    _check(weight, ticks)
    w, z = weight.double().contiguous(), delay(ticks)
    term_w = torch.eye(len(w), dtype=torch.float64)
    term_z = torch.eye(ticks, dtype=torch.float64)
    total = torch.kron(term_z, term_w)
    for _ in range(ticks - 1):
        term_z, term_w = z @ term_z, (w @ term_w).contiguous()
        total = total + torch.kron(term_z, term_w)
    return total
