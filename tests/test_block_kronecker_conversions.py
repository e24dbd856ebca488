"""One matrix as several members of the block-Kronecker family, over the same numbers."""

import pytest
import torch

from onematrix.errors import ShapeError
from onematrix.structures.block_kronecker import (
    FAMILY,
    BlockKronecker,
    as_block_kronecker,
    from_block_kronecker,
)
from onematrix.structures.block_tensor_train import BlockTensorTrain
from onematrix.structures.dense import Dense
from onematrix.structures.family_product import Factors, random_family
from onematrix.structures.kronecker import Kronecker
from onematrix.structures.low_rank import LowRank
from onematrix.structures.monarch import Monarch
from onematrix.structures.permutation import Permutation
from onematrix.structures.tensor_train import TensorTrain
from onematrix.structures.tree import leaves, stored_numbers
from structure_cases import generator, normal


def member(f: Factors) -> BlockKronecker:
    return BlockKronecker(*(t.double() for t in random_family(f, generator())))


def named():
    g = generator(3)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return [
        LowRank(draw(5, 2), draw(2, 6)),
        Kronecker(draw(2, 3), draw(4, 5)),
        TensorTrain((Dense(draw(2, 3 * 2)), Dense(draw(2 * 4, 5))), "2 4", "3 5"),
        Monarch(draw(2, 3, 2, 4), draw(4, 2, 2, 5)),
        BlockTensorTrain((Dense(draw(4 * 3 * 2, 5)), Dense(draw(3 * 2, 2 * 4))), "3 2", "5 4"),
        member(Factors(2, 3, 2, 3, 2, 2, 2)),
    ]


@pytest.mark.parametrize("a", named(), ids=lambda a: a.name)
def test_conversions_cost_nothing_and_lose_nothing(a):
    general = as_block_kronecker(a)
    assert (
        torch.equal(general.to_dense(), a.to_dense())
        or float((general.to_dense() - a.to_dense()).norm() / a.to_dense().norm()) < 1e-15
    )
    back = from_block_kronecker(general, type(a))
    assert stored_numbers(general) == stored_numbers(a) == stored_numbers(back)
    for (_, one), (_, two) in zip(leaves(a), leaves(back), strict=True):
        assert torch.equal(one, two)
        assert one.data_ptr() == two.data_ptr()
    assert {t.data_ptr() for _, t in leaves(general)} == {t.data_ptr() for _, t in leaves(a)}
    x = normal(3, a.fixed_shape[1])
    torch.testing.assert_close(general.matmul(x), a.matmul(x), rtol=1e-14, atol=1e-13)


def test_members_of_several_kinds_convert_between_them():
    monarch = named()[3]
    train = from_block_kronecker(as_block_kronecker(monarch), BlockTensorTrain)
    assert torch.equal(from_block_kronecker(as_block_kronecker(train), Monarch).left, monarch.left)
    torch.testing.assert_close(train.to_dense(), monarch.to_dense(), rtol=1e-15, atol=1e-15)
    product = named()[1]
    train = from_block_kronecker(as_block_kronecker(product), TensorTrain)
    assert train.ranks == (1, 1, 1)
    torch.testing.assert_close(train.to_dense(), product.to_dense(), rtol=1e-15, atol=1e-15)
    low = from_block_kronecker(as_block_kronecker(named()[0]), Monarch)
    torch.testing.assert_close(low.to_dense(), named()[0].to_dense(), rtol=1e-15, atol=1e-15)
    assert set(FAMILY) == {type(a) for a in named()}


def test_a_strided_monarch_is_a_permutation_of_this_one():
    """Two block-diagonal matrices and a transposition of the grid, as Monarch is first defined."""
    p, q, k = 3, 4, 5  # out: k blocks of p, strided; in: q blocks of k
    first, second = normal(q, k, 2), normal(k, p, q, seed=2)
    x = normal(q * 2)
    middle = torch.stack([first[g] @ x.view(q, 2)[g] for g in range(q)])  # (q, k)
    strided = torch.stack([second[f] @ middle[:, f] for f in range(k)], dim=1).flatten()  # (p, k)
    ours = Monarch(second[:, :, None].contiguous(), first[:, :, None].contiguous())
    order = torch.arange(p * k).view(k, p).mT.flatten()
    torch.testing.assert_close(Permutation(order).matmul(ours.matmul(x)), strided)


REFUSED = [
    (lambda: as_block_kronecker(Dense(normal(2, 2))), "dense is not of the block-Kronecker family"),
    (
        lambda: from_block_kronecker(member(Factors(4, 1, 1, 1, 6, 1, 2)), Dense),
        "dense is not of the block-Kronecker family",
    ),
    (
        lambda: from_block_kronecker(member(Factors(2, 3, 2, 3, 2, 2, 2)), Kronecker),
        "gamma, phi, rank must be 1, got gamma=2, phi=2, rank=2",
    ),
    (
        lambda: from_block_kronecker(member(Factors(3, 2, 1, 2, 4, 1, 3)), Monarch),
        "must be 1, got beta=2, delta=2",
    ),
    (
        lambda: from_block_kronecker(member(Factors(3, 1, 4, 1, 2, 5, 1)), LowRank),
        "must be 1, got gamma=4, phi=5",
    ),
    (
        lambda: from_block_kronecker(member(Factors(3, 1, 4, 1, 2, 5, 1)), TensorTrain),
        "must be 1, got gamma=4, phi=5",
    ),
    (
        lambda: from_block_kronecker(member(Factors(2, 3, 1, 3, 2, 1, 1)), BlockTensorTrain),
        "must be 1, got beta=3, delta=3",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_members_of_other_sizes_are_refused(make, message):
    with pytest.raises(ShapeError, match=message):
        make()
