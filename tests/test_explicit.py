"""Explicit matrices: y = A x + b from program.to_dense / to_csr against the torch modules, and describe."""

import itertools
import tracemalloc

import pytest
import torch
from torch import nn

import onematrix as om
from onematrix.errors import DataError, ProgramError, ShapeError
from onematrix.networks import attention
from onematrix.programs.coordinates import coordinates, has_coordinates
from onematrix.programs.description import bandwidths
from onematrix.structures.convolution import Convolution
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity

torch.set_num_threads(1)
CONVOLUTIONS = list(itertools.product((1, 2, 3), (1, 2), (0, 1), (1, 2), (1, 2)))


def module_matrix(module, x):
    """A and b column by column: what the module does to each unit vector."""
    n = x[0].numel()
    eye = torch.eye(n, dtype=torch.float64).reshape(n, *x.shape[1:])
    with torch.no_grad():
        zero = module(torch.zeros_like(x[:1])).reshape(1, -1)
        return (module(eye).reshape(n, -1) - zero).mT, zero.mT


def check(module, *shape):
    module = module.double().eval()
    x = torch.randn(2, *shape, dtype=torch.float64)
    program = om.convert(module, x, free={})
    matrix, column = module_matrix(module, x)
    torch.testing.assert_close(program.to_dense(), matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(program.to_dense(input="one"), column, rtol=0, atol=1e-12)
    torch.testing.assert_close(program.to_csr().to_dense(), matrix, rtol=0, atol=1e-12)
    return program


@pytest.mark.parametrize(("dimensions", "stride", "padding", "dilation", "groups"), CONVOLUTIONS)
def test_convolutions(dimensions, stride, padding, dilation, groups):
    torch.manual_seed(0)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    check(
        kind(2, 4, 2, stride, padding, dilation, groups),
        2,
        *[5, 4, 3][:dimensions],
    )


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(4, 3), (4,)),
        (nn.Linear(4, 3, bias=False), (2, 4)),
        (nn.Conv1d(1, 2, 3, padding=1, padding_mode="circular"), (1, 5)),
        (nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), (1, 4, 4)),
        (nn.ConvTranspose1d(2, 4, 3, 2, 1, output_padding=1, groups=2), (2, 4)),
        (nn.ConvTranspose2d(2, 3, 3, 2, 1, dilation=2), (2, 3, 3)),
        (nn.ConvTranspose3d(1, 2, 2), (1, 2, 2, 2)),
        (nn.AvgPool1d(3, 2, 1, count_include_pad=False), (2, 7)),
        (nn.AvgPool2d(2), (2, 4, 4)),
        (nn.AvgPool3d(2), (1, 2, 4, 2)),
        (nn.AdaptiveAvgPool2d(1), (2, 3, 3)),
        (nn.BatchNorm1d(3), (3,)),
        (nn.BatchNorm2d(2), (2, 3, 3)),
        (nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(8, 2)), (1, 6)),
    ],
    ids=str,
)
def test_other_linear_modules(module, shape):
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    check(module, *shape)


def test_an_embedding_reads_one_hot_vectors():
    module = nn.Embedding(5, 3).double()
    ids = torch.tensor([[1, 4, 0, 2]])
    program = om.convert(module, ids)
    matrix = program.to_dense(time=4)
    one_hot = nn.functional.one_hot(ids, 5).double().reshape(-1)
    assert matrix.shape == (12, 20)
    torch.testing.assert_close(matrix @ one_hot, module(ids).detach().reshape(-1), rtol=0, atol=0)


def linear_recurrence(weight, reverse=False):
    """h_t = W h_(t−1) + x_t + 1 as a loop over time."""
    n = len(weight)
    body = om.Step(
        om.BlockMatrix(
            {
                ("h", "h"): Dense(weight),
                ("h", "u"): Identity(n),
                ("h", "one"): Dense(torch.ones(n, 1).double()),
            },
            parts={"h": n, "u": n},
        )
    )
    loop = om.Loop(
        body,
        over="time",
        feeds=om.BlockMatrix({("u", "x"): Identity(n)}, parts={"u": n, "x": ("time", n)}),
        outputs=om.BlockMatrix({("y", "h"): Identity(n)}, parts={"y": ("time", n), "h": n}),
        carry=om.BlockMatrix({("h", "h"): Identity(n)}, parts={"h": n}),
        reverse=reverse,
    )
    return om.Program(loop, ["x"], ["y"])


