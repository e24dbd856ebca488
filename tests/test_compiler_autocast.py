"""Under autocast products are narrow and sums as wide as torch makes them, in every form of the code."""

from dataclasses import fields

import pytest
import torch
from torch import nn

import onematrix as om
from onematrix.compiler.form import Form
from onematrix.compiler.module import Compiled
from onematrix.compiler.pipeline import lower
from onematrix.errors import DTypeError
from onematrix.kernels.dense_loop import run_dense_loop
from onematrix.kernels.elementwise_loop import ElementwiseLoop, run_elementwise_loop
from onematrix.kernels.product_sum import add_product
from onematrix.networks.examples import examples
from onematrix.programs.interpreter import interpret
from onematrix.programs.substitution import replace_structures
from onematrix.structures.tree import map_tensors
from test_compiler_module import random_numbers
from test_programs_random import as_tuple

NETWORKS = examples(torch.Generator().manual_seed(0))
LITERAL = Form(**{f.name: False for f in fields(Form)})
NARROW = {"lstm"}  # torch's own cell gives the narrow dtype


def in_single(program):
    made = {}

    def single(t):
        return made.setdefault(id(t), nn.Parameter(t.detach().float())) if t.is_floating_point() else t

    return replace_structures(program, {id(s): map_tensors(s, single) for s in program.structures})


@pytest.mark.parametrize("form", [Form(), LITERAL], ids=["plain", "literal"])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_networks_under_autocast_are_as_exact_as_the_interpreter(name, form):
    program = in_single(NETWORKS[name])
    module = Compiled(program, lower(program), form)
    ins = [x.requires_grad_() for x in random_numbers(program, dtype=torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = as_tuple(module(*ins)), as_tuple(interpret(program, *ins))
        frozen = as_tuple(module.freeze()(*ins))
    for a, b, c, exact in zip(ours, theirs, frozen, as_tuple(interpret(program, *ins)), strict=True):
        errors = [float((v.float() - exact).abs().max()) for v in (a, b, c)]
        assert max(errors) <= max(0.02, 2 * errors[1])
        assert errors[0] > 0, "nothing was narrow"
        assert a.dtype == c.dtype
        assert a.dtype == torch.promote_types(a.dtype, b.dtype) or (name in NARROW and form == Form())
    sum(o.float().sum() for o in ours).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())


def test_a_residual_stream_keeps_its_dtype_under_autocast():
    """x + W σ(V x) of numbers that bfloat16 cannot tell apart."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x):
            return x + self.outer(torch.relu(self.inner(x)))

    module, x = Residual(), 1000 + torch.rand(6, 4)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    compiled = om.compile(module, x, measure=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(x), module(x))
        assert torch.equal(compiled(x), x)


def test_loops_take_mixed_dtypes_under_autocast_alone():
    loop = ElementwiseLoop(1, 0, 1, (("add", 0, 1), ("scale", 2, 0.5)), outputs=(3,), carry=(3,))
    series, init = torch.randn(5, 2, 3).bfloat16(), torch.full((2, 3), 0.001)
    with pytest.raises(
        DTypeError, match=r"loop: one floating-point dtype needed for all, got \['torch.bfloat16', "
    ):
        run_elementwise_loop(loop, [series], [], [init])
    weight = torch.eye(3) / 2
    with pytest.raises(
        DTypeError, match=r"one dtype needed, got inputs torch.bfloat16, weight torch.float32"
    ):
        run_dense_loop(series, weight, init, ((3, "identity"),))
    with torch.autocast("cpu", torch.bfloat16):
        (states,), (final,) = run_elementwise_loop(loop, [series], [], [init])
        dense, _ = run_dense_loop(series.float(), weight, init, ((3, "identity"),))
    wanted, _ = run_elementwise_loop(loop, [series.float()], [], [init])
    assert states.dtype == final.dtype == dense.dtype == torch.float32
    assert torch.equal(states, wanted[0])
    state = init
    for a, s in zip(series.float(), dense, strict=True):
        state = a + state / 2
        assert (state - s).abs().max() < 0.02


@pytest.mark.parametrize("ratio", [1, -0.5])
def test_a_product_is_added_in_the_dtype_of_the_total(ratio):
    total, x, turned = torch.full((2, 4), 1001.0), torch.ones(2, 3), torch.ones(3, 4)
    assert torch.equal(add_product(total, x, turned, ratio), total + 3 * ratio)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(add_product(total, x, turned, ratio), total + 3 * ratio)
        assert torch.addmm(total, x, turned).dtype == torch.bfloat16
    meta = add_product(total.to("meta"), x.to("meta"), turned.to("meta"), ratio)
    assert meta.shape == (2, 4)
