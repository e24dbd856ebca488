"""What training refuses, with the numbers in each message."""

import functools
import math

import pytest
import torch
from torch import nn

from onematrix.errors import DTypeError, FormatError, OneMatrixError, ShapeError, TrainingError
from onematrix.records.files import read_lines
from onematrix.training import (
    Epochs,
    Examples,
    Recipe,
    Seconds,
    Steps,
    accuracy,
    checkpoint,
    cross_entropy,
    evaluate,
    train,
)

N, WIDTH, CLASSES = 23, 4, 3
train = functools.partial(train, progress=False)


def make_data(shift: float = 0.0) -> Examples:
    x = shift + torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Examples(x, x[:, :CLASSES].argmax(-1))


def make_net() -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(WIDTH, CLASSES, dtype=torch.float64)


class NoBatch:
    def __len__(self):
        return 3


class Single:
    def __len__(self):
        return 3

    def batch(self, indices):
        return (torch.zeros(len(indices), WIDTH, dtype=torch.float64),)


REFUSED_BUDGETS = [
    (lambda: Steps(0), r"Steps: an integer >= 1 was needed, got 0"),
    (lambda: Steps(2.5), r"got 2.5; for example Steps\(10\)"),
    (lambda: Epochs(-2), r"Epochs: an integer >= 1 was needed, got -2"),
    (lambda: Epochs(True), r"Epochs.*got True"),
    (lambda: Seconds(0), r"Seconds: a finite number > 0 was needed, got 0"),
    (lambda: Seconds(-1.5), r"got -1.5"),
    (lambda: Seconds(math.inf), r"got inf"),
    (lambda: Seconds("9"), r"got '9'"),
]

REFUSED_RECIPES = [
    ({"batch": 0}, r"batch must be an integer >= 1, got 0"),
    ({"batch": 2.0}, r"batch.*got 2.0"),
    ({"seed": -1}, r"seed must be an integer >= 0, got -1"),
    ({"learning_rate": 0.0}, r"learning_rate must be a finite number > 0, got 0.0"),
    ({"learning_rate": math.nan}, r"learning_rate.*got nan"),
    ({"clip": -1.0}, r"clip must be a finite number > 0 or None, got -1.0"),
    ({"loss": "hinge"}, r"loss: one of cross_entropy, mse, softmax_mse or a callable .* got 'hinge'"),
    ({"optimizer": "adan"}, r"optimizer: one of adam, adamw, sgd, momentum, rmsprop .* got 'adan'"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED_BUDGETS)
def test_budgets_refused(make, message):
    with pytest.raises(TrainingError, match=message):
        make()


@pytest.mark.parametrize(("settings", "message"), REFUSED_RECIPES)
def test_recipes_refused(settings, message):
    with pytest.raises(TrainingError, match=message):
        Recipe(**settings)


def test_a_bare_number_is_no_budget():
    with pytest.raises(TrainingError, match=r"got 100; write budget=Steps\(100\)") as caught:
        train(make_net(), make_data(), budget=100)
    assert caught.value.got == 100


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Examples(torch.zeros(0, WIDTH), torch.zeros(0).long()), r"at least 1 example.* length 0"),
        (NoBatch(), r"got NoBatch; wrap tensors as Examples\(x, target\)"),
        (Single(), r"Single.batch: a pair \(x, target\) was needed, got 1 values"),
    ],
)
def test_data_refused(data, message):
    with pytest.raises(TrainingError, match=message):
        train(make_net(), data, budget=Steps(1))
    with pytest.raises(TrainingError, match=message):
        evaluate(make_net(), data)


def test_unequal_lengths_are_refused():
    with pytest.raises(ShapeError, match="got 3, 4, 5"):
        Examples((torch.zeros(3), torch.zeros(4)), torch.zeros(5))


def test_modules_without_trainable_or_with_lazy_parameters_are_refused():
    with pytest.raises(TrainingError, match=r"ReLU: .* got 0 parameters, 0 of them"):
        train(nn.ReLU(), make_data(), budget=Steps(1))
    with pytest.raises(TrainingError, match=r"Linear: .* got 2 parameters, 0 of them with requires_grad"):
        train(make_net().requires_grad_(False), make_data(), budget=Steps(1))
    with pytest.raises(TrainingError, match="LazyLinear has lazy parameters; run it once"):
        train(nn.LazyLinear(3), make_data(), budget=Steps(1))


