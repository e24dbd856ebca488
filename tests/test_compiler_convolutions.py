"""Convolutions in compiled code: every candidate means the same, forward and backward; the model's choice."""

import re

import pytest
import torch
from torch import nn

import onematrix as om
from onematrix.compiler.convolution_code import ALONE, is_long, is_short, long_from
from onematrix.compiler.form import Form
from onematrix.compiler.module import Compiled
from onematrix.structures.convolution import Convolution
from structure_cases import normal


class Causal(nn.Module):
    """Padded in front alone."""

    def __init__(self, channels, taps, dilation=1):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, taps, groups=channels, dilation=dilation)
        self.front = dilation * (taps - 1)

    def forward(self, x):
        return torch.relu(self.conv(nn.functional.pad(x, (self.front, 0))))


def images():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 6, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 5),
    )


CASES = {
    "long": (lambda: nn.Conv1d(16, 16, 401, padding=200, groups=16), (2, 16, 400), "spectral_convolution"),
    "long, channels mixed": (lambda: nn.Conv1d(4, 6, 900, padding=450), (2, 4, 900), "spectral_convolution"),
    "long and causal": (lambda: Causal(16, 300), (2, 16, 300), "convolution_by_length"),
    "long and dilated": (lambda: Causal(32, 100, 3), (2, 32, 400), "convolution_by_length"),
    "short": (lambda: nn.Conv1d(6, 6, 3, padding=1, groups=6), (2, 6, 50), "shifted_convolution"),
    "short and causal": (lambda: Causal(6, 4, 2), (2, 6, 50), "shifted_convolution"),
    "strided": (lambda: nn.Conv1d(6, 6, 3, stride=2, groups=6), (2, 6, 50), None),
    "images": (images, (2, 4, 11, 11), "channels_last"),
}
FORMS = [Form(), Form(spectral=False), Form(whole_kernels=False), Form(channels_first=False)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", FORMS, ids=["plain", "no FFT", "shifted", "channels last"])
def test_every_form_means_the_same(name, form):
    make, shape, _ = CASES[name]
    torch.manual_seed(0)
    module = make().double().eval()
    plain = om.compile(module, normal(*shape), measure=False, prove=False)
    compiled = Compiled(plain.program, plain.lowered, form)
    x = normal(*shape, seed=2).requires_grad_()
    outs = [f(x) for f in (compiled, module)]
    torch.testing.assert_close(*outs, rtol=1e-9, atol=1e-9)
    free = [x, *(p for p in module.parameters())]
    weight = normal(*outs[1].shape, seed=3)
    for ours, theirs in zip(*(torch.autograd.grad((y * weight).sum(), free) for y in outs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def text_of(name, form):
    make, shape, _ = CASES[name]
    plain = om.compile(make().eval(), torch.zeros(shape), measure=False, prove=False)
    compiled = Compiled(plain.program, plain.lowered, form)
    kernels = [getattr(v, "__name__", "") for v in compiled._emitted[False].constants.values()]
    return compiled.text + " ".join(kernels)


@pytest.mark.parametrize("name", CASES)
def test_the_kernels_run_where_they_are_asked_for(name):
    word = CASES[name][2]
    spectral = ("spectral_convolution", "convolution_by_length")  # always, and where gradients follow
    forms = dict.fromkeys(spectral, FORMS[0]) | {"shifted_convolution": FORMS[2], "channels_last": FORMS[3]}
    for kernel, form in forms.items():
        other = Form(spectral=False) if kernel in spectral else Form()
        assert (kernel in text_of(name, form)) is (kernel == word)
        assert kernel not in text_of(name, other)


def test_images_keep_their_layout_between_convolutions():
    """Nothing between flattens an image, which would copy it into the other layout."""
    plain = om.compile(images().eval(), torch.randn(2, 4, 11, 11), measure=False, prove=False)
    compiled = Compiled(plain.program, plain.lowered, FORMS[3])
    body = compiled.text.split("torch.conv2d(", 1)[1].split("linear(")[0]
    assert "flatten" not in body.rsplit("torch.conv2d", 1)[0]
    assert "torch.max_pool2d(" in body


def depthwise(taps, ticks=1024, channels=64):
    return Convolution(torch.zeros(channels, 1, taps), ticks, padding=f"{taps - 1} 0", groups=channels)


def test_the_model_takes_ffts_from_some_twenty_taps_on():
    assert [is_long(depthwise(taps)) for taps in (3, 9, 15, 31, 255)] == [False, False, False, True, True]
    assert not is_long(depthwise(31, ticks=32, channels=1)), "the calls cost more than the taps"
    mixed = [Convolution(torch.zeros(64, 64, taps), 1024, padding=f"{taps - 1} 0") for taps in (9, 1024)]
    assert [is_long(a) for a in mixed] == [False, True]
    assert not is_long(Convolution(torch.zeros(4, 1, 64), "time", groups=4)), "the length is free"
    assert not is_long(Convolution(torch.zeros(64, 1, 255), 1024, padding="-1 0", groups=64))
    assert [is_short(depthwise(taps)) for taps in (1, 7, 8)] == [True, True, False]


def test_measuring_keeps_the_faster_and_remembers_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEMATRIX_CACHE", str(tmp_path))
    x = torch.randn(1, 8, 1024)
    module = nn.Conv1d(8, 8, 1023, padding=511, groups=8)
    compiled = om.compile(module, x, prove=False)
    assert compiled.form.spectral
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-3, atol=1e-3)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "a",
    [
        Convolution(normal(3, 2, 4), 9, padding="3 0"),
        Convolution(normal(4, 1, 3), 9, padding="0 2", groups=4),
        Convolution(normal(3, 2, 2, 3), 5, 6, padding="1 0 2 1"),
        Convolution(normal(3, 2, 2, 3), 5, 6, padding="1 0 0 2", stride="2 1"),
        Convolution(normal(2, 2, 2, 2, 2), 3, 4, 5, padding="1 0 0 1 1 1"),
        Convolution(normal(3, 2, 3), 9, padding="1 -2"),
        Convolution(normal(3, 2, 3), 9, padding="-1 -1"),
        Convolution(normal(3, 2, 3), 9, padding="2 2", mode="circular"),
    ],
    ids=lambda a: f"{a.dimensions}d {a.padding}",
)
@pytest.mark.parametrize("form", FORMS, ids=["plain", "no FFT", "shifted", "channels last"])
def test_uneven_padding_is_the_definitions(a, form):
    parts = {"x": (a.channels, *a.sizes), "y": (a.weight.shape[0], *a.output_sizes)}
    program = om.Program(om.Step(om.BlockMatrix({("y", "x"): a}, parts)), ["x"], ["y"])
    compiled = Compiled(program, program, form)
    x = normal(2, *parts["x"], seed=2)
    torch.testing.assert_close(compiled(x).flatten(1), x.flatten(1) @ a.to_dense().mT, rtol=1e-9, atol=1e-9)
    assert ("_matmul" in compiled.text) is (a.mode != "zeros")


FREE = {
    "causal": Convolution(normal(8, 1, 400), "time", padding="399 0", groups=8),
    "both sides": Convolution(normal(8, 1, 401), "time", padding="200 200", groups=8),
    "dilated": Convolution(normal(16, 1, 150), "time", padding="447 0", dilation="3", groups=16),
    "channels mixed": Convolution(normal(3, 2, 600), "time", padding="300 299"),
    "uneven": Convolution(normal(8, 1, 400), "time", padding="399 7", groups=8),
}


def program_of(a):
    parts = {"x": (a.channels, *a.sizes), "y": (a.weight.shape[0], *a.output_sizes)}
    return om.Program(om.Step(om.BlockMatrix({("y", "x"): a}, parts)), ["x"], ["y"])


@pytest.fixture
def uses_fft(monkeypatch):
    calls = []
    rfft = torch.fft.rfft
    monkeypatch.setattr(torch.fft, "rfft", lambda *arguments: calls.append(1) or rfft(*arguments))

    def uses(module, x):
        calls.clear()
        module(x)
        return bool(calls)

    return uses


@pytest.mark.parametrize("name", FREE)
def test_convolutions_of_any_length_mean_the_same_at_each(name):
    a, compiled = FREE[name], om.compile(program_of(FREE[name]), prove=False)
    least = long_from(a)
    alone = long_from(a, ALONE) or 2 * least
    assert 1 < least < alone
    for length in (1, 2, least - 1, least, alone):
        x = normal(2, a.channels, length).requires_grad_()
        weight = compiled.get_parameter("blocks.y.x.weight")
        got = compiled(x)
        if length < 40:
            wanted = x.flatten(1) @ a.at(time=length).to_dense().mT
            torch.testing.assert_close(got.flatten(1), wanted, rtol=1e-9, atol=1e-9)
        full = torch.nn.functional.pad(x, a.paddings[0])
        native = torch.conv1d(full, weight, None, 1, 0, a.dilations[0], a.groups)
        torch.testing.assert_close(got, native, rtol=1e-9, atol=1e-9)
        slopes = [torch.autograd.grad(y.sin().sum(), (x, weight)) for y in (got, native)]
        torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-8)


