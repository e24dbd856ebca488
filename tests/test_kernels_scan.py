"""The linear scan against c ← a c + b tick by tick in float64: values, every kind of derivative, ranges."""

import pytest
import torch

from onematrix.errors import DTypeError, ShapeError
from onematrix.kernels.linear_scan import linear_scan


def literal(a, b, init, reverse=False):
    c, found = init, {}
    for t in reversed(range(len(a))) if reverse else range(len(a)):
        c = found[t] = a[t] * c + b[t]
    return torch.stack([found[t] for t in range(len(a))]) if len(a) else b * 0


def tensors(ticks, batch=2, n=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = ((ticks, batch, n), (ticks, batch, n), (batch, n))
    return [torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_() for s in shapes]


def gradients(output, given):
    weights = torch.arange(1, output.numel() + 1).reshape(output.shape).sin()
    return torch.autograd.grad((output * weights).sum(), given, materialize_grads=True)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ticks", [0, 1, 2, 3, 4, 7, 9, 12, 17])
def test_values_and_gradients(ticks, reverse):
    given = tensors(ticks)
    ours, theirs = linear_scan(*given, reverse), literal(*given, reverse)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    for a, b in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("batch", "n"), [(0, 3), (2, 0)])
def test_edge_sizes(batch, n):
    given = tensors(5, batch, n)
    assert linear_scan(*given).shape == (5, batch, n)
    assert [g.shape for g in gradients(linear_scan(*given), given)] == [t.shape for t in given]


@pytest.mark.parametrize("reverse", [False, True])
def test_derivatives_of_every_kind(reverse):
    given = tensors(5, 1, 2)

    def run(*t):
        return linear_scan(*t, reverse)

    assert torch.autograd.gradcheck(run, given, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, given)
    a, b, init = (t.detach() for t in given)
    many = torch.stack([a, -a])
    mapped = torch.func.vmap(lambda a: run(a, b, init))(many)
    torch.testing.assert_close(mapped, torch.stack([run(a, b, init) for a in many]))


def test_factors_of_any_size_keep_their_digits():
    """Products of 2,000 factors underflow, and some factors are 0: a division by them would be lost."""
    a, b, init = (t.detach() for t in tensors(2000, 1, 4))
    a = 0.5 * torch.tanh(a)
    a[100:110] = 0
    ours = linear_scan(a.float(), b.float(), init.float())
    assert a.float().cumprod(0)[-1].abs().max() == 0
    torch.testing.assert_close(ours.double(), literal(a, b, init), rtol=1e-5, atol=1e-6)


def test_compiles_into_one_graph():
    given = tensors(7)
    compiled = torch.compile(linear_scan, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), literal(*given))
    torch.testing.assert_close(gradients(compiled(*given), given), gradients(literal(*given), given))


def test_exports():
    class Net(torch.nn.Module):
        def forward(self, a, b, init):
            return linear_scan(a, b, init, reverse=True)

    given = tuple(t.detach() for t in tensors(7))
    exported = torch.export.export(Net(), given).module()
    torch.testing.assert_close(exported(*given), literal(*given, reverse=True))


def test_refusals():
    a, b, init = (t.detach() for t in tensors(4))
    with pytest.raises(ShapeError, match=r"got \[\(4, 2, 3\), \(3, 2, 3\), \(2, 3\)\]"):
        linear_scan(a, b[:3], init)
    with pytest.raises(DTypeError, match=r"got torch.float64, torch.float32 and torch.float64"):
        linear_scan(a, b.float(), init)
