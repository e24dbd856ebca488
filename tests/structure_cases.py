"""Every structure there is, as instances: what the laws are checked on."""

import pytest
import torch
from torch import Tensor

from onematrix.structures import STRUCTURES, Structure
from onematrix.structures.algebra import (
    BlockDiagonal,
    HorizontalStack,
    Product,
    Sum,
    Transposed,
    VerticalStack,
)
from onematrix.structures.block_sparse import BlockSparse
from onematrix.structures.compressed import CSC, CSR
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Ones, Scaled
from onematrix.structures.low_rank import LowRank
from onematrix.structures.masked import Masked
from onematrix.structures.permutation import Permutation, Selection
from onematrix.structures.tree import layout, rebuild, unique_tensors

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def examples(cls: type[Structure]) -> list[Structure]:
    return list(cls.examples(generator()))


def nested() -> list[Structure]:
    """Structures in structures, with a shared tensor and the transposes whose product is another kernel."""
    csr, csc, masked = examples(CSR)[1], examples(CSC)[1], examples(Masked)[1]  # each 5×3 or 3×5
    low, tiles, diagonal = examples(LowRank)[1], examples(BlockSparse)[1], examples(Diagonal)[2]
    return [
        *(Transposed(a) for a in (csr, csc, masked, low, tiles, Selection(torch.tensor([0, 2, 2]), 4))),
        Product(csr, Transposed(csr)),
        Sum((low, Scaled(csr, -1, 3), Ones(5, 3))),
        Sum((Diagonal(torch.ones(3).double()), Permutation(torch.tensor([1, 2, 0])))),  # no entry in common
        BlockDiagonal((csr, diagonal, Transposed(tiles))),
        VerticalStack((masked, HorizontalStack((Identity(1), Ones(1, 2))))),
        Product(Permutation(torch.tensor([4, 2, 0, 1, 3])), Sum((csr, low))),
    ]


def case(name: str, number: int, a: Structure):
    return pytest.param(a, id=f"{name}-{number}-{a.shape[0]}x{a.shape[1]}")


EXAMPLES = [case(name, i, a) for name, cls in sorted(STRUCTURES.items()) for i, a in enumerate(examples(cls))]
NESTED = [case(f"nested_{a.name}", i, a) for i, a in enumerate(nested())]
ALL = EXAMPLES + NESTED
ONE_EACH = [case(name, 1, examples(cls)[1]) for name, cls in sorted(STRUCTURES.items())]

law = pytest.mark.parametrize("a", ALL)


def weights(a: Structure) -> list[Tensor]:
    return [t for t in unique_tensors([a]) if t.is_floating_point()]


def rebuilt(a: Structure, new: list[Tensor]) -> Structure:
    """The structure over other weights, as a module rebuilds it."""
    replacement = {id(old): t for old, t in zip(weights(a), new, strict=True)}
    tensors = unique_tensors([a])
    plan = layout(a, {id(t): i for i, t in enumerate(tensors)})
    return rebuild(plan, [replacement.get(id(t), t) for t in tensors])


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def near(actual: object, expected: object, dtype: torch.dtype = torch.float64) -> None:
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
