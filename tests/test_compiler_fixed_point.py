"""The implicit gradient of a fixed point: equal to that through all rounds once they have converged."""

import pytest
import torch

import onematrix as om
from onematrix.compiler.pipeline import lower
from onematrix.networks.examples import examples
from onematrix.structures.dense import Dense
from test_compiler_module import random_numbers, same

FIXED = examples(torch.Generator().manual_seed(0))["fixed_point"]


def two_parts():
    """z = tanh(W z + u), u = sin(V z + x): two parts that need each other."""
    g = torch.Generator().manual_seed(1)

    def dense(m, n):
        return Dense(0.3 * torch.randn(m, n, generator=g, dtype=torch.float64))

    parts = {"x": 2, "z": 3, "u": 2}
    G = om.BlockMatrix(
        {("z", "z"): dense(3, 3), ("z", "u"): dense(3, 2), ("u", "z"): dense(2, 3), ("u", "x"): dense(2, 2)},
        parts,
    )
    step = om.Step(G, activations={"z": "tanh", "u": "sin"})
    return om.Program(om.Loop(step, until=1e-13, at_most=500), ["x"], ["z", "u"])


@pytest.mark.parametrize("program", [FIXED, two_parts()], ids=["one part", "two parts"])
def test_gradients_are_those_of_the_converged_rounds(program):
    ours, theirs = om.compile(program, implicit=True), om.compile(program)
    assert ours.form.implicit
    (x,) = random_numbers(program)
    slopes = []
    for module in (ours, theirs):
        given = x.clone().requires_grad_()
        out = module(given)
        outputs = out if isinstance(out, tuple) else (out,)
        same(outputs, theirs(x) if isinstance(theirs(x), tuple) else (theirs(x),), rtol=1e-9, atol=1e-9)
        total = sum((o.sin() * torch.arange(1.0, 1 + o.shape[1])).sum() for o in outputs)
        slopes.append(torch.autograd.grad(total, [given, *module.parameters()]))
    same(slopes[0], slopes[1], rtol=1e-6, atol=1e-8)


def test_memory_does_not_grow_with_the_rounds():
    """The graph of the implicit form holds two evaluations of the body, that of the rounds all of them."""

    def nodes(module):
        (x,) = random_numbers(FIXED)
        seen, stack = set(), [module(x).grad_fn]
        while stack:
            node = stack.pop()
            if node is not None and node not in seen:
                seen.add(node)
                stack += [inner for inner, _ in node.next_functions]
        return len(seen)

    assert nodes(om.compile(FIXED, implicit=True)) < 40 < nodes(om.compile(FIXED))


def test_values_without_gradients_are_the_same():
    module = om.compile(FIXED, implicit=True)
    (x,) = random_numbers(FIXED)
    with torch.no_grad():
        same(module(x), om.interpret(lower(FIXED), x), rtol=1e-9, atol=1e-9)
