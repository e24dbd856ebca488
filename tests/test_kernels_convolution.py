"""Convolutions by FFT and by shifts against the definition written out tap by tap, in float64."""

import pytest
import torch
from torch.testing import assert_close

from onematrix.errors import ShapeError
from onematrix.kernels.convolution_shifted import shifted_convolution
from onematrix.kernels.convolution_spectral import spectral_convolution
from structure_cases import near, normal


def literal(x, w, bias, padding, dilation, groups):
    """Output by output, tap by tap."""
    (batch, _, length), (outputs, inner, taps) = x.shape, w.shape
    count = length + sum(padding) - dilation * (taps - 1)
    y = torch.zeros(batch, outputs, count, dtype=torch.float64)
    for o in range(outputs):
        first = o // (outputs // groups) * inner
        for i in range(count):
            for a in range(taps):
                j = i + a * dilation - padding[0]
                if 0 <= j < length:
                    y[:, o, i] = y[:, o, i] + (x[:, first : first + inner, j] * w[o, :, a]).sum(-1)
        y[:, o] = y[:, o] + (0 if bias is None else bias[o])
    return y


CASES = [  # batch, channels, length, outputs, groups, taps, padding, dilation, bias
    (2, 3, 7, 3, 3, 7, (6, 0), 1, True),
    (2, 3, 8, 3, 3, 3, (1, 1), 1, False),
    (1, 4, 9, 4, 4, 2, (0, 0), 3, True),
    (2, 2, 5, 2, 2, 9, (4, 4), 1, False),
    (1, 1, 1, 1, 1, 1, (0, 0), 1, True),
    (2, 2, 6, 2, 2, 2, (5, 3), 2, False),
    (2, 2, 6, 2, 2, 1, (2, 0), 1, True),
]
MIXED = [
    (2, 4, 6, 6, 2, 3, (1, 2), 1, True),
    (1, 3, 9, 2, 1, 4, (0, 3), 2, False),
    (2, 2, 5, 4, 2, 5, (4, 0), 1, False),  # two outputs per channel
]


