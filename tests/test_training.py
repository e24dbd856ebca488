"""The loop against training written out by hand, the order of the data, losses, evaluation, records."""

import functools
import json
import math

import pytest
import torch
from torch import nn

from onematrix.training import (
    Epochs,
    Examples,
    Recipe,
    Steps,
    accuracy,
    batch_order,
    cross_entropy,
    evaluate,
    mse,
    softmax_mse,
    train,
)

N, WIDTH, CLASSES = 23, 4, 3
train = functools.partial(train, progress=False)


def make_data(count: int = N) -> Examples:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(count, WIDTH, generator=g, dtype=torch.float64)
    return Examples(x, x[:, :CLASSES].argmax(-1))


def make_net() -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(WIDTH, CLASSES, dtype=torch.float64)


def log_softmax_by_hand(row: list[float]) -> list[float]:
    top = math.log(sum(math.exp(v) for v in row))
    return [v - top for v in row]


def train_by_hand(steps: int, batch: int, lr: float, clip: float, seed: int):
    """Softmax regression by gradient descent on plain numbers: W ← W − lr · min(1, clip / ‖g‖) · g."""
    data, net = make_data(), make_net()
    W, b = net.weight.tolist(), net.bias.tolist()
    x, y, losses = data.x.tolist(), data.target.tolist(), []
    per_epoch = -(-N // batch)
    for step in range(steps):
        order = batch_order(N, seed, step // per_epoch).tolist()
        rows = order[step % per_epoch * batch :][:batch]
        gW, gb, loss, right = [[0.0] * WIDTH for _ in W], [0.0] * CLASSES, 0.0, 0
        for i in rows:
            z = [sum(w * v for w, v in zip(W[c], x[i], strict=True)) + b[c] for c in range(CLASSES)]
            logs = log_softmax_by_hand(z)
            loss -= logs[y[i]]
            right += max(range(CLASSES), key=lambda c: z[c]) == y[i]
            for c in range(CLASSES):
                d = (math.exp(logs[c]) - (c == y[i])) / len(rows)
                gb[c] += d
                for j in range(WIDTH):
                    gW[c][j] += d * x[i][j]
        norm = math.sqrt(sum(v * v for row in [*gW, gb] for v in row))
        scale = lr * min(1.0, clip / (norm + 1e-6))
        W = [[w - scale * g for w, g in zip(*pair, strict=True)] for pair in zip(W, gW, strict=True)]
        b = [v - scale * g for v, g in zip(b, gb, strict=True)]
        losses.append((loss, right, len(rows)))
    return torch.tensor(W, dtype=torch.float64), torch.tensor(b, dtype=torch.float64), losses


@pytest.mark.parametrize("clip", [0.2, 1e6])
def test_the_loop_is_gradient_descent_written_out(clip):
    net = make_net()
    recipe = Recipe(optimizer="sgd", batch=5, learning_rate=0.5, clip=clip, seed=3)
    history = train(net, make_data(), recipe, budget=Steps(12))
    W, b, losses = train_by_hand(12, 5, 0.5, clip, 3)
    torch.testing.assert_close(net.weight.detach(), W, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(net.bias.detach(), b, rtol=1e-12, atol=1e-12)
    assert [r["step"] for r in history.records] == [5, 10, 12]
    assert [r["epoch"] for r in history.records] == [1, 2, 3]
    assert [r["examples"] for r in history.records] == [23, 46, 56]
    assert [r["complete"] for r in history.records] == [True, True, False]
    for record, part in zip(history.records, (losses[:5], losses[5:10], losses[10:]), strict=True):
        count = sum(rows for _, _, rows in part)
        assert record["train_loss"] == pytest.approx(sum(loss for loss, _, _ in part) / count, abs=1e-12)
        assert record["train_accuracy"] == sum(right for _, right, _ in part) / count


def test_no_clip_equals_a_wide_clip():
    nets = [make_net(), make_net()]
    for net, clip in zip(nets, (None, 1e9), strict=True):
        train(net, make_data(), Recipe(batch=5, clip=clip), budget=Epochs(2))
    assert torch.equal(nets[0].weight, nets[1].weight)


def test_named_optimizers_are_torchs():
    made = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": torch.optim.SGD,
        "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
        "rmsprop": torch.optim.RMSprop,
    }
    for name, make in made.items():
        by_name, by_call = make_net(), make_net()
        train(by_name, make_data(), Recipe(optimizer=name, batch=7), budget=Steps(6))
        train(by_call, make_data(), Recipe(optimizer=make, batch=7), budget=Steps(6))
        assert torch.equal(by_name.weight, by_call.weight), name
        assert not torch.equal(by_name.weight, make_net().weight), name


def test_the_order_is_a_permutation_that_seed_and_epoch_decide():
    orders = {(s, e): tuple(batch_order(50, s, e).tolist()) for s in range(3) for e in range(3)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len(set(orders.values())) == 9
    assert tuple(batch_order(50, 1, 2).tolist()) == orders[1, 2]


def test_the_seed_decides_dropout_and_the_callers_generator_is_left_alone():
    def run(seed):
        torch.manual_seed(2)
        net = nn.Sequential(nn.Linear(WIDTH, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES)).double()
        torch.manual_seed(100 + seed)
        before = torch.get_rng_state()
        train(net, make_data(), Recipe(batch=5, seed=seed), budget=Steps(8))
        assert torch.equal(torch.get_rng_state(), before)
        return net[0].weight.detach()

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_several_inputs_and_a_real_target():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, a, b):
            return self.scale * a * b

    a, b = torch.rand(8, 2), torch.rand(8, 2)
    net = Gate()
    recipe = Recipe(loss="mse", optimizer="sgd", batch=8, learning_rate=1.0, clip=None)
    history = train(net, Examples((a, b), 3 * a * b), recipe, budget=Steps(1))
    assert history.records[0]["train_loss"] == pytest.approx(float((9 * a * a * b * b).mean()), rel=1e-6)
    assert history.records[0]["train_accuracy"] is None
    assert float(net.scale.detach()) == pytest.approx(float((6 * a * a * b * b).mean()), rel=1e-6)


def test_evaluation_leaves_modes_gradients_and_generators_as_they_are():
    def noisy(module):
        assert not module.training
        assert not torch.is_grad_enabled()
        return {"noise": torch.rand(()), "count": 2}

    def run(evaluation):
        torch.manual_seed(2)
        net = nn.Sequential(nn.Linear(WIDTH, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES)).double()
        net[1].eval()
        history = train(net, make_data(), Recipe(batch=5), budget=Epochs(2), evaluate=evaluation)
        assert [part.training for part in net.modules()] == [True, True, False, True]
        return net[0].weight.detach(), history

    (plain, _), (watched, history) = run(None), run(noisy)
    assert torch.equal(plain, watched)
    assert history.evaluation["count"] == 2.0
    assert set(history.evaluation) == {"noise", "count"}


def test_data_as_evaluation_gives_loss_and_accuracy():
    net, data, test = make_net(), make_data(), make_data(7)
    history = train(net, data, Recipe(batch=10, learning_rate=0.1), budget=Epochs(30), evaluate=test)
    assert history.evaluation == evaluate(net, test)
    assert history.evaluation["accuracy"] == accuracy(net, test, batch=2)
    assert accuracy(net, data) > 0.9
    assert len(history.records) == 30
    assert history.steps == 90


def test_records_are_json_lines_of_the_history(tmp_path):
    history = train(
        make_net(), make_data(), Recipe(batch=5), budget=Steps(7), folder=tmp_path, evaluate=lambda m: 1.5
    )
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert lines == list(history.records)
    assert lines[-1]["evaluation"] == {"value": 1.5}
    assert lines[-1]["seconds_per_step"] > 0
    assert history.evaluation == {"value": 1.5}


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train(make_net(), make_data(), budget=Steps(3)).steps == 3
    assert list(tmp_path.iterdir()) == []


def test_losses_are_their_definitions():
    g = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 5, 4, generator=g, dtype=torch.float64)
    target = torch.randint(0, 4, (2, 5), generator=g)
    rows = list(zip(outputs.reshape(10, 4).tolist(), target.reshape(10).tolist(), strict=True))
    ce = -sum(log_softmax_by_hand(row)[y] for row, y in rows) / 10
    square = sum((v - (c == y)) ** 2 for row, y in rows for c, v in enumerate(row)) / 40
    soft = sum(
        (math.exp(v) - (c == y)) ** 2 for row, y in rows for c, v in enumerate(log_softmax_by_hand(row))
    )
    assert float(cross_entropy(outputs, target)) == pytest.approx(ce, rel=1e-12)
    assert float(mse(outputs, target)) == pytest.approx(square, rel=1e-12)
    assert float(softmax_mse(outputs, target)) == pytest.approx(soft / 40, rel=1e-12)


def test_evaluation_weighs_a_smaller_last_batch_by_its_size():
    net, data = make_net(), make_data()
    whole, parts = evaluate(net, data, batch=N), evaluate(net, data, batch=10)
    with torch.no_grad():
        outputs = net(data.x)
    right = sum(int(row.argmax()) == int(y) for row, y in zip(outputs, data.target, strict=True))
    assert whole["loss"] == pytest.approx(parts["loss"], rel=1e-12)
    assert whole["accuracy"] == parts["accuracy"] == right / N
    assert evaluate(net, Examples(data.x, outputs), loss="mse") == {"loss": 0.0}


def test_evaluation_restores_the_mode_of_every_part():
    net = nn.Sequential(nn.Dropout(0.9), nn.Identity())
    net[1].eval()
    assert accuracy(net, Examples(torch.eye(3), torch.arange(3))) == 1.0
    assert [part.training for part in net.modules()] == [True, True, False]
