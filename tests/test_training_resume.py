"""Runs killed, interrupted, extended or resumed give the numbers of runs that were not; what is shown."""

import functools
import io
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from onematrix.records.files import read_lines
from onematrix.training import Epochs, Examples, Recipe, Seconds, Steps, checkpoint, loop, train
from onematrix.training.progress import Bar, Lines, Silent, choose_reporter

train = functools.partial(train, progress=False)
RECIPE = Recipe(batch=5, learning_rate=0.01)  # 5 steps an epoch, the last of 3 examples
STEPS = 18  # ends inside the fourth epoch


class Tied(nn.Module):
    """Draws chance (dropout), keeps buffers (batch norm), one matrix under two names, a frozen bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.norm, self.drop, self.last = nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 3)
        self.last.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(self.second(self.norm(self.first(x).relu()))))


def make_data(seed: int = 1) -> Examples:
    x = torch.randn(23, 6, generator=torch.Generator().manual_seed(seed))
    return Examples(x, x[:, :3].argmax(-1))


def untimed(records) -> list[dict]:
    return [{k: v for k, v in record.items() if not k.startswith("seconds")} for record in records]


def assert_same_run(net, history, folder, budget=None, recipe=RECIPE):
    """Bit for bit the parameters, buffers and records of a run in one go."""
    plain, data = Tied(), make_data()
    whole = train(plain, data, recipe, budget=budget or Steps(STEPS), evaluate=data)
    state = plain.state_dict()
    assert [name for name, value in net.state_dict().items() if not torch.equal(value, state[name])] == []
    assert untimed(history.records) == untimed(whole.records)
    assert read_lines(folder / "records.jsonl") == list(history.records)
    assert (history.steps, history.evaluation) == (whole.steps, whole.evaluation)
    assert net.first.weight is net.second.weight
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.safetensors", "records.jsonl"]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def dying(function, call, before=False, instead=None):
    """The function, killing the process after (or before, or instead of) its call number `call`."""
    calls = []

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == call and instead is not None:
            instead(*args)
        if len(calls) == call and (before or instead is not None):
            die()
        result = function(*args, **kwargs)
        if len(calls) == call:
            die()
        return result

    return wrapped


def half_a_checkpoint(tensors, path, metadata):
    checkpoint_writer(tensors, path, metadata)
    os.truncate(path, Path(path).stat().st_size // 2)


def half_a_record(path, record):
    with open(path, "a") as lines:
        lines.write('{"epoch": 2, "st')


checkpoint_writer = checkpoint.save_file
MOMENTS = {
    "inside a step": (nn.utils, "clip_grad_norm_", {"before": True}),
    "after the update": (torch.optim.Adam, "step", {}),
    "half a checkpoint written": (checkpoint, "save_file", {"instead": half_a_checkpoint}),
    "before the rename": (os, "replace", {"before": True}),
    "after the rename": (os, "replace", {}),
    "half a record written": (loop, "append_line", {"instead": half_a_record}),
    "after a record": (loop, "append_line", {}),
    "before an evaluation": (loop, "run_evaluation", {"before": True}),
}


def train_until_killed(folder, moment, call, every):
    torch.set_num_threads(1)
    place, name, how = MOMENTS[moment]
    setattr(place, name, dying(getattr(place, name), call, **how))
    train(
        Tied(), make_data(), RECIPE, budget=Steps(STEPS), folder=folder, evaluate=make_data(),
        checkpoint_seconds=every,
    )  # fmt: skip


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "onematrix.training"])  # what an optimiser imports
    return context


def kill_a_run(processes, *args) -> None:
    process = processes.Process(target=train_until_killed, args=args)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, "the run ended before its moment came"


@pytest.mark.parametrize(
    ("moment", "call", "every"),
    [
        ("inside a step", 1, 0.0),
        ("inside a step", 9, 0.0),
        ("inside a step", 13, 1e9),
        ("after the update", 12, 0.0),
        ("half a checkpoint written", 1, 0.0),
        ("half a checkpoint written", 8, 0.0),
        ("half a checkpoint written", 3, 1e9),
        ("before the rename", 7, 0.0),
        ("after the rename", 11, 0.0),
        ("half a record written", 2, 0.0),
        ("after a record", 2, 0.0),
        ("after a record", 4, 0.0),
        ("before an evaluation", 3, 0.0),
    ],
)
def test_a_killed_run_goes_on_exactly(processes, tmp_path, moment, call, every):
    kill_a_run(processes, tmp_path, moment, call, every)
    net = Tied()
    history = train(net, make_data(), RECIPE, budget=Steps(STEPS), folder=tmp_path, evaluate=make_data())
    assert_same_run(net, history, tmp_path)


def test_a_run_killed_again_and_again_goes_on_exactly(processes, tmp_path):
    for moment, call in (("inside a step", 4), ("after a record", 1), ("half a checkpoint written", 3)):
        kill_a_run(processes, tmp_path, moment, call, 0.0)
    net = Tied()
    history = train(net, make_data(), RECIPE, budget=Steps(STEPS), folder=tmp_path, evaluate=make_data())
    assert history.resumed_from >= 5
    assert_same_run(net, history, tmp_path)


def write_slowly(tensors, path, metadata):
    half_a_checkpoint(tensors, path, metadata)
    (Path(path).parent.parent / "writing").touch()
    time.sleep(60)


def train_with_a_slow_disk(folder):
    torch.set_num_threads(1)
    checkpoint.save_file = dying(checkpoint.save_file, 6, instead=write_slowly)
    train(Tied(), make_data(), RECIPE, budget=Steps(STEPS), folder=folder, checkpoint_seconds=0)


def test_a_kill_from_outside_during_a_slow_write(processes, tmp_path):
    folder = tmp_path / "run"
    process = processes.Process(target=train_with_a_slow_disk, args=(folder,))
    process.start()
    end = time.monotonic() + 60
    while not (tmp_path / "writing").exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    process.join(60)
    assert len(list(folder.glob(".checkpoint*.tmp"))) == 1
    net = Tied()
    history = train(net, make_data(), RECIPE, budget=Steps(STEPS), folder=folder)
    assert history.resumed_from == 5
    plain = Tied()
    train(plain, make_data(), RECIPE, budget=Steps(STEPS))
    assert torch.equal(net.last.weight, plain.last.weight)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "momentum", "rmsprop", torch.optim.NAdam])
def test_a_finished_run_extends_exactly(tmp_path, name):
    recipe = Recipe(optimizer=name, batch=5, learning_rate=0.01)
    for budget in (Steps(7), Steps(7), Epochs(2), Steps(STEPS)):  # the second has nothing left to do
        net = Tied()
        history = train(net, make_data(), recipe, budget=budget, folder=tmp_path, evaluate=make_data())
    assert history.resumed_from == 10
    assert_same_run(net, history, tmp_path, recipe=recipe)


def test_parameter_groups_keep_their_values_and_states(tmp_path):
    def make(parameters, lr):
        return torch.optim.SGD(
            [{"params": parameters[:2], "lr": lr, "momentum": 0.9}, {"params": parameters[2:]}]
        )

    recipe = Recipe(optimizer=make, batch=5)
    train(Tied(), make_data(), recipe, budget=Steps(3), folder=tmp_path)
    net = Tied()
    history = train(net, make_data(), recipe, budget=Steps(STEPS), folder=tmp_path, evaluate=make_data())
    assert history.resumed_from == 3
    assert untimed(history.records)[-1]["step"] == STEPS
    plain = Tied()
    train(plain, make_data(), recipe, budget=Steps(STEPS))
    assert torch.equal(net.first.weight, plain.first.weight)


class Clock:
    """One second a batch, none otherwise."""

    def __init__(self) -> None:
        self.now, self.stop_at = 0.0, None
        self.data = make_data()

    def perf_counter(self) -> float:
        return self.now

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices):
        self.now += 1.0
        if self.now == self.stop_at:
            raise OSError("power cut")
        return self.data.batch(indices)


def test_a_time_budget_counts_steps_and_resumes_with_the_time_left(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    history = train(Tied(), clock, RECIPE, budget=Seconds(12))
    assert (history.steps, history.seconds, history.records[-1]["step"]) == (12, 12.0, 12)
    clock.now, clock.stop_at = 0.0, 9.0  # the first second goes to the check that the data are the same
    with pytest.raises(OSError, match="power cut"):
        train(Tied(), clock, RECIPE, budget=Seconds(12), folder=tmp_path)
    clock.now = 1000.0
    history = train(Tied(), clock, RECIPE, budget=Seconds(12), folder=tmp_path)
    assert (history.resumed_from, history.steps) == (5, 11)
    assert [record["seconds"] for record in history.records] == [6.0, 11.0, 12.0]


def test_resume_false_starts_over(tmp_path):
    train(Tied(), make_data(9), Recipe(seed=4), budget=Steps(3), folder=tmp_path)
    net = Tied()
    history = train(
        net, make_data(), RECIPE, budget=Steps(STEPS), folder=tmp_path, resume=False, evaluate=make_data()
    )
    assert history.resumed_from == 0
    assert_same_run(net, history, tmp_path)


def test_a_checkpoint_keeps_every_kind_of_tensor_bit_for_bit(tmp_path):
    kinds = (torch.float64, torch.bfloat16, torch.complex64, torch.bool, torch.int32, torch.uint8)
    tensors = {str(kind): torch.tensor([[0, 1], [1, 0]]).to(kind).T for kind in kinds}
    shared = torch.arange(6.0)
    tensors |= {"scalar": torch.tensor(1 / 3), "empty": torch.zeros(0, 3), "a": shared, "b": shared[2:]}
    checkpoint.write_checkpoint(tmp_path / "c", tensors, {"third": 1 / 3, "inf": float("inf")})
    read = checkpoint.read_checkpoint(tmp_path / "c")
    assert read.header == {"third": 1 / 3, "inf": float("inf")}
    assert set(read.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert read.tensors[name].dtype == tensor.dtype
        assert torch.equal(read.tensors[name], tensor), name


class Interrupting:
    """Cross-entropy that sends SIGINT at its third call, `times` times."""

    def __init__(self, times: int) -> None:
        self.calls, self.times = 0, times

    def __call__(self, outputs, target):
        self.calls += 1
        for _ in range(self.times if self.calls == 3 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return nn.functional.cross_entropy(outputs, target)


def test_ctrl_c_ends_after_the_step_and_the_run_resumes_exactly(tmp_path, capfd):
    before = signal.getsignal(signal.SIGINT)
    recipe = Recipe(loss=Interrupting(1), batch=5, learning_rate=0.01)
    run = functools.partial(train, data=make_data(), recipe=recipe, evaluate=make_data())
    history = run(Tied(), budget=Steps(STEPS), folder=tmp_path, progress=None)
    assert (history.interrupted, history.steps) == (True, 3)
    assert history.records[-1]["complete"] is False
    assert signal.getsignal(signal.SIGINT) is before
    output = capfd.readouterr()
    assert "press Ctrl-C again to abort at once" in output.err
    assert f"training: interrupted at step 3; resume from {tmp_path}" in output.out
    net = Tied()
    history = run(net, budget=Steps(STEPS), folder=tmp_path)
    assert (history.interrupted, history.resumed_from) == (False, 3)
    assert_same_run(net, history, tmp_path)


def test_a_second_ctrl_c_aborts_at_once_and_leaves_the_last_checkpoint(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    recipe = Recipe(loss=Interrupting(2), batch=5, learning_rate=0.01)
    with pytest.raises(KeyboardInterrupt):
        train(Tied(), make_data(), recipe, budget=Steps(9), folder=tmp_path, checkpoint_seconds=0)
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint.read_checkpoint(tmp_path / "checkpoint.safetensors").header["step"] == 2


def test_training_in_a_thread_needs_no_signals(tmp_path):
    histories = []
    thread = threading.Thread(
        target=lambda: histories.append(train(Tied(), make_data(), RECIPE, budget=Steps(3)))
    )
    thread.start()
    thread.join(60)
    assert histories[0].steps == 3


def test_lines_come_after_two_seconds_then_every_five():
    stream = io.StringIO()
    lines = choose_reporter(None, "dense", stream)
    assert isinstance(lines, Lines)
    for second in range(1, 10):
        lines.update(second / 9, f"step {second} of 9", float(second))
    lines.close()
    shown = [f"dense: step {k} of 9, {k} s" for k in (2, 7, 9)]
    assert stream.getvalue().splitlines() == shown


def test_a_short_run_shows_nothing(capsys):
    train(Tied(), make_data(), RECIPE, budget=Steps(3), progress=None)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_after_two_seconds():
    stream = io.StringIO()
    stream.isatty = lambda: True
    assert isinstance(choose_reporter(False, "dense", stream), Silent)
    assert isinstance(choose_reporter(None, "dense", stream), Bar)
    bar = Bar("dense", stream, width=120)
    bar.update(0.1, "step 1 of 10", 1.0)
    assert stream.getvalue() == ""
    bar.update(0.5, "step 5 of 10", 3.0)
    assert "step 5 of 10" in stream.getvalue()
    assert "50%" in stream.getvalue()
    bar.update(1.0, "step 10 of 10", 3.1)
    bar.close()
    assert "step 10 of 10" in stream.getvalue()
