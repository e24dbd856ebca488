"""BlockMatrix.from_sequential2d against the forward of the literature, and against the faults known of it."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import onematrix as om
from onematrix.errors import ConversionError, ShapeError
from onematrix.programs.interpreter import interpret


def literal_sequential2d(blocks, xs):
    """The sum of block outputs per output, input-first lists, absent blocks adding nothing."""
    out = []
    for j in range(len(blocks)):
        terms = [blocks[i][j](xs[i]) for i in range(len(blocks)) if blocks[i][j] is not None]
        out.append(sum(terms) if terms else torch.zeros_like(xs[j]))
    return out


def test_a_sequential2d_is_its_block_matrix():
    torch.manual_seed(0)
    blocks = [
        [nn.Identity(), nn.Linear(4, 3).double(), None],
        [None, nn.Linear(3, 3).double(), nn.Linear(3, 2, bias=False).double()],
        [None, None, nn.Linear(2, 2).double()],
    ]
    G = om.BlockMatrix.from_sequential2d(blocks, names=["x", "h", "y"], sizes=[4, 3, 2])
    assert [key for key, _ in G if key[1] == "one"] == [("h", "one"), ("y", "one")]
    program = om.Program(om.Step(G), ["x", "h", "y"], ["x", "h", "y"])
    xs = [torch.randn(5, n, dtype=torch.float64, requires_grad=True) for n in (4, 3, 2)]
    kept = [x.detach().clone() for x in xs]
    ours, theirs = interpret(program, *xs), literal_sequential2d(blocks, xs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float64
        assert_close(a, b)
    assert ours[0] is not xs[0]
    assert all(torch.equal(a, b) for a, b in zip(xs, kept, strict=True))
    sum(o.sum() for o in ours).backward()
    assert blocks[1][2].weight.grad is not None


def test_a_sequential2d_that_does_not_fit_is_named():
    with pytest.raises(ShapeError, match=r"2 inputs need 2 outputs each, got \[1, 2\]"):
        om.BlockMatrix.from_sequential2d([[None], [None, None]])
    with pytest.raises(ShapeError, match=r"no block tells the size of \['x0', 'x1'\]; give sizes"):
        om.BlockMatrix.from_sequential2d([[None, None], [None, None]])
    with pytest.raises(ShapeError, match="part 'x1' is 2 wide in one block, 3 in another"):
        om.BlockMatrix.from_sequential2d([[None, torch.ones(2, 4)], [None, torch.ones(3, 3)]])
    with pytest.raises(ConversionError, match=r"blocks\[0\]\[0\] is ReLU"):
        om.BlockMatrix.from_sequential2d([[nn.ReLU()]])


def network(dtype=torch.float64):
    """Three inputs into two rows with biases, an identity first in its column, and absent blocks."""
    torch.manual_seed(0)
    return [
        [nn.Identity(), nn.Linear(4, 5), None],
        [nn.Linear(5, 4), nn.Linear(5, 5), None],
        [None, nn.Linear(2, 5), nn.Linear(2, 2, bias=False)],
    ], [4, 5, 2]


def in_double(blocks):
    return [[b if b is None else b.double() for b in line] for line in blocks]


def step_of(blocks, sizes, names=("x", "h", "y")):
    G = om.BlockMatrix.from_sequential2d(blocks, names=names, sizes=sizes)
    return om.Program(om.Step(G), names, names)


def test_one_bias_per_row_however_many_layers_bring_one():
    blocks, sizes = network()
    program = step_of(blocks, sizes)
    biases = {n: t for n, t in program.parameters.items() if ".one." in n}
    assert {n: t.numel() for n, t in biases.items()} == {"blocks.x.one.vector": 4, "blocks.h.one.vector": 5}
    expected = blocks[0][1].bias + blocks[1][1].bias + blocks[2][1].bias
    assert torch.equal(biases["blocks.h.one.vector"].flatten(), expected)
    kept = blocks[1][0].bias.clone()
    biases["blocks.x.one.vector"].add_(1)
    assert torch.equal(blocks[1][0].bias, kept)


def test_iterating_it_neither_writes_the_input_nor_refuses_a_leaf():
    blocks, sizes = network()
    blocks = in_double(blocks)
    program = step_of(blocks, sizes)
    xs = [torch.randn(3, n, dtype=torch.float64, requires_grad=True) for n in sizes]
    kept = [x.detach().clone() for x in xs]
    ours, theirs = xs, xs
    for _ in range(3):
        ours, theirs = interpret(program, *ours), literal_sequential2d(blocks, theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float64
        assert_close(a, b)
    slopes = [torch.autograd.grad(sum(o.sin().sum() for o in out), xs) for out in (ours, theirs)]
    for a, b in zip(*slopes, strict=True):
        assert_close(a, b)
    assert all(torch.equal(x, k) for x, k in zip(xs, kept, strict=True))


def test_outputs_are_not_the_callers_memory():
    """An identity block gives its input; writing into the output leaves the input as it was."""
    program = step_of([[nn.Identity(), None, None], [None, None, None], [None, None, None]], [2, 2, 2])
    xs = [torch.ones(3, 2) for _ in range(3)]
    outputs = interpret(program, *xs)
    for out in outputs:
        out.add_(1)
    assert all(torch.equal(x, torch.ones(3, 2)) for x in xs)


def test_an_absent_block_is_a_block_of_zeros():
    blocks, sizes = network()
    dense = [
        [torch.zeros(sizes[j], sizes[i]) if b is None else b for j, b in enumerate(line)]
        for i, line in enumerate(blocks)
    ]
    xs = [torch.randn(3, n) for n in sizes]
    for a, b in zip(
        interpret(step_of(blocks, sizes), *xs), interpret(step_of(dense, sizes), *xs), strict=True
    ):
        assert_close(a, b)
    alone = [[None, None], [None, nn.Linear(2, 2)]]
    program = om.Program(
        om.Step(om.BlockMatrix.from_sequential2d(alone, sizes=[2, 2]), rows=["x0", "x1"]),
        ["x0", "x1"],
        ["x0"],
    )
    assert interpret(program, torch.ones(3, 2), torch.ones(3, 2)).tolist() == [[0.0, 0.0]] * 3


def test_weights_are_shared_with_the_layers():
    blocks, sizes = network()
    program = step_of(blocks, sizes)
    assert any(t is blocks[0][1].weight for t in program.parameters.values())
    xs = [torch.randn(3, n) for n in sizes]
    sum(o.sum() for o in interpret(program, *xs)).backward()
    assert_close(blocks[2][2].weight.grad, torch.ones(3, 2).mT @ xs[2])
    with torch.no_grad():
        blocks[2][2].weight.zero_()
    assert interpret(program, *xs)[2].abs().max() == 0
    assert om.Iterated(program).program.parameters["blocks.y.y.weight"] is blocks[2][2].weight


def test_sequences_go_through_the_last_dimension():
    blocks, sizes = network()
    G = om.BlockMatrix.from_sequential2d(blocks, names=("x", "h", "y"), sizes=sizes)
    parts = {name: ("time", size) for name, size in zip(("x", "h", "y"), sizes, strict=True)}
    last = om.BlockMatrix({key: om.Block(block.structure, on="last") for key, block in G}, parts)
    program = om.Program(om.Step(last), ["x", "h", "y"], ["x", "h", "y"])
    xs = [torch.randn(3, 7, n) for n in sizes]
    for a, b in zip(interpret(program, *xs), literal_sequential2d(blocks, xs), strict=True):
        assert a.shape == b.shape
        assert_close(a, b)


def test_lists_names_and_sizes_that_do_not_fit_are_named():
    square = [[None, torch.ones(2, 3)], [None, None]]
    with pytest.raises(ShapeError, match="2 names were needed, got 1"):
        om.BlockMatrix.from_sequential2d(square, names=["x"])
    with pytest.raises(ShapeError, match="2 sizes were needed, got 3"):
        om.BlockMatrix.from_sequential2d(square, sizes=[3, 2, 1])
    with pytest.raises(ShapeError, match="part 'x0' is 4 wide in one block, 3 in another"):
        om.BlockMatrix.from_sequential2d(square, sizes=[4, 2])
    with pytest.raises(ConversionError, match=r"blocks\[0\]\[0\] is Identity; give sizes=\[...\] as well"):
        om.BlockMatrix.from_sequential2d([[nn.Identity()]])
