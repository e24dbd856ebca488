"""Derivatives of compiled programs beside the first reverse one: forward mode, second order, mapped over samples."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import onematrix as om
from onematrix.compiler.form import Form
from onematrix.compiler.module import Compiled
from onematrix.kernels.attention import attend
from onematrix.kernels.channels_last import channels_last
from onematrix.networks.examples import examples
from onematrix.programs.interpreter import interpret
from test_compiler_module import random_numbers, same
from test_programs_random import as_tuple

NETWORKS = examples(torch.Generator().manual_seed(0))
network = pytest.mark.parametrize("name", sorted(NETWORKS))
BY_DATA = {"fixed_point"}  # rounds depend on the data: no map over samples


def loss(outputs):
    return sum(o.sin().sum() for o in as_tuple(outputs))


@network
def test_forward_mode(name):
    module = om.compile(NETWORKS[name], prove=False)
    ins = tuple(random_numbers(module.program))
    ahead = tuple(x.cos() for x in ins)
    ours = jvp(lambda *x: as_tuple(module(*x)), ins, ahead)
    theirs = jvp(lambda *x: as_tuple(interpret(module.program, *x)), ins, ahead)
    for a, b in zip(ours, theirs, strict=True):
        same(a, b, rtol=1e-8, atol=1e-9)


@network
def test_second_derivatives(name):
    """Of inputs and parameters; torch's fast attention has none, its written-out form has."""
    module = om.compile(NETWORKS[name], prove=False)
    free = [*(x.requires_grad_() for x in random_numbers(module.program)), *module.parameters()]
    ins = free[: len(module.program.inputs)]
    found = []
    for run in (module, lambda *x: interpret(module.program, *x)):
        with sdpa_kernel(SDPBackend.MATH):
            slopes = torch.autograd.grad(loss(run(*ins)), free, create_graph=True, materialize_grads=True)
        total = sum(s.square().sum() for s in slopes)
        found.append(torch.autograd.grad(total, free, materialize_grads=True))
    same(*found, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["mlp", "sru_14", "elman", "attention", "encoder_layer"])
def test_hessians_by_forward_over_reverse(name):
    module = om.compile(NETWORKS[name], prove=False)
    first, *rest = random_numbers(module.program, batch=2, ticks=3)
    with sdpa_kernel(SDPBackend.MATH):
        ours = hessian(lambda x: loss(module(x, *rest)))(first)
    same(ours, hessian(lambda x: loss(interpret(module.program, x, *rest)))(first), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - BY_DATA))
def test_samples_and_ensembles_are_mapped(name):
    module = om.compile(NETWORKS[name], prove=False)
    ins = tuple(random_numbers(module.program))
    wanted = as_tuple(module(*ins))
    rows = vmap(lambda *row: tuple(o[0] for o in as_tuple(module(*(x[None] for x in row)))))(*ins)
    same(rows, wanted)
    parameters, buffers = stack_module_state([module, module])
    both = vmap(lambda p, b: functional_call(module, (p, b), ins))(parameters, buffers)
    for ours, theirs in zip(as_tuple(both), wanted, strict=True):
        same(ours, torch.stack([theirs, theirs]))


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - BY_DATA))
def test_gradients_of_each_sample(name):
    module = om.compile(NETWORKS[name], prove=False)
    ins = tuple(random_numbers(module.program))
    parameters = {n: p.detach() for n, p in module.named_parameters()}

    def of_one(p, *row):
        return loss(functional_call(module, p, tuple(x[None] for x in row)))

    mapped = vmap(grad(of_one), (None, *[0] * len(ins)))(parameters, *ins)
    for k in range(3):
        row = [x[k : k + 1] for x in ins]
        theirs = torch.autograd.grad(
            loss(interpret(module.program, *row)), list(module.parameters()), materialize_grads=True
        )
        same(tuple(mapped[n][k] for n in parameters), theirs, rtol=1e-8, atol=1e-9)


def test_images_with_channels_last_are_mapped():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).double()
    x = torch.randn(3, 3, 7, 7, dtype=torch.float64)
    plain = om.compile(module, x, measure=False)
    last = Compiled(plain.program, plain.lowered, Form(channels_first=False))
    same(vmap(lambda row: last(row[None])[0])(x), module(x))
    laid = channels_last(x)
    assert laid.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(laid, x)


MASKS = {
    "free": {},
    "causal": {"is_causal": True},
    "boolean": {"attn_mask": torch.ones(4, 4, dtype=torch.bool).tril(1)},
    "added": {"attn_mask": torch.arange(16.0, dtype=torch.float64).reshape(4, 4)},
}


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("options", MASKS.values(), ids=MASKS)
def test_attention_in_forward_mode_is_that_of_differences(options, scale):
    """By (f(x + h v) − f(x − h v)) ÷ 2h of torch's own kernel."""
    g = torch.Generator().manual_seed(0)
    ins, ahead = torch.randn(2, 3, 2, 3, 4, 5, generator=g, dtype=torch.float64)
    h = 1e-5

    def run(*x):
        return attend(*x, **options, scale=scale)

    value, slope = jvp(run, tuple(ins), tuple(ahead))
    same(value, run(*ins))
    same(slope, (run(*(ins + h * ahead)) - run(*(ins - h * ahead))) / (2 * h), rtol=1e-6, atol=1e-7)
