"""A cell converted from torch's own hands on torch's own tensors; gates in another order are put together."""

import pytest
import torch
from torch import nn

import onematrix as om
from onematrix.compiler.cells import Cell
from onematrix.compiler.whole_gates import whole_biases, whole_tensor
from onematrix.structures.algebra import Sum
from onematrix.structures.dense import Dense
from onematrix.structures.reshaped import Reshaped


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}])
def test_cells_of_torch_are_called_with_its_own_tensors(kind, bias, options):
    module = kind(3, 4, batch_first=True, bias=bias, **options).double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    net = om.compile(module, x, measure=False)
    called = [line for line in net.text.splitlines() if f"native_{kind.__name__.lower()}(" in line]
    assert called
    assert not any("[" in line for line in called)
    ours, (theirs, _) = net(x)[0], module(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    slopes = torch.autograd.grad(ours.sin().sum(), list(module.parameters()))
    wanted = torch.autograd.grad(theirs.sin().sum(), list(module.parameters()))
    torch.testing.assert_close(slopes, wanted, rtol=1e-11, atol=1e-11)


def rows(tensor, order):
    size = len(tensor) // len(order)
    width = 1 if tensor.dim() == 1 else tensor.shape[1]
    return [Reshaped(tensor, size, width, size * place) for place in order]


def test_all_rows_in_their_order_and_nothing_else():
    w = torch.randn(6, 4)
    assert whole_tensor(rows(w, [0, 1, 2])) is w
    assert whole_tensor(rows(w, [1, 0, 2])) is None
    assert whole_tensor(rows(w, [0, 1, 2])[:2]) is None
    assert whole_tensor([*rows(w, [0, 1, 2])[:2], *rows(w.clone(), [0, 1, 2])[2:]]) is None
    assert whole_tensor([*rows(w, [0, 1, 2])[:2], Dense(w[4:].contiguous())]) is None
    assert whole_tensor([Reshaped(w, 3, 4, 0), Reshaped(w, 1, 4, 3), Reshaped(w, 2, 4, 4)]) is None


def cell(kind, b_ih, b_hh):
    return Cell(kind, "x", [], [], b_ih, b_hh, [], [], [])


def test_biases_stand_on_either_side_but_where_a_gru_multiplies_one():
    first, second = torch.randn(6), torch.randn(6)
    a, b = rows(first, [0, 1, 2]), rows(second, [0, 1, 2])
    both = [Sum((p, q)) for p, q in zip(a, b, strict=True)]
    found = whole_biases(cell("gru", [*both[:2], a[2]], [None, None, b[2]]))
    assert found[0] is first
    assert found[1] is second
    turned = [Sum((b[0], a[0])), both[1]]
    found = whole_biases(cell("gru", [*turned, a[2]], [None, None, b[2]]))
    assert found[0] is first
    assert found[1] is second
    assert whole_biases(cell("gru", both, [None] * 3)) is None  # nothing of it is multiplied by r
    assert whole_biases(cell("lstm", both, [None] * 3))[0] is first
    assert whole_biases(cell("gru", [a[0], both[1], a[2]], [None, None, b[2]])) is None
    assert whole_biases(cell("gru", [both[1], both[0], a[2]], [None, None, b[2]])) is None
    assert whole_biases(cell("gru", [Sum((a[0], a[0])), both[1], a[2]], [None, None, b[2]])) is None
    assert whole_biases(cell("lstm", [None] * 3, [None] * 3)) is None
