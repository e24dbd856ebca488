"""Dense recurrences in compiled code: what is known of their start and what is read of their end."""

import pytest
import torch

import onematrix as om
from onematrix.compiler.form import Form
from onematrix.compiler.module import Compiled
from onematrix.compiler.pipeline import lower
from onematrix.networks import inn
from onematrix.programs.interpreter import interpret

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def made():
    """A net whose state starts at zero and shows its last part alone, and inputs."""
    program = inn([5, 6, 4, 3], generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return om.compile(program, prove=False).double(), x


@pytest.mark.parametrize("gradients", [False, True])
def test_it_knows_its_start_and_what_is_read_of_its_end(gradients):
    net, x = made()
    assert "zero=True, last_only=True, read=(10, 13)" in net.text
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(net(x), interpret(net.program, x), **EXACT)


@pytest.mark.parametrize(
    ("activation", "slices"),
    [("relu", "((10, 'relu'), (3, 'identity'))"), ("identity", "((10, 'identity'), (3, 'identity'))")],
)
def test_neighbours_with_one_activation_are_one_slice_but_where_what_is_read_ends(activation, slices):
    program = inn([5, 6, 4, 3], activation=activation, generator=torch.Generator().manual_seed(1))
    net = om.compile(program, prove=False).double()
    assert slices in net.text
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(net(x), interpret(net.program, x), **EXACT)


def test_what_is_handed_on_is_whole_and_may_be_given():
    net, x = made()
    by_rows = Compiled(net.program, lower(net.program), Form(kernels=False))
    state = theirs = None
    for _ in range(2):
        out, state = net.forward_with_state(x, state=state)
        expected, theirs = by_rows.forward_with_state(x, state=theirs)
        torch.testing.assert_close((out, state), (expected, theirs), **EXACT)
    assert {name: v.shape[-1] for name, v in state.items()} == {"h1": 6, "h2": 4, "y": 3}
    assert not torch.allclose(out, net(x))
