"""A compiled program writes into its own values alone and gives none of the caller's away."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import onematrix as om
from onematrix.compiler.views import shares
from onematrix.programs.interpreter import interpret
from onematrix.structures.algebra import HorizontalStack, Product, Sum, Transposed
from onematrix.structures.averaging import Mean
from onematrix.structures.dense import Dense
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Ones, Scaled
from onematrix.structures.per_axis import PerAxis
from onematrix.structures.window import Window

ONE = torch.ones(3, 3, dtype=torch.float64)
STRUCTURES = om.list_structures()
NESTED = [
    Product(Window(2, 3, 1), Identity(3)),
    Product(Transposed(Mean(3)), Dense(ONE[:1])),
    Product(Dense(ONE), Transposed(Mean(3))),
    Sum((Window(2, 3, 1),)),
    HorizontalStack((Window(2, 3, 1),)),
    PerAxis((Ones(2, 1), Dense(ONE))),
    PerAxis((Identity(2), Window(2, 3, 1))),
    PerAxis((Transposed(Mean(2)), Identity(3))),
    Transposed(PerAxis((Mean(2), Identity(3)))),
    Transposed(Transposed(Window(2, 3, 1))),
    Scaled(Transposed(Mean(3)), 1, 2),
]


def place(x):
    return x.untyped_storage().data_ptr()


def check_own(a):
    """A structure that is said to give memory of its own does: not that of x, and each number once."""
    weight = a.any_weight()
    for batch in ((), (3,), (2, 3)):
        x = torch.randn(*batch, a.shape[1], dtype=torch.float64 if weight is None else weight.dtype)
        y = a._matmul(x)
        shown = place(y) == place(x) or any(
            s == 0 and n > 1 for s, n in zip(y.stride(), y.shape, strict=True)
        )
        assert shares(a) or not y.numel() or not shown, a


@pytest.mark.parametrize("name", sorted(STRUCTURES))
def test_structures_that_give_memory_of_their_own_do(name):
    for a in STRUCTURES[name].examples(torch.Generator().manual_seed(0)):
        if all(isinstance(size, int) for size in a.shape):
            check_own(a)


@pytest.mark.parametrize("a", NESTED, ids=str)
def test_nested_structures_that_give_memory_of_their_own_do(a):
    check_own(a)


def test_what_computes_is_not_taken_for_a_view():
    for a in (
        Dense(ONE),
        Diagonal(ONE[0]),
        Product(Dense(ONE), Window(3, 5, 1)),
        Sum((Identity(3), Dense(ONE))),
    ):
        assert not shares(a)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "identity"])
@pytest.mark.parametrize(
    "a", [Window(4, 16, 2), HorizontalStack((Window(4, 16, 3),)), Transposed(Mean(4))], ids=str
)
def test_an_activation_of_a_slice_leaves_the_input_alone(a, activation, gradients):
    parts = {"x": (2, a.shape[1] // 2) if a.shape[1] > 1 else 1, "y": (2, 2)}
    G = om.BlockMatrix({("y", "x"): a}, parts)
    program = om.Program(om.Step(G, activations={"y": activation}), ["x"], ["y"])
    module = om.compile(program)
    x = torch.randn(3, *program.parts["x"].shape, generator=torch.Generator().manual_seed(0))
    given = x.clone().requires_grad_(gradients)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            y = module(given)
        assert torch.equal(given, x)
        assert place(y) != place(given)
        assert_close(y, interpret(program, x))
        with torch.no_grad():
            y.zero_()
        assert torch.equal(given, x)


SLICES = {
    "slice": lambda x: x[:, 2:5],
    "split": lambda x: tuple(x.split(4, 1)),
    "expand": lambda x: x[:, :1].expand(-1, 4),
    "column": lambda x: x[:, :1],
    "slice and its sigmoid": lambda x: (x[:, :4], torch.sigmoid(x[:, :4])),
    "input twice": lambda x: (x, x),
    "transpose": lambda x: x.reshape(x.shape[0], 2, 4).transpose(1, 2),
    "detached": lambda x: torch.tanh(x[:, 1:5].detach()),
}


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", SLICES)
def test_a_module_of_views_gives_copies(name, frozen):
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    module = om.compile(Of(SLICES[name]), x, measure=False)
    module = module.freeze() if frozen else module
    kept, wanted = x.clone(), SLICES[name](x.clone())
    for _ in range(2):
        outputs = module(x)
        for ours, theirs in zip(
            outputs if isinstance(outputs, tuple) else (outputs,),
            wanted if isinstance(wanted, tuple) else (wanted,),
            strict=True,
        ):
            assert_close(ours, theirs)
            assert place(ours) != place(x)
            ours.zero_()
        assert torch.equal(x, kept)
