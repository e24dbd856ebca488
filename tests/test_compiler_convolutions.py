"""Convolutions in compiled code: every candidate means the same, forward and backward; the model's choice."""

import pytest
import torch
from torch import nn

import onematrix as om
from onematrix.compiler.convolution_code import is_long, is_short
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
    "long and causal": (lambda: Causal(16, 300), (2, 16, 300), "spectral_convolution"),
    "long and dilated": (lambda: Causal(32, 100, 3), (2, 32, 400), "spectral_convolution"),
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
    forms = {"spectral_convolution": FORMS[0], "shifted_convolution": FORMS[2], "channels_last": FORMS[3]}
    for kernel, form in forms.items():
        other = Form(spectral=False) if kernel == "spectral_convolution" else Form()
        assert (kernel in text_of(name, form)) is (kernel == word)
        assert kernel not in text_of(name, other)


def test_images_keep_their_layout_between_convolutions():
    """Nothing between flattens an image, which would copy it into the other layout."""
    plain = om.compile(images().eval(), torch.randn(2, 4, 11, 11), measure=False, prove=False)
    compiled = Compiled(plain.program, plain.lowered, FORMS[3])
    body = compiled.text.split("contiguous(memory_format", 1)[1].split("linear(")[0]
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