@pytest.mark.parametrize("reverse", [False, True])
def test_a_linear_recurrence_over_time(reverse):
    torch.manual_seed(0)
    weight = torch.randn(3, 3, dtype=torch.float64)
    program = linear_recurrence(weight, reverse)
    powers = [torch.linalg.matrix_power(weight, k) for k in range(4)]
    zero = torch.zeros_like(weight)
    grid = [[powers[t - s] if t >= s else zero for s in range(4)] for t in range(4)]
    expected = torch.cat([torch.cat(row, 1) for row in grid])
    if reverse:
        expected = expected.reshape(4, 3, 4, 3).flip(0, 2).reshape(12, 12)
    torch.testing.assert_close(program.to_dense(time=4), expected, rtol=0, atol=1e-13)
    ones = expected @ torch.ones(12, 1, dtype=torch.float64)
    torch.testing.assert_close(program.to_dense(input="one", time=4), ones, rtol=0, atol=1e-12)


def test_a_part_inside_can_be_input_and_output():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    program = om.convert(net, torch.zeros(1, 3).double())
    before, after = program.steps()[0].rows[0].part, program.steps()[-1].rows[0].reads()[0]
    hidden = next(r.part for s in program.steps() for r in s.rows if r.activation.name == "relu")
    assert after == hidden
    torch.testing.assert_close(
        program.to_dense(output=program.outputs[0], input=hidden), net[2].weight.detach()
    )
    start = before if before != hidden else None
    if start is not None:
        torch.testing.assert_close(program.to_dense(output=start), net[0].weight.detach())
    with pytest.raises(
        ProgramError, match=rf"row '{hidden}' is not linear \(its activation is relu\)"
    ) as caught:
        program.to_dense()
    assert caught.value.row == hidden


def test_a_constant_gate_is_linear_and_a_gate_of_two_inputs_is_not():
    class Gate(nn.Module):
        def forward(self, x, y):
            return x * y

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Parameter(torch.randn(3, dtype=torch.float64))

        def forward(self, x):
            return x * torch.sigmoid(self.gate)

    check(Fixed(), 3)
    x = torch.zeros(1, 3).double()
    with pytest.raises(ProgramError, match="its join is hadamard of values that all depend on the inputs"):
        om.convert(Gate(), x, x).to_dense()


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("mask", torch.tensor([True, False, True, False]))
        self.register_buffer("index", torch.tensor([[0, 3, 3]]))
        self.weight = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))

    def forward(self, x):
        return self.function(self, x)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: torch.where(m.mask, x, m.weight[0]),
        lambda m, x: x.masked_fill(m.mask, 0.0) + 2 * x.flip(-1) - 1,
        lambda m, x: torch.gather(x, -1, m.index.expand(x.shape[0], 2, 3)),
        lambda m, x: torch.einsum("bta,ca->btc", x, m.weight),
        lambda m, x: torch.softmax(m.weight[:, :2], -1) @ x,
        lambda m, x: torch.cat([x.mean(1), x.cumsum(-1)[:, 0]], -1) / m.weight[0].exp().repeat(2),
    ],
    ids=["where", "masked_fill", "gather", "einsum", "constant attention", "mean and cumsum"],
)
def test_joins_with_constants_are_linear(function):
    torch.manual_seed(0)
    check(Function(function), 2, 4)


def test_a_loop_a_fixed_number_of_times_is_a_power():
    weight = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    body = om.Step(om.BlockMatrix({("h", "h"): Dense(weight)}, parts={"h": 3}))
    init = om.BlockMatrix({("h", "x"): Identity(3)}, parts={"h": 3, "x": 3})
    program = om.Program(om.Loop(body, times=3, init=init), ["x"], ["h"])
    torch.testing.assert_close(program.to_dense(), weight @ weight @ weight)
    until = om.Program(om.Loop(body, until=1e-3, init=init), ["x"], ["h"])
    with pytest.raises(ProgramError, match=r"row 'h' is not linear \(a loop until it stands still\)"):
        until.to_dense()


def test_several_inputs_and_outputs_are_stacked_or_named():
    class Two(nn.Module):
        def forward(self, x, y):
            return x - 2 * y, 3 * x

    x = torch.zeros(1, 2).double()
    program = om.convert(Two(), x, x)
    one, (a, b) = torch.eye(2).double(), program.inputs
    whole = torch.cat([torch.cat([one, -2 * one], 1), torch.cat([3 * one, 0 * one], 1)])
    assert torch.equal(program.to_dense(), whole)
    assert torch.equal(program.to_dense(program.outputs[0], b), -2 * one)
    assert torch.equal(program.to_dense(program.outputs[1], a), 3 * one)


