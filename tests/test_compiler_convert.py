"""om.compile(module, *inputs): any torch module the converters read, with the module's own parameters."""

import pytest
import torch
from torch import nn

import onematrix as om
from onematrix.errors import ConversionError
from test_compiler_module import same
from test_programs_random import gradients

torch.manual_seed(0)
MODULES = {
    "mlp": (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), (8,)),
    "convolutions": (
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, stride=2, groups=4, bias=False),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(72, 5),
        ),
        (3, 16, 16),
    ),
    "batch_norm": (
        nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(2)).eval(),
        (2, 12),
    ),
    "encoder": (nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True), (5, 16)),
}


def first(value):
    return value[0] if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", MODULES)
def test_modules_keep_outputs_gradients_and_parameters(name):
    module, shape = MODULES[name]
    module = module.double()
    x = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    compiled = om.compile(module, x.detach(), measure=False)
    ours, theirs = first(compiled(x)), first(module(x))
    same(ours, theirs, rtol=1e-11, atol=1e-11)
    parameters = list(module.parameters())
    assert {id(p) for p in parameters} <= {id(p) for p in compiled.parameters()}
    free = [x, *parameters]
    same(gradients([ours], free), gradients([theirs], free), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        again = torch.randn(5, *shape, dtype=torch.float64)
        same(first(compiled(again)), first(module(again)), rtol=1e-11, atol=1e-11)


def test_convolutions_run_as_torchs_own_with_their_bias():
    module, shape = MODULES["convolutions"]
    text = om.compile(module.float(), torch.randn(2, *shape), measure=False, prove=False).text
    assert text.count("torch.conv2d(") == 2
    assert "_matmul" not in text.split("conv2d(")[1]


def test_infinite_arguments_of_activations_are_numbers_in_the_code():
    """A causal mask fills with −∞, which the code writes as Python does."""

    class Causal(nn.Module):
        def forward(self, x):
            mask = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool).tril()
            return torch.softmax(x.masked_fill(~mask, -torch.inf), -1)

    x = torch.randn(2, 4, 4)
    same(om.compile(Causal(), x, measure=False)(x), Causal()(x), rtol=1e-6, atol=1e-6)


def test_a_mean_over_the_batch_is_given_to_every_sample():
    class Centre(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 4)

        def forward(self, x):
            h = self.inner(x)
            return h.mean(0), torch.relu(h - h.mean(0))

    module = Centre().double()
    for batch in (1, 3):
        x = torch.randn(batch, 8, dtype=torch.float64)
        compiled = om.compile(module, torch.randn(3, 8, dtype=torch.float64), measure=False)
        mean, rest = compiled(x)
        same((mean, rest), (module(x)[0].expand(batch, 4), module(x)[1]))
        ours = gradients([mean, rest], list(module.parameters()))
        same(ours, gradients([module(x)[0].expand(batch, 4), module(x)[1]], list(module.parameters())))


def test_a_module_is_converted_as_it_is_under_autocast():
    module, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh()), torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        compiled = om.compile(module, x)
        assert compiled(x).dtype == module(x).dtype == torch.bfloat16
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrong", ["x", None, [1.0]])
def test_example_inputs_that_are_no_tensors_are_named(wrong):
    with pytest.raises(ConversionError, match=r".*input 'input' is \w+, a tensor was needed"):
        om.compile(nn.Linear(2, 2), wrong)
