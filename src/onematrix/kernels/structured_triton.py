"""The structured products that have Triton kernels, as one form among others."""

from collections.abc import Callable

from torch import Tensor

from onematrix.kernels.blast_triton import blast_product
from onematrix.kernels.monarch_triton import monarch_product
from onematrix.kernels.triton_language import refusal
from onematrix.structures.base import Structure
from onematrix.structures.blast import Blast
from onematrix.structures.monarch import Monarch

PRODUCTS: dict[type[Structure], Callable[..., Tensor]] = {Blast: blast_product, Monarch: monarch_product}


def multiply_by_triton(a: Structure, x: Tensor) -> Tensor:
    """x Aᵀ by the kernels of the structure's kind; the structure's own product inside transforms."""
    return PRODUCTS[type(a)](a, x, kernel="triton")


def triton_refusal(a: Structure) -> str | None:
    """Why there is no Triton product for a structure, or None.

    >>> import torch
    >>> from onematrix.structures.low_rank import LowRank
    >>> triton_refusal(LowRank(torch.ones(3, 1), torch.ones(1, 2)))
    'only blast, monarch have Triton kernels'
    """
    if type(a) not in PRODUCTS:
        return f"only {', '.join(cls.name for cls in PRODUCTS)} have Triton kernels"
    weight = a.any_weight()
    assert weight is not None, "both kinds store numbers"
    if weight.dtype.itemsize == 8:
        return "16 or 32 bits are needed, got float64"
    return refusal(weight)
