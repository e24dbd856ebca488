"""Layer norm and RMS norm that are written out: found, exact, and not where they only look so."""

import pytest
import torch
from torch import nn

import onematrix as om
from onematrix.compiler.form import Form
from onematrix.compiler.module import Compiled
from structure_cases import normal


def mean(x):
    return x.mean(-1, keepdim=True)


def centred(x):
    return x - mean(x)


WRITTEN = {
    "rms": (lambda x: x * torch.rsqrt(mean(x**2) + 1e-6), "rms_norm"),
    "rms, other way round": (lambda x: torch.rsqrt(mean(x.pow(2)) + 1e-3) * x, "rms_norm"),
    "rms, divided": (lambda x: x / torch.sqrt(mean(x.square()) + 0.1), "rms_norm"),
    "layer": (lambda x: centred(x) / torch.sqrt(mean(centred(x) ** 2) + 1e-5), "layer_norm"),
    "layer by variance": (
        lambda x: centred(x) * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5),
        "layer_norm",
    ),
    "rms of what is centred and read elsewhere": (
        lambda x: (lambda c: c * torch.rsqrt(mean(c**2) + 1e-5) + 2 * c)(centred(x)),
        "rms_norm",
    ),
}
OTHERS = {
    "unbiased variance": lambda x: centred(x) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5),
    "another mean": lambda x: x * torch.rsqrt(x.mean(1, keepdim=True) ** 2 + 1e-6),
    "mean over the other axis": lambda x: x * torch.rsqrt((x**2).mean(1, keepdim=True) + 1e-6),
    "the square of another": lambda x: x * torch.rsqrt(mean((2 * x + 1) ** 2) + 1e-6),
    "a root that is read twice": lambda x: (lambda r: x * r + r)(torch.rsqrt(mean(x**2) + 1e-6)),
    "turned over": lambda x: torch.sqrt(mean(x**2) + 1e-6) * x,
}


class Written(nn.Module):
    def __init__(self, function, scaled=True):
        super().__init__()
        self.function, self.linear = function, nn.Linear(6, 6)
        self.scale, self.shift = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.scaled = scaled

    def forward(self, x):
        y = self.function(self.linear(x))
        return y * self.scale + self.shift if self.scaled else y


def built(function, shape, scaled=True):
    torch.manual_seed(0)
    module = Written(function, scaled).double()
    return module, om.compile(module, normal(*shape), measure=False)


def same(compiled, module, x):
    x = x.clone().requires_grad_()
    outs = [f(x) for f in (compiled, module)]
    torch.testing.assert_close(*outs, rtol=1e-9, atol=1e-9)
    weight = normal(*outs[1].shape, seed=3)
    free = [x, *(p for p in module.parameters())]
    slopes = [torch.autograd.grad((y * weight).sum(), free, allow_unused=True) for y in outs]
    for ours, theirs in zip(*slopes, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("shape", [(3, 5, 6), (3, 6), (2, 4, 5, 6)], ids=str)
@pytest.mark.parametrize("scaled", [True, False])
def test_norms_written_out_are_torchs(name, shape, scaled):
    function, call = WRITTEN[name]
    module, compiled = built(function, shape, scaled)
    assert f"{call}(" in compiled.text
    assert "sqrt" not in compiled.text
    same(compiled, module, normal(*shape, seed=2))
    same(compiled, module, torch.ones(shape).double())
    plain = Compiled(compiled.program, compiled.lowered, Form(norms=False))
    assert f"{call}(" not in plain.text
    same(plain, module, normal(*shape, seed=2))


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_looks_like_a_norm_is_left_alone(name):
    module, compiled = built(OTHERS[name], (3, 5, 6))
    assert "_norm(" not in compiled.text
    same(compiled, module, normal(3, 5, 6, seed=2))


def test_any_length_and_no_samples():
    module, compiled = built(WRITTEN["layer"][0], (3, 5, 6))
    for shape in ((3, 1, 6), (2, 17, 6), (0, 5, 6)):
        torch.testing.assert_close(compiled(normal(*shape)), module(normal(*shape)))