def build(case):
    batch, channels, length, outputs, groups, taps, _, _, biased = case
    x = normal(batch, channels, length).requires_grad_()
    w = normal(outputs, channels // groups, taps, seed=2).requires_grad_()
    return x, w, normal(outputs, seed=3).requires_grad_() if biased else None


def shifted(x, w, bias, padding, dilation, groups):
    return shifted_convolution(x, w, bias, padding, dilation)


KERNELS = [
    *((spectral_convolution, case) for case in CASES + MIXED),
    *((shifted, case) for case in CASES),
]
every = pytest.mark.parametrize(("kernel", "case"), KERNELS)


@every
def test_outputs_gradients_and_their_gradients_are_the_definition(kernel, case):
    x, w, bias = build(case)
    options = (case[6], case[7], case[4])
    free = [t for t in (x, w, bias) if t is not None]
    outs = [f(x, w, bias, *options) for f in (kernel, literal)]
    near(*outs)
    weight = normal(*outs[1].shape, seed=5)
    near(*(torch.autograd.grad((y * weight).sum(), free, retain_graph=True) for y in outs))
    slopes = [torch.autograd.grad((y**3 * weight).sum(), free, create_graph=True) for y in outs]
    near(*slopes)
    near(*(torch.autograd.grad(sum((g**2).sum() for g in s), free, materialize_grads=True) for s in slopes))


@every
def test_transforms_of_functions(kernel, case):
    x, w, bias = (None if t is None else t.detach() for t in build(case))
    options = (case[6], case[7], case[4])

    def forms(x, w):
        return kernel(x, w, bias, *options), torch.conv1d(
            torch.nn.functional.pad(x, options[0]), w, bias, 1, 0, options[1], options[2]
        )

    tangents = (normal(*x.shape, seed=7), normal(*w.shape, seed=8))
    for ours, theirs in torch.func.jvp(forms, (x, w), tangents):
        near(ours, theirs)
    near(*torch.func.vmap(forms, (None, 0))(x, torch.stack([w, 2 * w])))
    near(*torch.func.jacrev(forms, argnums=1)(x, w))


@pytest.mark.parametrize("kernel", [spectral_convolution, shifted])
def test_one_input_alone_takes_gradients_and_nothing_is_written(kernel):
    case = CASES[0]
    x, w, _ = build(case)
    options = (case[6], case[7], case[4])
    kept = x.detach().clone(), w.detach().clone()
    for free in (x, w):
        other = {id(t): t if t is free else t.detach() for t in (x, w)}
        ours, theirs = (
            torch.autograd.grad(f(other[id(x)], other[id(w)], None, *options).sum(), free)[0]
            for f in (kernel, literal)
        )
        near(ours, theirs)
    assert torch.equal(x, kept[0])
    assert torch.equal(w, kept[1])


@pytest.mark.parametrize("kernel", [spectral_convolution, shifted])
def test_no_samples(kernel):
    x, w = normal(0, 3, 8).requires_grad_(), normal(3, 1, 4, seed=2).requires_grad_()
    y = kernel(x, w, None, (3, 0), 1, 3)
    assert y.shape == (0, 3, 8)
    gradients = torch.autograd.grad(y.sum(), (x, w))
    assert not gradients[1].any()


@pytest.mark.parametrize("kernel", [spectral_convolution, shifted])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_dtypes(kernel, dtype):
    x, w = (
        normal(2, 4, 50, dtype=dtype).requires_grad_(),
        normal(4, 1, 5, seed=2, dtype=dtype).requires_grad_(),
    )
    y = kernel(x, w, None, (2, 2), 1, 4)
    assert y.dtype == dtype
    wide = torch.conv1d(x.double(), w.double(), None, 1, 2, 1, 4)
    near(y.double(), wide, dtype) if dtype == torch.float32 else assert_close(
        y.double(), wide, rtol=0, atol=0.1
    )
    assert {g.dtype for g in torch.autograd.grad(y.sum(), (x, w))} == {dtype}


@pytest.mark.parametrize("kernel", [spectral_convolution, shifted])
def test_one_graph_under_compile(kernel):
    torch._dynamo.reset()
    x, w = normal(2, 3, 20).requires_grad_(), normal(3, 1, 4, seed=2).requires_grad_()
    compiled = torch.compile(
        lambda x, w: kernel(x, w, None, (3, 0), 1, 3), fullgraph=True, backend="aot_eager"
    )
    near(compiled(x, w), kernel(x, w, None, (3, 0), 1, 3))
    near(
        *(
            torch.autograd.grad((f(x, w) ** 2).sum(), (x, w))
            for f in (compiled, lambda x, w: kernel(x, w, None, (3, 0), 1, 3))
        )
    )


def test_the_work_of_a_long_kernel_does_not_grow_with_it():
    from test_structures_spectral import Transforms

    seen = []
    for taps in (5, 60):
        with Transforms() as transforms, torch.no_grad():
            spectral_convolution(normal(2, 3, 100), normal(3, 1, taps, seed=2), None, (4, 0), 1, 3)
        seen.append(transforms)
    assert seen[0].sizes == seen[1].sizes == [108] * (2 * 3 + 3 + 2 * 3)
    assert seen[0].products == seen[1].products == 2 * 3 * 55


REFUSED = [
    (normal(2, 3, 8), normal(3, 2, 4), (0, 0), r"got \(2, 3, 8\), \(3, 2, 4\) and \(0, 0\)"),
    (normal(2, 3, 8), normal(3, 1, 4), (-1, 0), r"got \(2, 3, 8\), \(3, 1, 4\) and \(-1, 0\)"),
    (normal(3, 8), normal(3, 1, 4), (0, 0), r"got \(3, 8\), \(3, 1, 4\)"),
    (normal(2, 3, 8), normal(3, 1, 12), (1, 2), r"spans 12 places does not fit into 8 with padding \(1, 2\)"),
]


@pytest.mark.parametrize(("x", "w", "padding", "message"), REFUSED)
@pytest.mark.parametrize("kernel", [spectral_convolution, shifted])
def test_what_does_not_fit_is_refused(kernel, x, w, padding, message):
    with pytest.raises(ShapeError, match=message):
        kernel(x, w, None, padding, 1, 3)
