"""The last state of a dense recurrence alone, some of its features, and one that starts at zero."""

import itertools

import pytest
import torch

from onematrix.errors import ShapeError
from onematrix.kernels.dense_loop import run_dense_loop
from test_kernels_dense import gradients, literal, tensors

SLICES = ((2, "tanh"), (3, "relu"), (2, "softmax"), (3, "gelu"), (2, "identity"))
WIDTH = 12
CASES = [
    *itertools.product(
        [(3, 2), (1, 2), (5, 6), (2, 0)], [None, (2, 5), (5, 12)], [False, True], [False, True]
    )
]


@pytest.mark.parametrize(("sizes", "read", "zero", "reverse"), CASES)
@pytest.mark.parametrize(("shared", "ticks"), [(False, None), (True, 4)])
def test_the_last_state_is_that_of_the_definition(sizes, read, zero, reverse, shared, ticks):
    length, batch = sizes
    given = tensors(length, batch, WIDTH, shared and batch > 0)
    if zero:
        given[2] = torch.zeros_like(given[2]).requires_grad_()
    options = {"ticks": ticks, "after": "hold", "reverse": reverse}
    expected = literal(*given, SLICES, **options)[1][:, slice(*(read or (None, None)))]
    options |= {"zero": zero, "read": read, "last_only": True}
    none, last = run_dense_loop(*given, SLICES, **options)
    assert none.shape == (0, batch, WIDTH)
    torch.testing.assert_close(last, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients([last], given), gradients([expected], given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        none, last = run_dense_loop(*given, SLICES, **options)
    assert none.shape == (0, batch, WIDTH)
    assert last.is_contiguous()
    torch.testing.assert_close(last, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_all_states_from_zero_and_some_features_of_the_last(reverse):
    given = tensors(4, 3, WIDTH)
    given[2] = torch.zeros_like(given[2]).requires_grad_()
    expected = literal(*given, SLICES, reverse=reverse)
    expected = [expected[0], expected[1][:, 2:5]]
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            ours = run_dense_loop(*given, SLICES, zero=True, read=(2, 5), reverse=reverse)
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        if grad:
            for a, b in zip(gradients(ours, given), gradients(expected, given), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_second_derivatives_from_zero():
    given = tensors(3, 2, WIDTH)
    given[2] = torch.zeros_like(given[2]).requires_grad_()
    ours = run_dense_loop(*given, SLICES, zero=True, read=(2, 5), last_only=True)[1]
    theirs = literal(*given, SLICES)[1][:, 2:5]
    slopes = [torch.autograd.grad(v.pow(2).sum(), given[1], create_graph=True)[0] for v in (ours, theirs)]
    second = [torch.autograd.grad(s.pow(2).sum(), given[:2]) for s in slopes]
    for a, b in zip(*second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_under_a_mask_and_under_compile():
    given = [t.detach() for t in tensors(4, 3, WIDTH)]
    valid = torch.tensor([[True, False, True], [True, True, False], [False, True, True], [True] * 3])
    expected = literal(*given, SLICES, valid=valid)[1][:, 2:5]
    last = run_dense_loop(*given, SLICES, valid=valid, read=(2, 5), last_only=True)[1]
    torch.testing.assert_close(last, expected, rtol=1e-12, atol=1e-12)
    given[2].zero_()

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return run_dense_loop(*tensors, SLICES, zero=True, read=(2, 5), last_only=True)[1]

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*given), literal(*given, SLICES)[1][:, 2:5], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("read", [(1, 5), (5, 5), (5, 2), (0, 13)])
def test_features_that_are_no_slices_are_refused(read):
    with pytest.raises(ShapeError, match=r"read= between two of \[0, 2, 5, 7, 10, 12\] needed, got"):
        run_dense_loop(*tensors(2, 1, WIDTH), SLICES, read=read, last_only=True)
