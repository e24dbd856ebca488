"""Rows that already lie one below the other are the tensor they were cut from; others are copied; gradients agree."""

import pytest
import torch

from onematrix.kernels import joined_rows as module
from onematrix.kernels.joined_rows import joined_rows

N, WIDTH = 4, 3


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Look at parts of any size."""
    monkeypatch.setattr(module, "MANY", 1)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


class Twice(torch.autograd.Function):
    """The tensor itself, whose gradient counts twice."""

    @staticmethod
    def forward(ctx, x):
        return x.view(x.shape)

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def of_a_detached(w):
    with torch.no_grad():
        parts = w.chunk(N)
    return [p.requires_grad_() for p in parts]


CUTS = {
    "chunks": lambda w: w.chunk(N),
    "sizes": lambda w: w.split([2] * N),
    "slices": lambda w: [w[2 * k : 2 * k + 2] for k in range(N)],
}
OTHERS = {
    "in another order": lambda w: w.chunk(N)[::-1],
    "the same rows": lambda w: [w[:2]] * N,
    "not all": lambda w: w.chunk(N)[1:],
    "overlapping": lambda w: [w[k : k + 2] for k in range(N)],
    "fewer columns": lambda w: [p[:, :2] for p in w.chunk(N)],
    "of different tensors": lambda w: [*w.chunk(N)[:-1], w.clone().chunk(N)[-1]],
    "own gradient": lambda w: [Twice.apply(p) for p in w.chunk(N)],
    "twice": lambda w: Twice.apply(w).chunk(N),
    "not differentiated": of_a_detached,
    "detached": lambda w: w.detach().chunk(N),
    "turned": lambda w: w.t().contiguous().t().chunk(N),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("leaf", [True, False])
def test_what_was_cut_from_one_tensor_is_that_tensor(cut, leaf):
    w = draw(2 * N, WIDTH)
    source = w if leaf else w.sin()
    assert joined_rows(cut(source)) is source
    assert joined_rows(cut(source.detach())).data_ptr() == source.data_ptr()
    with torch.no_grad():
        assert joined_rows(cut(source)) is source


@pytest.mark.parametrize("cut", [*CUTS.values(), *OTHERS.values()], ids=[*CUTS, *OTHERS])
def test_values_and_gradients_are_those_of_a_copy(cut):
    w = draw(2 * N, WIDTH)
    found = []
    for join in (joined_rows, lambda parts: torch.cat(list(parts))):
        parts = cut(w)
        rows = join(parts)
        total = (rows * torch.arange(rows.numel(), dtype=rows.dtype).reshape(rows.shape)).sum()
        wanted = [w, *parts] if parts[0].is_leaf and parts[0].requires_grad else [w]
        grads = torch.autograd.grad(total, wanted, allow_unused=True) if total.requires_grad else [None]
        found.append([rows, *grads])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0) if theirs is not None else None
        assert (ours is None) == (theirs is None)


def test_who_listens_to_the_gradient_of_a_part_hears_it():
    w = draw(2 * N, WIDTH)
    parts, heard = w.chunk(N), []
    parts[1].register_hook(heard.append)
    joined_rows(parts).sum().backward()
    assert len(heard) == 1


def test_small_parts_are_copied(monkeypatch):
    monkeypatch.setattr(module, "MANY", 2 * WIDTH + 1)
    w = draw(2 * N, WIDTH)
    assert joined_rows(w.chunk(N)) is not w
