"""Assembled matrices: the blocks where they belong, and their gradients, against torch.cat."""

import pytest
import torch

from onematrix.errors import ShapeError
from onematrix.kernels.assembled import assemble


def blocks(heights, widths, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return [
        [torch.randn(m, n, generator=g, dtype=dtype, requires_grad=True) for n in widths] for m in heights
    ]


def joined(rows):
    return torch.cat([torch.cat(list(row), 1) for row in rows], 0)


@pytest.mark.parametrize(("heights", "widths"), [([2], [3]), ([2, 1, 4], [3, 2]), ([0, 2], [1, 0, 2])])
def test_outputs_and_gradients_are_those_of_two_concatenations(heights, widths):
    rows = blocks(heights, widths)
    flat = [b for row in rows for b in row]
    weight = torch.randn(sum(heights), sum(widths), dtype=torch.float64)
    assert torch.equal(assemble(rows), joined(rows))
    ours, theirs = (torch.autograd.grad((f(rows).sin() * weight).sum(), flat) for f in (assemble, joined))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    with torch.no_grad():
        assert torch.equal(assemble(rows), joined(rows))


def test_it_can_be_differentiated_twice_mapped_and_traced():
    rows = blocks([2, 1], [2, 3])
    flat = tuple(b for row in rows for b in row)

    def cube(*bs):
        return assemble([bs[:2], bs[2:]]).pow(3).sum()

    torch.autograd.gradgradcheck(cube, flat)
    jacobian = torch.func.jacrev(lambda b: assemble([[b, flat[1]], [flat[2], flat[3]]]))(flat[0].detach())
    assert float(jacobian.sum()) == 4
    _, slope = torch.func.jvp(lambda b: assemble([[b]]), (flat[0].detach(),), (torch.ones(2, 2).double(),))
    assert torch.equal(slope, torch.ones(2, 2).double())
    traced = torch.compile(lambda *bs: assemble([bs[:2], bs[2:]]) * 2, fullgraph=True, backend="eager")
    assert torch.equal(traced(*flat), 2 * joined(rows))


def test_blocks_that_leave_gaps_are_refused():
    one = torch.ones(1, 1)
    with pytest.raises(ShapeError, match=r"blocks that make a full matrix were needed, got \[\[\(1, 1\)\], "):
        assemble([[one], [torch.ones(1, 2)]])
