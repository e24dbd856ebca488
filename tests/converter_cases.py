"""What the tests of converters share: modules from functions, and equality of a program and its module."""

import torch
from torch import nn

import onematrix as om
from onematrix.converters.conversion import convert

DOUBLE = torch.float64


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


class Of(nn.Module):
    """A function of one tensor as a module, over further modules or parameters."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function = function
        self.inner = nn.ModuleList(m for m in modules if isinstance(m, nn.Module))
        self.numbers = nn.ParameterList(m for m in modules if isinstance(m, torch.Tensor))

    def forward(self, x):
        return self.function(x, *self.inner, *self.numbers)


class OfTwo(Of):
    def forward(self, x, y):
        return self.function(x, y, *self.inner, *self.numbers)


def outputs_of(made):
    return made if isinstance(made, tuple | list) else (made,)


def same(ours, theirs, tolerance=1e-12):
    """Equal shapes, dtypes and, relative to the size of the whole tensor, numbers; nan where it is nan."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape or ours.numel() == theirs.numel()
    theirs = theirs.detach().reshape(ours.shape)
    ours = ours.detach()
    if not theirs.is_floating_point():
        assert torch.equal(ours, theirs)
        return
    plain = theirs.isfinite()
    assert torch.equal(ours.isfinite(), plain)
    assert torch.equal(ours[~plain].nan_to_num(7.0), theirs[~plain].nan_to_num(7.0))
    difference = (ours - theirs)[plain].double().norm() if plain.any() else torch.zeros(())
    assert float(difference) <= tolerance * max(float(theirs[plain].double().norm()), 1e-12)


def check(module, *inputs, opaque=(), literal=False, gradients=True, training=False, program=None, **options):
    """The program of a float64 module equals it, outputs ≤ 1e-12 and parameter gradients ≤ 1e-9, and round-trips."""
    module = module.double().train(training)
    if program is None:
        program = convert(module, *inputs, **options)
    assert {f.name for f in program.opaque().values()} == set(opaque)
    inputs = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    theirs = [t for t in outputs_of(module(*inputs)) if t is not None]
    ours = outputs_of(om.interpret(program, *inputs))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        same(a, b)
    if literal:
        for a, b in zip(outputs_of(om.interpret(program, *inputs, literal=True)), theirs, strict=True):
            same(a, b)
    if gradients:
        compare_gradients(module, inputs, ours, theirs)
    if not opaque:
        again = om.parse(program.text(), program.parameters)
        assert again == program
    return program


def compare_gradients(module, inputs, ours, theirs):
    """Gradients of one random functional of all outputs, relative to the largest of them."""
    real = [i for i, t in enumerate(theirs) if t.is_floating_point() and t.requires_grad]
    free = [*(x for x in inputs if x.requires_grad), *(p for p in module.parameters() if p.requires_grad)]
    if not real or not free:
        return
    weights = [normal(*theirs[i].shape, seed=i + 1) for i in real]
    totals = [
        sum((w.reshape(t[i].shape) * t[i]).sum() for w, i in zip(weights, real, strict=True))
        for t in (theirs, ours)
    ]
    wanted, got = (torch.autograd.grad(t, free, allow_unused=True, materialize_grads=True) for t in totals)
    scale = max(float(g.norm()) for g in wanted)
    for a, b in zip(got, wanted, strict=True):
        assert float((a - b).norm()) <= 1e-9 * float(b.norm()) + 1e-12 * scale
