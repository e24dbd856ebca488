"""om.Linear: a linear layer whose weight is any structure."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from onematrix.errors import ShapeError
from onematrix.programs.ownership import adopt, name_leaves, rebuild_all
from onematrix.structures.base import Structure
from onematrix.structures.dense import Dense
from onematrix.structures.tree import stored_numbers


class Linear(nn.Module):
    """y = x Aᵀ + b for a structure A: (m, n); x: (..., n) → y: (..., m).

    The structure's tensors become parameters (integers: buffers) named by field path; `structure` gives
    the current value. bias: None, a vector (m,), or True for zeros in the structure's dtype. product: how to
    compute (structure, x) → x Aᵀ, by default `structure.matmul`; `kernels.structured_choice` measures others.
    Raises ShapeError on a wrong width, DTypeError on a wrong dtype.

    >>> import onematrix as om
    >>> layer = om.Linear(om.fit(torch.eye(8), "low_rank", budget=0.25), bias=True)
    >>> sorted(layer.state_dict())
    ['bias', 'left', 'right']
    >>> layer(torch.ones(3, 8)).shape
    torch.Size([3, 8])
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        structure: Structure,
        bias: Tensor | bool | None = None,
        product: Callable[[Structure, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.product = product
        self._ownership = adopt(self, [structure], name_leaves([structure], [""]))
        self.register_parameter("bias", self._make_bias(structure, bias))

    @staticmethod
    def _make_bias(structure: Structure, bias: Tensor | bool | None) -> nn.Parameter | None:
        if bias is None or bias is False:
            return None
        m = structure.fixed_shape[0]
        if bias is True:
            weight = structure.any_weight()
            return nn.Parameter(torch.zeros(m) if weight is None else weight.new_zeros(m).detach())
        if bias.shape != (m,):
            raise ShapeError(f"Linear: bias must be ({m},), got {tuple(bias.shape)}", needed=m)
        return bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias.detach())

    @classmethod
    def from_torch(cls, linear: nn.Linear) -> Self:
        """The same layer as nn.Linear, sharing its parameters."""
        return cls(Dense(linear.weight), linear.bias)

    @property
    def structure(self) -> Structure:
        """A over the parameters as they are now."""
        return rebuild_all(self, self._ownership)[0]

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., n) → x Aᵀ + b: (..., m)."""
        a = self.structure
        y = a.matmul(x) if self.product is None else self.product(a, x)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Structure, sizes and stored numbers."""
        a = self.structure
        return (
            f"{a.name} {a.shape[0]}×{a.shape[1]}, {stored_numbers(a)} numbers, bias={self.bias is not None}"
        )