def test_a_free_length_is_transformed_where_that_pays(uses_fft):
    """From one length on with gradients, from a larger one without."""
    a = FREE["causal"]
    compiled = om.compile(program_of(a), prove=False)
    least, alone = long_from(a), long_from(a, ALONE)
    places = {
        length: normal(2, a.channels, length) for length in (least - 1, least, alone - 1, alone, 2 * alone)
    }
    with_gradients = {length: uses_fft(compiled, x) for length, x in places.items()}
    assert with_gradients == {length: length >= least for length in places}
    with torch.no_grad():
        without = {length: uses_fft(compiled, x) for length, x in places.items()}
    assert without == {length: length >= alone for length in places}
    program = program_of(a)
    refused = Compiled(program, program, Form(spectral=False))
    assert not uses_fft(refused, places[alone])
    assert "apply_wire" not in refused.text


def test_few_taps_of_a_free_length_are_never_transformed():
    a = Convolution(normal(8, 1, 9), "time", padding="8 0", groups=8)
    assert long_from(a) is None
    compiled = om.compile(program_of(a), prove=False)
    assert "torch.conv1d" in compiled.text
    x = normal(2, 8, 20)
    wanted = x.flatten(1) @ a.at(time=20).to_dense().mT
    torch.testing.assert_close(compiled(x).flatten(1), wanted, rtol=1e-9, atol=1e-9)