def test_free_sizes_are_asked_for_by_name():
    program = linear_recurrence(torch.eye(2, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"the sizes time are free.*program\.to_dense\(time=8\)") as caught:
        program.to_dense()
    assert caught.value.missing == ["time"]


def test_unknown_parts_are_named():
    program = linear_recurrence(torch.eye(2, dtype=torch.float64))
    with pytest.raises(ProgramError, match="input 'z' is no part; parts: "):
        program.to_dense(input="z", time=2)
    with pytest.raises(ProgramError, match="output 'u' has no value after the schedule"):
        program.to_dense(output="u", time=2)


def test_a_large_convolution_is_never_dense():
    module = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    program = om.convert(module, torch.zeros(1, 8, 32, 32), free={})
    tracemalloc.start()
    matrix = program.to_csr()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert matrix.nonzeros() == (32 * 3 - 2) ** 2 * 64
    assert peak < 0.25 * 8 * 8192**2  # the dense matrix has 537 MB
    x = torch.randn(1, 8, 32, 32, dtype=torch.float64)
    y = nn.functional.conv2d(x, module.weight.detach().double(), padding=1)
    torch.testing.assert_close(matrix.matmul(x.reshape(1, -1)), y.reshape(1, -1))


@pytest.mark.parametrize("name", sorted(om.list_structures()))
def test_coordinates_are_the_definition(name):
    for a in om.list_structures()[name].examples(torch.Generator().manual_seed(0)):
        dense = a.to_dense(torch.float64).detach()
        got = torch.from_numpy(coordinates(a).toarray())
        torch.testing.assert_close(got, dense, rtol=1e-12, atol=1e-12)
        if has_coordinates(a) or isinstance(a, Convolution):
            rows, columns = dense.nonzero(as_tuple=True)
            offsets = rows - columns
            expected = (int(offsets.max()), -int(offsets.min())) if len(rows) else bandwidths(a)
            if a.name not in ("masked", "csr", "scaled", "sum", "product"):  # may store zeros
                assert bandwidths(a) == expected, a


def test_coordinates_need_numbers():
    with pytest.raises(DataError, match="dense 2×3: numbers were needed, its tensors are on the meta device"):
        coordinates(Dense(torch.empty(2, 3, device="meta")))


def convolution_row(program):
    return next(row for row, _, b in program.blocks() if isinstance(b.structure, Convolution))


def test_describe_a_convolution():
    program = om.convert(nn.Conv1d(1, 1, 3, padding=1), torch.zeros(2, 1, 6), free={})
    described = program.describe(convolution_row(program))
    block = described.blocks[0]
    assert (block.lower, block.upper, block.nonzeros) == (1, 1, 16)
    assert block.triangularity == "neither"
    assert (described.order, described.order_of_joins) == (1, 1)
    assert "bandwidths (1, 1) (lower, upper), neither in y = A x, 16 non-zeros (C_o C_i / g" in str(described)


@pytest.mark.parametrize(
    ("padding", "expected"),
    [(0, "upper trapezoidal"), (1, "neither")],
)
def test_describe_names_the_triangularity(padding, expected):
    program = om.convert(nn.Conv1d(1, 1, 3, padding=padding), torch.zeros(2, 1, 6), free={})
    assert program.describe(convolution_row(program)).blocks[0].triangularity == expected


def test_orders_of_attention():
    program = attention(8, 2)
    orders = {n: program.describe(n, time=5) for n in ("q", "products", "scores", "mixed")}
    assert [d.order_of_joins for d in orders.values()] == [1, 2, 2, 3]
    assert [d.order for d in orders.values()] == [1, 2, None, None]
    assert "order not homogeneous (activations aside: 3)" in str(orders["mixed"])


def test_orders_are_degrees_of_homogeneity():
    """f(2 x) = 2^order f(x), measured, for a gate, a cube and a linear recurrence."""

    class Cube(nn.Module):
        def forward(self, x):
            return (x * x) * torch.relu(x)

    for program, order, sizes in (
        (om.convert(Cube(), torch.zeros(1, 3).double()), 3, {}),
        (linear_recurrence(torch.eye(2, dtype=torch.float64)), 1, {"time": 3}),
    ):
        part = program.steps()[-1].rows[-1].part
        assert program.describe(part, **sizes).order == order
    x = torch.rand(1, 3, dtype=torch.float64)
    torch.testing.assert_close(Cube()(2 * x), 2**3 * Cube()(x))


def test_describe_refuses():
    program = attention(8, 2)
    with pytest.raises(ProgramError, match="describe: no step writes 'x'; written: q"):
        program.describe("x")
    with pytest.raises(ShapeError, match=r"part 'q' leaves time free.*program\.describe\('q', time=8\)"):
        program.describe("q")