def test_optimizers_that_cannot_be_used_are_refused():
    with pytest.raises(TrainingError, match="LBFGS needs a closure"):
        train(make_net(), make_data(), Recipe(optimizer=torch.optim.LBFGS), budget=Steps(1))
    with pytest.raises(TrainingError, match=r"must return a torch.optim.Optimizer, got int"):
        train(make_net(), make_data(), Recipe(optimizer=lambda p, lr: 7), budget=Steps(1))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, t: o, r"was needed, got shape \(23, 3\)"),
        (lambda o, t: 0.5, r"was needed, got float"),
        (lambda o, t: o.detach().sum(), r"got a scalar without gradient"),
    ],
)
def test_losses_without_a_scalar_gradient_are_refused(loss, message):
    with pytest.raises(TrainingError, match=message):
        train(make_net(), make_data(), Recipe(loss=loss), budget=Steps(1))


class SpoiltAt:
    """Cross-entropy, times a factor at one call."""

    def __init__(self, call: int, factor: float) -> None:
        self.call, self.factor, self.calls = call, factor, 0

    def __call__(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return cross_entropy(outputs, target) * (self.factor if self.calls == self.call else 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_step_and_remedy(bad):
    net, recipe = make_net(), Recipe(loss=SpoiltAt(4, bad), learning_rate=0.01, batch=5)
    with pytest.raises(TrainingError, match=rf"step 4: the loss is {bad}; lower .* \(0.01\), and") as caught:
        train(net, make_data(), recipe, budget=Steps(9))
    assert caught.value.step == 4
    assert net.weight.isfinite().all()
    with pytest.raises(TrainingError, match=rf"step 2: the loss is {bad}; .*, or set a clip such as 1.0"):
        train(net, make_data(), Recipe(loss=SpoiltAt(2, bad), clip=None), budget=Steps(9))


def test_a_gradient_that_is_not_finite_is_refused_before_the_update():
    net = make_net()
    before = net.weight.detach().clone()
    with pytest.raises(TrainingError, match=r"step 1: the norm of the gradient is (nan|inf)"):
        train(net, make_data(), Recipe(loss=lambda o, t: (o - o).sum().abs().sqrt()), budget=Steps(2))
    assert torch.equal(net.weight, before)


@pytest.mark.parametrize(("wrong", "got"), [(3, 3), (-1, -1), (12, 12)])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "softmax_mse"])
def test_a_class_out_of_range_is_named(loss, wrong, got):
    data = make_data()
    data.target[5] = wrong
    with pytest.raises(TrainingError, match=rf"target class {got} lies outside 0 … 2") as caught:
        train(make_net(), data, Recipe(loss=loss), budget=Steps(9))
    assert (caught.value.got, caught.value.classes) == (got, CLASSES)


def test_targets_of_another_kind_or_shape_are_refused():
    net, x = make_net(), make_data().x
    with pytest.raises(DTypeError, match=r"cross_entropy: integer target classes .* got torch.float64"):
        evaluate(net, Examples(x, x[:, 0]))
    with pytest.raises(DTypeError, match=r"mse: integer .* got torch.bool"):
        evaluate(net, Examples(x, x[:, 0] > 0), loss="mse")
    with pytest.raises(ShapeError, match=r"got \(23, 3\) and \(23, 2\)"):
        evaluate(net, Examples(x, torch.zeros(N, 2).long()))
    with pytest.raises(ShapeError, match=r"shape of the outputs \(23, 3\), got \(23, 4\)"):
        evaluate(net, Examples(x, x), loss="mse")
    with pytest.raises(TrainingError, match=r"accuracy: outputs .* integer targets"):
        accuracy(net, Examples(x, x))
    with pytest.raises(TrainingError, match=r"cross_entropy: the module must give one tensor, got tuple"):
        evaluate(nn.RNN(WIDTH, 3, dtype=torch.float64), make_data())


def test_evaluations_that_give_no_numbers_are_refused():
    with pytest.raises(TrainingError, match=r"evaluate: a number .* got 'good'"):
        train(make_net(), make_data(), budget=Epochs(1), evaluate=lambda m: "good")
    with pytest.raises(TrainingError, match=r"evaluate: a number .* got None"):
        train(make_net(), make_data(), budget=Epochs(1), evaluate=lambda m: None)
    with pytest.raises(TrainingError, match="evaluate: batch must be an integer >= 1, got 0"):
        evaluate(make_net(), make_data(), batch=0)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OneMatrixError, match=r"file/run cannot be written to"):
        train(make_net(), make_data(), budget=Steps(1), folder=tmp_path / "file" / "run")
    with pytest.raises(TrainingError, match=r"checkpoint_seconds must be a number >= 0, got -1"):
        train(make_net(), make_data(), budget=Steps(1), checkpoint_seconds=-1)


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onematrix.training.checkpoint.save_file", full)
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors cannot be written .*No space left"):
        train(make_net(), make_data(), budget=Steps(1), folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]
    assert len(read_lines(tmp_path / "records.jsonl")) == 1


