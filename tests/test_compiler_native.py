"""The source module as one more way to run its program: over the compiled module's tensors, and only where it may."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import onematrix as om
from onematrix.compiler import compilation
from onematrix.compiler.choice import Trial
from onematrix.errors import ShapeError


@pytest.fixture
def preferred(monkeypatch):
    """The source module is taken wherever it is a candidate."""

    def choose_source(form, build, inputs):
        return replace(form, native=True), [Trial("native", form, 1.0, 2.0)]

    monkeypatch.setattr(compilation, "choose_source", choose_source)


class Net(nn.Module):
    """Two layers, one weight tied, a count of its calls."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.calls = []

    def forward(self, x):
        if not torch.compiler.is_compiling() and type(x) is torch.Tensor:
            self.calls.append(1)
        return self.second(torch.relu(self.norm(self.first(x))))


def compiled_net():
    torch.manual_seed(0)
    net = Net().eval()
    x = torch.randn(3, 4)
    return net, x, om.compile(net, x)


@pytest.mark.usefixtures("preferred")
def test_after_an_export_the_source_runs_over_the_same_parameters():
    net, x, ours = compiled_net()
    torch.export.export(ours, (x,))
    with torch.no_grad():
        net.first.weight.mul_(2)
    count = len(ours.native.module.calls)
    assert torch.equal(ours(x), net(x))
    assert len(ours.native.module.calls) == count + 1


@pytest.mark.usefixtures("preferred")
def test_the_source_runs_over_the_parameters_of_the_compiled_module():
    net, x, ours = compiled_net()
    assert ours.form.native
    count = len(ours.native.module.calls)
    assert torch.equal(ours(x), net(x))
    assert len(ours.native.module.calls) == count + 1
    assert {id(p) for p in ours.parameters() if p.requires_grad} == {id(p) for p in net.parameters()}
    ours(x).square().sum().backward()
    mine = net.first.weight.grad.clone()
    net.zero_grad()
    net(x).square().sum().backward()
    torch.testing.assert_close(mine, net.first.weight.grad)
    with torch.no_grad():
        net.first.weight.mul_(2)
    assert torch.equal(ours(x), net(x))


@pytest.mark.usefixtures("preferred")
def test_it_follows_copies_casts_and_loaded_states():
    net, x, ours = compiled_net()
    twin = copy.deepcopy(ours)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    assert torch.equal(ours(x), net(x))
    changed = twin(x)
    twin.native = None
    torch.testing.assert_close(changed, twin(x))
    assert not torch.equal(changed, net(x))
    count = len(ours.native.module.calls)
    double = copy.deepcopy(ours).double()
    torch.testing.assert_close(double(x.double()), net(x).double(), rtol=1e-4, atol=1e-5)
    assert len(double.native.module.calls) == count, "in another dtype the code of the program runs"
    ours.load_state_dict(twin.state_dict())
    torch.testing.assert_close(ours(x), changed)


@pytest.mark.usefixtures("preferred")
def test_the_code_of_the_program_says_what_does_not_fit_and_is_what_torch_compiles():
    _, x, ours = compiled_net()
    with pytest.raises(ShapeError, match="5"):
        ours(torch.zeros(3, 5))
    traced = torch.compile(ours, fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(x), ours(x))
    exported = torch.export.export(ours, (x,)).module()
    torch.testing.assert_close(exported(x), ours(x))


@pytest.mark.usefixtures("preferred")
@pytest.mark.parametrize(
    ("module", "why"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train(), "its statistics would change"),
        (nn.Identity(), "it returns the caller's tensor"),
    ],
    ids=["batch norm in training", "identity"],
)
def test_a_module_that_would_not_mean_the_same_is_no_candidate(module, why):
    assert not om.compile(module, torch.randn(3, 4), prove=False).form.native, why


def test_it_is_taken_only_when_two_measurements_say_so(monkeypatch):
    from onematrix.compiler import choice
    from onematrix.compiler.form import Form

    answers = iter([(1.0, 0.5), (1.0, 0.99), (1.0, 0.5), (1.0, 0.5)])
    monkeypatch.setattr(choice, "_compare", lambda one, other, inputs: next(answers))
    refused, trials = choice.choose_source(Form(), lambda form: form, ())
    assert not refused.native
    assert len(trials) == 2
    taken, _ = choice.choose_source(Form(), lambda form: form, ())
    assert taken.native


class Line(nn.Linear):
    """A layer that is the same program as nn.Linear."""


def test_what_was_chosen_for_another_module_is_measured_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ONEMATRIX_CACHE", str(tmp_path))
    x = torch.ones(1, 4)
    for cls, remembered in ((nn.Linear, False), (nn.Linear, True), (Line, False)):
        om.compile(cls(4, 2), x, explain=True)
        assert ("forms: remembered" in capsys.readouterr().out) is remembered