def test_a_converted_convolution_of_any_length_asks_the_interpreter_nothing():
    module = nn.Conv1d(8, 8, 401, padding=200, groups=8).double()
    program = om.convert(module, normal(2, 8, 50), free={"input": {2: "time"}})
    compiled = om.compile(program)
    assert "apply_wire" not in compiled.text
    assert "module._run" not in compiled.text
    for length in (1, 30, 700):
        x = normal(2, 8, length)
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(compiled(normal(0, 8, 700)), module(normal(0, 8, 700)))


def test_a_convolution_of_any_length_is_exported_and_compiled():
    module = nn.Conv1d(8, 8, 401, padding=200, groups=8).double()
    compiled = om.compile(om.convert(module, normal(2, 8, 50), free={"input": {2: "time"}}), prove=False)
    time = torch.export.Dim("time", min=2, max=4000)
    exported = torch.export.export(compiled, (normal(2, 8, 50),), dynamic_shapes={"inputs": ({2: time},)})
    graph = torch.compile(compiled, fullgraph=True, backend="eager", dynamic=True)
    for length in (20, 900):
        x = normal(2, 8, length)
        for run in (exported.module(), graph):
            torch.testing.assert_close(run(x), module(x), rtol=1e-9, atol=1e-9)


class Average(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


MEANS = {
    "rows": (lambda: nn.AdaptiveAvgPool2d((1, 5)), [".sum([2]) / 4"]),
    "one after the other": (lambda: nn.AdaptiveAvgPool2d(1), [".sum([2]) / 4", ".sum([2]) / 5"]),
    "at once": (Average, [".sum([2, 3]) / 20"]),
}


@pytest.mark.parametrize("name", MEANS)
def test_means_are_taken_where_an_image_lies(name):
    shape, (make, texts) = (3, 4, 5), MEANS[name]
    module = nn.Sequential(make(), nn.Tanh()).double()
    compiled = om.compile(module, normal(2, *shape), measure=False, prove=False)
    assert re.findall(r"\.sum\(.*\) / \d+", compiled.text) == texts
    assert "_matmul" not in compiled.text
    x = normal(2, *shape, seed=2).requires_grad_()
    outs = [f(x) for f in (compiled, module)]
    torch.testing.assert_close(*outs, rtol=1e-12, atol=1e-12)
    weight = normal(*outs[1].shape, seed=3)
    slopes = [torch.autograd.grad((y * weight).sum(), x) for y in outs]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("taps", "stride", "why"),
    [
        (5, 1, "multiplying every tap out costs less by the model"),
        (1025, 2, "it has a stride"),
        (1025, 1, None),
    ],
)
def test_why_a_convolution_does_not_run_by_fft_is_said(taps, stride, why):
    module = nn.Conv1d(4, 4, taps, stride, padding=taps // 2, groups=4)
    notes = om.compile(module, torch.randn(2, 4, 2048), measure=False, prove=False).notes
    assert [n for n in notes if n.startswith(f"convolution of 'input', {taps} taps: no FFT: {why}")] == list(
        notes
    )
    assert bool(notes) is (why is not None)
