"""Butterflies: the product of their factors, Fourier and Hadamard matrices, refusals."""

import itertools
import math

import pytest
import torch

from onematrix.errors import BudgetError, FitError, ShapeError
from onematrix.structures.base import relative_error
from onematrix.structures.butterfly import Butterfly
from onematrix.structures.dense import Dense
from onematrix.structures.tree import map_tensors, stored_numbers
from structure_cases import generator, normal


def factor(a, t, rows, columns):
    """F_t entry by entry: digits above t are still those of the input, digits below those of the output."""
    k = a.block
    count = len(rows)
    below, above = rows[:t], columns[t + 1 :]  # lower digits are done
    inner = (columns[t], k) if t == 0 else (k, columns[t])
    w = a.cores[t].weight.reshape(*below, *above[::-1], rows[t], k, *inner)
    w = w if t == 0 else w.transpose(-1, -2)  # (…, i, s', j, s)
    tall = [*above[::-1], rows[t], *below[::-1], k]
    wide = [*above[::-1], columns[t], *below[::-1], k]
    whole = torch.zeros(*tall, *wide, dtype=w.dtype)
    place = count - 1 - t
    for i in itertools.product(*map(range, tall)):
        for j, s in itertools.product(range(columns[t]), range(k)):
            source = (*i[:place], j, *i[place + 1 : -1], s)
            others = (*i[place + 1 : -1][::-1], *i[:place])
            whole[(*i, *source)] = w[(*others, i[place], i[-1], j, s)]
    return whole.reshape(math.prod(tall), math.prod(wide))


@pytest.mark.parametrize(
    ("rows", "columns", "block"),
    [((2, 2, 2), (2, 2, 2), 1), ((2, 2), (2, 2), 3), ((3, 2, 2), (2, 2, 4), 1), ((2, 3, 1), (1, 2, 2), 2)],
    ids=str,
)
def test_the_matrix_is_the_product_of_its_factors(rows, columns, block):
    m, n = math.prod(rows) * block, math.prod(columns) * block
    a = Butterfly.random(m, n, rows=rows, columns=columns, block=block, generator=generator())
    a = map_tensors(a, lambda t: t.double())
    product = torch.eye(n, dtype=torch.float64)
    for t in range(len(rows)):
        product = factor(a, t, rows, columns) @ product
    torch.testing.assert_close(a.to_dense(), product)
    torch.testing.assert_close(a.matmul(torch.eye(n).double()), product.mT)
    numbers = sum(math.prod(rows[: t + 1]) * math.prod(columns[t:]) * block**2 for t in range(len(rows)))
    assert stored_numbers(a) == a.multiply_adds() == numbers


def hadamard(n):
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < n:
        h = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), h)
    return h


def real_fourier(n):
    """x ↦ DFT(x) on complex numbers written as pairs (real, imaginary): (2 n, 2 n)."""
    w = torch.fft.fft(torch.eye(n, dtype=torch.complex128))
    return torch.stack([torch.stack([w.real, -w.imag], -1), torch.stack([w.imag, w.real], -1)], 1).reshape(
        2 * n, 2 * n
    )


def reverse_bits(n):
    bits = n.bit_length() - 1
    return torch.tensor([int(format(i, f"0{bits}b")[::-1], 2) for i in range(n)])


def test_the_hadamard_matrix_is_a_butterfly():
    for n in (4, 16, 64):
        found = Butterfly.fit(hadamard(n), block=1)
        assert found.error < 1e-14
        assert stored_numbers(found.structure) == 2 * n * (n.bit_length() - 1)
    assert Butterfly.random(64, 64, 0.2, generator()).block == 1  # 12/64 = 0.1875


@pytest.mark.parametrize("n", [8, 32])
def test_the_fourier_matrix_is_a_block_butterfly_of_its_bit_reversed_inputs(n):
    fourier = real_fourier(n)
    order = torch.stack([2 * reverse_bits(n), 2 * reverse_bits(n) + 1], 1).flatten()
    size = {"rows": (2,) * (n.bit_length() - 1), "columns": (2,) * (n.bit_length() - 1), "block": 2}
    assert Butterfly.fit(fourier[:, order].contiguous(), **size).error < 1e-14
    plain = Butterfly.fit(fourier, **size)
    assert plain.error > 0.4, "without the permutation it is none"
    assert plain.predicted == pytest.approx(relative_error(plain.structure, fourier), abs=1e-13)


