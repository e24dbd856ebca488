"""Converted and compiled layers in float32 and bfloat16: no worse than twice the model's own error against float64."""

import copy

import pytest
import torch
from torch import nn

import onematrix as om
from converter_cases import normal, outputs_of
from onematrix.converters.conversion import convert
from test_converters_layers import IMAGE, LAYERS, NETWORKS, SHAPES, Many, convolutions, transposed

ROOM = 2.0


class Whole(nn.Module):
    """The outputs of a recurrent layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


CASES = {
    **{f"layer: {name}": (layer, IMAGE) for name, layer in LAYERS.items()},
    **{f"network: {name}": (net, (3, 3, 8, 8)) for name, net in NETWORKS.items()},
    **{f"convolutions {n}d": (Many(list(convolutions(n))), SHAPES[n]) for n in SHAPES},
    **{
        f"transposed {n}d": (Many([m for m in transposed(n) if m.output_padding[0] < m.stride[0]]), SHAPES[n])
        for n in SHAPES
    },
    **{
        kind.__name__: (Whole(kind(4, 6, 2, bidirectional=True, batch_first=True)), (3, 5, 4))
        for kind in (nn.RNN, nn.LSTM, nn.GRU)
    },
    "encoder": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (3, 5, 8)),
}
MISSING = {("layer: local response norm", torch.bfloat16)}  # torch has no such kernel


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_no_worse_than_twice_the_models_own_error(name, dtype):
    if (name, dtype) in MISSING:
        with pytest.raises(NotImplementedError):
            copy.deepcopy(CASES[name][0]).to(dtype)(normal(*CASES[name][1]).to(dtype))
        return
    layer, shape = CASES[name]
    torch.manual_seed(0)
    model = copy.deepcopy(layer).float().eval()
    for part in model.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    model = model.to(dtype)
    x = normal(8 * shape[0], *shape[1:]).to(dtype)  # enough numbers for their mean error to be one
    ours, theirs = (outputs_of(f) for f in (om.compile(convert(model, x), prove=False)(x), model(x)))
    exact = outputs_of(copy.deepcopy(model).double()(x.double()))
    errors = [0.0, 0.0]
    for a, b, true in zip(ours, theirs, exact, strict=True):
        assert a.dtype == b.dtype == dtype
        assert a.shape == b.shape
        for place, made in enumerate((a, b)):
            errors[place] += float((made.double() - true).square().sum())
    assert errors[0] ** 0.5 <= ROOM * errors[1] ** 0.5 + 1e-30, errors