class Tied(nn.Module):
    """One matrix under two names, and a frozen bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second, self.last = (nn.Linear(WIDTH, k) for k in (WIDTH, WIDTH, CLASSES))
        self.second.weight = self.first.weight
        self.last.bias.requires_grad_(False)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(x).relu()))


RECIPE = Recipe(batch=5, learning_rate=0.01)


def test_a_checkpoint_of_other_settings_is_refused_with_every_difference(tmp_path):
    train(Tied(), make_data(), RECIPE, budget=Steps(3), folder=tmp_path)
    other = Recipe(loss="mse", optimizer="sgd", batch=6, seed=7, clip=None, learning_rate=0.1)
    net = Tied()
    with pytest.raises(TrainingError, match="another folder, or pass resume=False") as caught:
        train(net, make_data(shift=1.0), other, budget=Steps(4), folder=tmp_path)
    differences = caught.value.differences
    for part in (
        "loss cross_entropy, now mse",
        "optimizer Adam, now SGD",
        "batch 5, now 6",
        "learning_rate 0.01, now 0.1",
        "clip 1.0, now None",
        "seed 0, now 7",
        "optimizer betas (0.9, 0.999), now absent",
    ):
        assert part in differences
    assert any(line.startswith("data 23 examples, crc32") for line in differences)
    assert torch.equal(net.last.weight, Tied().last.weight)


def test_a_checkpoint_of_another_module_is_refused(tmp_path):
    train(Tied(), make_data(), RECIPE, budget=Steps(3), folder=tmp_path)
    net = Tied()
    net.last = nn.Linear(WIDTH, 5)
    with pytest.raises(TrainingError) as caught:
        train(net, make_data(), RECIPE, budget=Steps(4), folder=tmp_path)
    assert caught.value.differences == [
        "last.weight (3, 4) torch.float64, now (5, 4) torch.float32",
        "last.bias (3,) torch.float64, now (5,) torch.float32",
    ]
    net = Tied()
    net.second.weight = nn.Parameter(net.first.weight.detach().clone())
    with pytest.raises(TrainingError, match=r"tie of second.weight first.weight, now absent"):
        train(net, make_data(), RECIPE, budget=Steps(4), folder=tmp_path)
    net = Tied()
    net.last.bias.requires_grad_(True)
    with pytest.raises(TrainingError, match=r"optimizer group 0 .*, now .*'last.bias'"):
        train(net, make_data(), RECIPE, budget=Steps(4), folder=tmp_path)


def test_a_checkpoint_past_the_budget_is_refused(tmp_path):
    train(Tied(), make_data(), RECIPE, budget=Steps(9), folder=tmp_path)
    with pytest.raises(
        TrainingError, match=r"is at step 9, past the budget Steps\(count=8\); raise"
    ) as caught:
        train(Tied(), make_data(), RECIPE, budget=Steps(8), folder=tmp_path)
    assert caught.value.step == 9


def test_damaged_checkpoints_are_refused_by_name(tmp_path):
    train(Tied(), make_data(), RECIPE, budget=Steps(3), folder=tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    whole = path.read_bytes()
    turned = bytearray(whole)
    turned[-300] ^= 1
    for content in (b"", b"nonsense", whole[:-1], whole[: len(whole) // 2], bytes(turned)):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=r"checkpoint\.safetensors is no whole .*resume=False"):
            train(Tied(), make_data(), RECIPE, budget=Steps(4), folder=tmp_path)
    path.write_bytes(bytes(turned))
    with pytest.raises(FormatError, match=r"its checksum is [0-9a-f]{8}, not [0-9a-f]{8}"):
        checkpoint.read_checkpoint(path)
    checkpoint.save_file({"a": torch.zeros(2)}, path, {"format": "pt"})
    with pytest.raises(FormatError, match=r"its format is 'pt', not 'onematrix training checkpoint 1'"):
        checkpoint.read_checkpoint(path)


def test_state_that_cannot_be_saved_is_refused_at_the_first_step(tmp_path):
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            self.state[self.param_groups[0]["params"][0]]["history"] = {"a": 1}

    class Stray(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            self.state["all"] = {"a": 1}

    class Extra(Tied):
        def get_extra_state(self):
            return {"a": 1}

    odd = r"optimizer Odd: state 'history' must be a tensor or a number .* got dict"
    stray = r"optimizer Stray: state must belong to .* got state of 'all'"
    for make, message in ((Odd, odd), (Stray, stray)):
        loss = SpoiltAt(0, 1.0)
        recipe = Recipe(optimizer=make, loss=loss, batch=5)
        with pytest.raises(TrainingError, match=message):
            train(Tied(), make_data(), recipe, budget=Steps(4), folder=tmp_path, resume=False)
        assert loss.calls == 1
        assert train(Tied(), make_data(), recipe, budget=Steps(4)).steps == 4
    with pytest.raises(TrainingError, match=r"Extra: state '_extra_state' must be a strided .* got dict"):
        train(Extra(), make_data(), RECIPE, budget=Steps(4), folder=tmp_path, resume=False)
