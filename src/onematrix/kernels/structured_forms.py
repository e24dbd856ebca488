"""The ways one structured product can be computed; which is fastest depends on sizes, batch and machine.

Every form maps (structure, x) to x Aᵀ and is differentiable in x and in all numbers of the structure.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from onematrix.errors import ShapeError
from onematrix.kernels.structured_triton import multiply_by_triton, triton_refusal
from onematrix.structures.base import Structure
from onematrix.structures.blast import Blast
from onematrix.structures.block_kronecker import as_block_kronecker
from onematrix.structures.dense import Dense
from onematrix.structures.multilinear import contract

LARGEST = 1 << 25  # numbers of a matrix that is still written out


@dataclass(frozen=True)
class StructuredForm:
    """A way to compute: its name, the product, and why it is not for a structure (None: it is)."""

    name: str
    multiply: Callable[[Structure, Tensor], Tensor]
    refuse: Callable[[Structure], str | None]


def multiply_own(a: Structure, x: Tensor) -> Tensor:
    """The structure's own product: paired batched products, transforms, sparse loops."""
    return a.matmul(x)


def multiply_densified(a: Structure, x: Tensor) -> Tensor:
    """The matrix written out, then one dense product: m n numbers per call, any batch."""
    return functional.linear(x, a.to_dense(x.dtype, x.device))


def multiply_contracted(a: Structure, x: Tensor) -> Tensor:
    """The definition as one contraction, pair by pair in the order of fewest multiply-adds."""
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(a, Blast):
        blocks = rows.reshape(len(rows), a.blocks[1], a.right.shape[2])
        y = contract("kjq,jrq,rij,ipr->kip", blocks, a.right, a.coupling, a.left)
        return y.reshape(*x.shape[:-1], y.shape[1] * y.shape[2])
    general = as_block_kronecker(a)
    f = general.factors
    blocks = rows.reshape(len(rows), f.gamma, f.beta, f.alpha)
    y = contract("kgba,gfrda,febrg->kfed", blocks, general.right, general.left)
    return y.reshape(*x.shape[:-1], f.shape[0])


def _never(_: Structure) -> str | None:
    return None


def _too_large(a: Structure) -> str | None:
    if isinstance(a, Dense):
        return "it is dense"
    m, n = a.shape
    if isinstance(m, str) or isinstance(n, str):
        return "a named size is free"
    return None if m * n <= LARGEST else f"{m * n} numbers are too many to write out, at most {LARGEST}"


def _no_contraction(a: Structure) -> str | None:
    if not isinstance(a, Blast):
        try:
            as_block_kronecker(a)
        except ShapeError as error:
            return str(error)
    return None


OWN = StructuredForm("own", multiply_own, _never)
DENSIFIED = StructuredForm("densified", multiply_densified, _too_large)
CONTRACTED = StructuredForm("contracted", multiply_contracted, _no_contraction)
TRITON = StructuredForm("triton", multiply_by_triton, triton_refusal)
FORMS = {form.name: form for form in (OWN, DENSIFIED, CONTRACTED, TRITON)}


def forms_of(a: Structure) -> dict[str, StructuredForm]:
    """Name → form, of those that can compute this structure; its own comes first."""
    return {form.name: form for form in FORMS.values() if form.refuse(a) is None}