def test_the_fit_is_within_its_bound_of_the_best_and_knows_its_error():
    """Every split of the digits into low and high is a grid of blocks of rank k: two such bounds from below."""
    target = normal(8, 8)
    found = Butterfly.fit(target, block=1)
    digits = target.reshape(2, 2, 2, 2, 2, 2)  # i3 i2 i1 j3 j2 j1
    tails = []
    for cut in (1, 2):  # the low `cut` digits of the inputs are mixed before the others
        low_i, high_i = list(range(2, 2 - cut, -1)), list(range(2 - cut, -1, -1))
        high_j, low_j = list(range(3, 6 - cut)), list(range(6 - cut, 6))
        blocks = digits.permute(*low_i, *high_j, *high_i, *low_j).reshape(8, -1, 2**cut)
        tails.append(float(torch.linalg.svdvals(blocks)[:, 1:].norm() / target.norm()))
    assert max(tails) <= found.error <= math.hypot(*tails) + 1e-12
    assert found.predicted == pytest.approx(found.error, abs=1e-13)


def test_members_come_back():
    for rows, columns, block in (((2, 2, 2), (2, 2, 2), 1), ((2, 2), (2, 2), 3), ((3, 2, 2), (2, 2, 4), 2)):
        size = {"rows": rows, "columns": columns, "block": block}
        m, n = math.prod(rows) * block, math.prod(columns) * block
        a = map_tensors(Butterfly.random(m, n, generator=generator(), **size), lambda t: t.double())
        assert Butterfly.fit(a.to_dense(), **size).error < 1e-13


def test_a_gram_lowers_the_weighted_error():
    target, x = normal(8, 8), normal(40, 8, seed=5) @ normal(8, 8, seed=6)
    plain = relative_error(Butterfly.fit(target, block=1).structure, target, x.mT @ x)
    found = Butterfly.fit(target, block=1, gram=x.mT @ x)
    assert found.predicted is None
    assert found.error < plain - 1e-2


def test_larger_budgets_take_larger_blocks():
    assert [Butterfly.random(64, 64, e, generator()).block for e in (0.2, 0.4, 0.6, 0.8)] == [1, 2, 4, 8]
    large = Butterfly.random(1024, 1024, 0.25, generator())  # one of eleven blocks, of which four are tried
    assert large.block == 16
    rates = Butterfly.random(64, 64, block=4, generator=generator()).learning_rate_scale()
    assert rates == {f"cores.{t}.weight": 64 / (4 * 8) for t in range(4)}


TWIDDLES = Dense(torch.ones(4, 2))
REFUSED = [
    (
        lambda: Butterfly((TWIDDLES, TWIDDLES), "2 2", "2 2", 0),
        r"butterfly\.block: at least 1 was needed, got 0",
    ),
    (
        lambda: Butterfly((Dense(torch.ones(8, 2)), Dense(torch.ones(4, 4))), "2 2", "2 2", 1),
        "cores for block 1 were needed, got block 2",
    ),
    (lambda: Butterfly((TWIDDLES,), "2 2", "2 2", 1), "got 1 cores, 2 row factors"),
    (lambda: Butterfly((TWIDDLES, Dense(torch.ones(3, 2))), "2 2", "2 2", 1), "core 1 is 3×2"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(ShapeError, match=message):
        make()


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((7, 8), {}, "butterfly 7×8: .* rows 7 is prime .* columns 8 = 2·4"),
        ((12, 8), {"block": 3}, r"block=3 does not divide both; usable: \[1, 2, 4\]"),
        ((12, 8), {"block": 3, "rows": (2, 2)}, r"block=3 does not divide both; usable: \[1, 2, 4\]"),
        ((8, 8), {"rows": (2, 2)}, r"rows=\(2, 2\) multiply to 4, the size is 8"),
        ((8, 8), {"columns": (2, 3)}, r"columns=\(2, 3\) multiply to 6, the size is 8"),
        ((8, 8), {"rows": (2, 4)}, r"as many digits on both sides were needed, got \(2, 4\) and \(2, 2, 2\)"),
        (
            (4, 1),
            {"rows": (2, 2), "columns": (1, 1), "budget": 1.0},
            "stores 6 numbers, more than the 4 of dense",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(shape, size, message):
    with pytest.raises(FitError, match=message):
        Butterfly.fit(normal(*shape), **size)


def test_a_budget_below_the_smallest_names_it_and_the_remedy_works():
    with pytest.raises(
        BudgetError, match=r"digits \(2, 2, 2, 2\) × \(2, 2, 2, 2\), block 1: 128 numbers"
    ) as caught:
        Butterfly.fit(normal(16, 16), 0.4)
    assert caught.value.smallest == 0.5
    assert stored_numbers(Butterfly.fit(normal(16, 16), 0.5).structure) == 128
