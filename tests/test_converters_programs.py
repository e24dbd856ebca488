"""What a converted program is: shared parameters, names, ties, opaque rows, coupled batches, further functions."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import onematrix as om
from converter_cases import Of, check, normal
from onematrix.converters.conversion import convert
from onematrix.converters.sizes import divide, expression, product, show, symbol
from onematrix.errors import ConversionError, DTypeError, FormatError, ProgramError
from onematrix.programs import further_activations, further_joins
from onematrix.programs.activations import make_activation
from onematrix.programs.joins import make_join
from onematrix.programs.opaque import Opaque
from onematrix.structures.identity import Identity
from onematrix.structures.sizes import multiply_sizes

DOUBLE = torch.float64


def test_parameters_are_the_same_objects_and_know_their_names():
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    program = convert(net, torch.zeros(2, 4))
    assert {id(t) for t in program.parameters.values()} == {id(p) for p in net.parameters()}
    names = {program.source_names[n]: id(t) for n, t in program.parameters.items()}
    assert names == {n: id(p) for n, p in net.named_parameters()}
    assert program.counts().stored_numbers == sum(p.numel() for p in net.parameters())


def test_ties_are_one_entry():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.embed(x))

    net = Tied()
    program = check(net, torch.tensor([[0, 2, 5], [6, 2, 1]]))
    assert [id(t) for t in program.parameters.values()] == [id(net.embed.weight)]
    assert {b.structure.name for _, _, b in program.blocks()} >= {"embedding", "dense"}


def test_buffers_stay_buffers_and_parameters_train():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    module = om.Iterated(convert(net.eval(), torch.zeros(2, 4)))
    assert len(list(module.parameters())) == 4
    assert len(list(module.buffers())) == 2
    assert {id(p) for p in module.parameters()} == {id(p) for p in net.parameters()}


def test_part_names_are_the_paths_of_the_modules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 2)})

        def forward(self, x):
            return torch.tanh(self.encoder["second"](self.encoder["first"](x)))

    program = convert(Net(), torch.zeros(2, 4))
    assert {"encoder.first", "encoder.second", "x"} <= set(program.parts)


def test_a_program_is_the_same_text_every_time():
    net = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Linear(8, 2)).eval()
    assert convert(net, torch.zeros(2, 5, 8)).text() == convert(net, torch.zeros(3, 4, 8)).text()


def test_rows_that_reach_no_output_are_left_out():
    program = convert(
        Of(lambda x, a, b: (a(x), b(x))[0], nn.Linear(4, 3), nn.Linear(4, 3)), torch.zeros(2, 4)
    )
    assert len(program.steps()) == 1
    assert len(program.parameters) == 2


def test_an_example_of_one_sample_leaves_the_batch_free():
    net = nn.Linear(4, 2).double()
    program = convert(net, torch.zeros(1, 4, dtype=DOUBLE))
    check(net, normal(5, 4), program=program)


def test_outputs_keep_their_shape_and_what_is_alike_for_all_samples_comes_for_each():
    program = convert(Of(lambda x: (x.sum(1), x[:, None], x * 0 + 1, torch.ones(3) * 2)), torch.zeros(2, 4))
    shapes = [tuple(y.shape) for y in om.interpret(program, torch.randn(5, 4))]
    assert shapes == [(5, 1), (5, 1, 4), (5, 4), (5, 3)]


def test_an_operator_nobody_knows_is_opaque_listed_and_equal():
    net = Of(lambda x: torch.special.i0(x) + 1)
    program = check(net, normal(3, 4), opaque=["aten.i0.default"])
    ((part, function),) = program.opaque().items()
    assert function.reason == "no converter knows this operator"
    assert f'{part} = {{identity(size=4) x}} by opaque "aten.i0.default" because "no' in program.text()
    assert program.couples_batch
    check(net, normal(1, 4), opaque=["aten.i0.default"], program=program)


def test_opaque_operators_of_several_tensors_and_free_lengths():
    net = Of(lambda x: torch.kthvalue(x.transpose(0, 1), 2, dim=2))
    program = convert(net.double(), normal(2, 5, 3))
    assert {f.name for f in program.opaque().values()} == {"aten.kthvalue.default"}
    for batch, time in ((2, 5), (4, 3)):
        x = normal(batch, time, 3)
        for ours, theirs in zip(om.interpret(program, x), net(x), strict=True):
            assert torch.equal(ours, theirs.transpose(0, 1))


def test_programs_with_opaque_rows_are_not_saved_and_not_read(tmp_path):
    program = convert(Of(torch.special.i0), torch.zeros(2, 4))
    with pytest.raises(FormatError, match=r"save: 1 rows are functions no file can hold, first .*aten\.i0"):
        om.save(program, tmp_path / "model")
    with pytest.raises(FormatError, match="a function is not kept in text"):
        om.parse(program.text())
    with pytest.raises(ProgramError, match="a name without quotes and a part to read"):
        Opaque('a"b', "reason", torch.sin, 1)


def test_batch_norm_in_training_couples_the_batch():
    net = nn.BatchNorm2d(4)
    program = check(net, normal(3, 4, 5, 5), training=True)
    assert program.couples_batch
    assert not convert(net.eval().double(), normal(3, 4, 5, 5)).couples_batch
    assert convert(Of(lambda x: x - x.mean(0)), torch.zeros(2, 4)).couples_batch


def test_dropout_in_training_is_a_factor_drawn_by_the_seed():
    net = Of(lambda x: F.dropout(x, 0.25, training=True))
    program = convert(net, torch.zeros(2, 2000))
    x = torch.ones(3, 2000)
    first, again, other = (om.interpret(program, x, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert abs(float((first == 0).float().mean()) - 0.25) < 0.03


def test_regions_without_gradients_pass_none():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            with torch.no_grad():
                h = self.a(x).tanh()
            return self.b(h + x) + h.detach().sum(1, keepdim=True)

    check(Frozen(), normal(3, 4))


def test_keyword_inputs_and_saved_programs(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 2)).double().eval()
    x = normal(2, 3, 6, 6)
    om.save(convert(net, input=x), tmp_path / "model")
    torch.testing.assert_close(om.interpret(om.load(tmp_path / "model"), x), net(x), rtol=1e-12, atol=1e-12)


# Values at a few points, worked out from the definitions with the math module.
FORMULAS = {
    "log": math.log, "log1p": math.log1p, "expm1": math.expm1, "exp2": lambda v: 2**v, "log2": math.log2,
    "erf": math.erf, "tan": math.tan, "atan": math.atan, "sinh": math.sinh, "cosh": math.cosh,
    "floor": math.floor, "ceil": math.ceil, "round": round, "stop": lambda v: v, "root": math.sqrt,
    "mish": lambda v: v * math.tanh(math.log(1 + math.exp(v))),
    "selu": lambda v: 1.0507009873554805 * (v if v > 0 else 1.6732632423543772 * (math.exp(v) - 1)),
    "hardswish": lambda v: v * min(max(v + 3, 0), 6) / 6, "hardsigmoid": lambda v: min(max(v + 3, 0), 6) / 6,
    "log_sigmoid": lambda v: -math.log(1 + math.exp(-v)), "softsign": lambda v: v / (1 + abs(v)),
    "power(3.0)": lambda v: v**3, "plus(0.5)": lambda v: v + 0.5, "times(-2.0)": lambda v: -2 * v,
    "fill(7.0, same)": lambda v: 7.0, "clamp(-1.0, inf)": lambda v: max(v, -1.0),
    "hardtanh(-1.0, 2.0)": lambda v: min(max(v, -1.0), 2.0), "threshold(1.0, -5.0)": lambda v: v if v > 1 else -5.0,
    "hardshrink(0.75)": lambda v: v if abs(v) > 0.75 else 0.0,
    "softshrink(0.75)": lambda v: math.copysign(max(abs(v) - 0.75, 0), v),
    "celu(0.5)": lambda v: v if v > 0 else 0.5 * (math.exp(v / 0.5) - 1),
    "elu_scaled(0.5, 2.0, 3.0)": lambda v: 2 * v if v > 0 else 2 * 0.5 * (math.exp(3 * v) - 1),
    "softplus_scaled(2.0, 5.0)": lambda v: v if 2 * v > 5 else math.log(1 + math.exp(2 * v)) / 2,
}  # fmt: skip
POSITIVE = ("log", "log1p", "log2", "root")
OTHER = {"not", "positions", "safe_softmax", "batch_mean"}


@pytest.mark.parametrize("text", FORMULAS)
def test_further_activations_are_their_formulas(text):
    sigma = make_activation(text)
    points = [0.25, 0.5, 1.5, 3.5] if sigma.name in POSITIVE else [-3.5, -1.5, -0.5, 0.25, 1.5, 3.5]
    got = sigma(torch.tensor(points, dtype=DOUBLE))
    assert got.tolist() == pytest.approx([FORMULAS[text](v) for v in points], rel=1e-12, abs=1e-14)
    assert make_activation(str(sigma)) == sigma
    zero = sigma.rule.at_zero
    if isinstance(zero, float):
        assert sigma(torch.zeros(1, dtype=DOUBLE)).item() == pytest.approx(zero)
    if sigma.rule.degree is not None:
        x = torch.tensor(points, dtype=DOUBLE)
        assert torch.allclose(sigma(2 * x), 2.0**sigma.rule.degree * sigma(x))


def test_every_further_activation_is_tested():
    names = {text.split("(")[0] for text in FORMULAS} | OTHER
    assert names == set(further_activations.FURTHER)


def test_further_activations_of_whole_rows():
    x = torch.tensor([[1.0, -math.inf, 1.0], [-math.inf] * 3], dtype=DOUBLE, requires_grad=True)
    soft = make_activation("safe_softmax")(x)
    assert soft.tolist() == [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]
    (slope,) = torch.autograd.grad((soft * torch.tensor([1.0, 2.0, 3.0])).sum(), x)
    assert slope.tolist() == [[-0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]
    assert make_activation("positions")(torch.zeros(2, 3)).tolist() == [[0, 1, 2]] * 2
    assert make_activation("not")(torch.tensor([True, False])).tolist() == [False, True]
    assert make_activation("batch_mean")(torch.tensor([[1.0], [3.0]])).tolist() == [[2.0]]
    (slope,) = torch.autograd.grad(make_activation("root")(y := torch.zeros(1, requires_grad=True)).sum(), y)
    assert slope.item() == 0
    assert make_activation("plus(2)")(torch.tensor([1])).dtype == torch.int64
    assert make_activation("fill(3.0, int64)")(torch.zeros(2)).tolist() == [3, 3]


A, B = [7.0, -7.0, 2.0, 0.0], [2.0, 2.0, 2.0, 3.0]
JOINS = {
    "less": lambda a, b: a < b, "less_equal": lambda a, b: a <= b, "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b, "equal": lambda a, b: a == b, "not_equal": lambda a, b: a != b,
    "both": lambda a, b: bool(a) and bool(b), "either": lambda a, b: bool(a) or bool(b),
    "floor_divide": lambda a, b: a // b, "remainder": lambda a, b: a % b, "raise": lambda a, b: a**b,
}  # fmt: skip


@pytest.mark.parametrize("name", JOINS)
def test_further_joins_are_their_formulas(name):
    got = make_join(name)(torch.tensor(A, dtype=DOUBLE), torch.tensor(B, dtype=DOUBLE))
    assert got.tolist() == [JOINS[name](a, b) for a, b in zip(A, B, strict=True)]


def test_further_joins_of_one_operand():
    x = torch.tensor([[[1.0, 4.0, 4.0], [-1.0, -2.0, 0.5]]], dtype=DOUBLE, requires_grad=True)
    shares = {"largest": [0.0, 1.0, 0.0], "peak": [0.0, 0.5, 0.5]}
    for name, share in shares.items():
        found = make_join(name)(x)
        assert found.tolist() == [[4.0, 0.5]]
        assert torch.autograd.grad(found.sum(), x)[0][0, 0].tolist() == share
    assert make_join("product")(x).tolist() == [[16.0, 1.0]]
    assert make_join("peak")(x[:, 0]).shape == (1, 1)
    pooled = make_join("max_pool(2 1 0 1 0)")(x)
    assert pooled.tolist() == [[[4.0, 4.0], [-1.0, 0.5]]]
    assert torch.autograd.grad(pooled.sum(), x)[0].tolist() == [[[0.0, 2.0, 0.0], [1.0, 0.0, 1.0]]]
    taken = make_join("take")(x, torch.tensor([[[2, 0], [1, 1]]]))
    assert taken.tolist() == [[[4.0, 1.0], [-2.0, -2.0]]]
    index = torch.tensor([[3, 1]])
    assert torch.equal(make_join("one_hot")(index), index)
    assert torch.equal(make_join("places")(index), index)
    done = {*JOINS, "largest", "peak", "product", "max_pool", "take", "one_hot", "places"}
    assert done == set(further_joins.FURTHER)
    assert str(make_join("max_pool(2 1 0 1 0)")) == "max_pool(2 1 0 1 0)"


@pytest.mark.parametrize(
    ("make", "error", "fault"),
    [
        (lambda: make_activation("clamp(nan, 1)"), ProgramError, r"clamp\(nan\): a finite number was needed"),
        (lambda: make_activation("power(inf)"), ProgramError, r"power\(inf\): a finite number"),
        (lambda: make_activation("fill(1, float23)"), DTypeError, r"fill\(…, float23\): a torch dtype"),
        (lambda: make_activation("plus"), ProgramError, r"plus takes 1 arguments, got \(\)"),
        (lambda: make_join("max_pool"), ProgramError, r"max_pool takes several arguments, got None"),
        (lambda: make_join("less(3)"), ProgramError, r"less takes no arguments, got 3"),
        (lambda: make_join('opaque "sin" because "so"'), ProgramError, "a function is not kept in text"),
    ],
)
def test_further_functions_refuse_wrong_arguments(make, error, fault):
    with pytest.raises(error, match=fault):
        make()


@pytest.mark.parametrize(("dtype", "shape"), [(None, (3, 5)), ("int64", (2, 5)), ("int64", (3,))])
def test_one_hot_needs_integers_and_an_index_part(dtype, shape):
    kind = "index" if len(shape) == 2 else "real"
    parts = {"x": om.Part((3,), dtype=dtype), "z": om.Part(shape, kind)}
    step = om.Step(om.BlockMatrix({("z", "x"): Identity(3)}, parts), joins={"z": "one_hot"})
    with pytest.raises(ProgramError, match=r"one_hot of \(3,\) .* needs integers and an index part"):
        om.Program(step, ["x"], ["z"])


def test_sizes_have_one_text_each():
    time, other = symbol("time"), symbol("other")
    assert show(time * 8 - 1) == "8 * time - 1"
    assert show(2 * (time + 1)) == show(time + time + 2) == "2 * time + 2"
    assert show(time * other * 3) == multiply_sizes("time", 3, "other") == "3 * other * time"
    assert expression("(time + 1) * 4") == 4 * time + 4
    assert divide("12 * time", 4) == "3 * time"
    assert divide("time + 1", 2) is None
    assert divide(12, 5) is None
    assert product(["time + 1"]) == "time + 1"
    assert product([product(["time + 1", 2]), 3]) == product(["time + 1", 6]) == "6 * (time + 1)"
    with pytest.raises(ConversionError, match=r"has no form as \+ - \* //"):
        show(time % 3)
