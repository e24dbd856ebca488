"""No tensor is made on another device than those given: on "meta", which any machine has and no other may meet."""

import copy

import pytest
import torch

import onematrix as om
from onematrix.experiments.compile_cases import cases
from onematrix.structures.tree import map_tensors
from structure_cases import ALL, weights

CASES = cases(8)


def on_meta(*tensors):
    assert all(t is None or t.device.type == "meta" for t in tensors)


@pytest.mark.parametrize("a", ALL)
def test_products_and_gradients_stay_on_the_device(a):
    moved = map_tensors(a, lambda t: t.to("meta").requires_grad_(t.is_floating_point()))
    x, y = (torch.empty(2, 3, n, dtype=torch.float64, device="meta").requires_grad_() for n in a.shape[::-1])
    found = [moved.matmul(x), moved.rmatmul(y)]
    on_meta(*found)
    assert [f.shape for f in found] == [(2, 3, n) for n in a.shape]
    if found[0].requires_grad:
        on_meta(*torch.autograd.grad(sum(f.sum() for f in found), [x, y, *weights(moved)], allow_unused=True))


@pytest.mark.parametrize("place", range(len(CASES)))
def test_compiled_programs_stay_on_the_device(place):
    torch.manual_seed(0)
    case = CASES[place]()
    module = om.compile(case.program, *case.inputs, measure=False, prove=False)
    moved = copy.deepcopy(module).to("meta")
    outputs = moved(*(x.to("meta") for x in case.inputs))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    on_meta(*outputs)
    on_meta(*torch.autograd.grad(outputs[0].sum(), list(moved.parameters()), allow_unused=True))
