"""What cannot be converted is refused: module path, operator, source line and remedy in the message."""

import pytest
import torch
from torch import nn

import onematrix as om
from converter_cases import Of, OfTwo
from onematrix.converters.conversion import convert
from onematrix.errors import ConversionError

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


class Count(nn.Module):
    def forward(self, x):
        return x[:, : int(x.sum().item())]


class Writes(nn.Module):
    def forward(self, x):
        x.add_(1)
        return 2 * x


class WritesAPart(nn.Module):
    def forward(self, x):
        x[:, 0] = 1.0
        return 2 * x


class Optional(nn.Module):
    def forward(self, x, mask=None):
        return x if mask is None else x * mask


HERE = r"test_converters_refusals\.py"
CASES = {
    "a branch on the data": (
        nn.Sequential(nn.Linear(4, 4), Branch()),
        (X,),
        rf"^1: aten\.item at .*{HERE}:\d+: if x\.sum\(\) > 0: cannot be converted: .*use torch\.where",
    ),
    "a size from the data": (Count(), (X,), rf"^Count: aten\.item at .*{HERE}:\d+: return x.*torch\.where"),
    "positions of what is not zero": (
        Of(lambda x: x.nonzero()),
        (X,),
        r"aten\.nonzero\.default .*the size .* depends on the numbers of the data",
    ),
    "an input written in place": (
        nn.Sequential(Writes()),
        (X,),
        rf"^0: aten\.add_\.Tensor writes into input 'input' \(.*{HERE}.*x\.add_\(1\)\); write x = x\.add\(…\)",
    ),
    "a part of an input written": (
        WritesAPart(),
        (X,),
        rf"aten\.fill_\.Tensor writes into input 'x' \(.*{HERE}.*x\[:, 0\] = 1\.0\)",
    ),
    "a number for an input": (Optional(), (X, 3), r"convert\(Optional\): input 'mask' is int, a tensor was needed; "),
    "a list for an input": (nn.Identity(), ([X, X],), r"input 'input' is list, a tensor was needed"),
    "an input too many": (nn.Linear(4, 2), (X, X), r"takes 1 inputs \(input\), got 2: .*one example tensor per"),
    "an input too few": (nn.Bilinear(4, 4, 2), (X,), r"takes 2 inputs \(input1, input2\), got 1: missing"),
    "no input": (nn.Linear(4, 2), (), r"takes 1 inputs \(input\), got 0"),
    "an input without dimension": (nn.Identity(), (torch.tensor(1.0),), "has no dimension; dimension 0 is the batch"),
    "max_norm": (
        nn.Sequential(nn.Embedding(5, 3, max_norm=1.5)),
        (torch.zeros(2, 3, dtype=torch.long),),
        r"^0: Embedding\(max_norm=1\.5\) rewrites its weight .*sparse\.py:\d+\); renormalise it once",
    ),
    "max_norm of a bag": (
        nn.EmbeddingBag(5, 3, max_norm=2.0),
        (torch.zeros(2, 3, dtype=torch.long),),
        r"EmbeddingBag\(max_norm=2\.0\)",
    ),
    "complex inputs": (nn.Identity(), (X.to(torch.complex64),), r"complex \(torch\.complex64\); give"),
    "complex parameters": (Of(lambda x, w: x, X.to(torch.complex64)), (X,), r"numbers\.0 is complex"),
    "complex numbers on the way": (
        nn.Sequential(Of(lambda x: torch.fft.rfft(x).abs())),
        (X,),
        r"^0: aten\._fft_r2c\.default \(.*gives complex numbers \(torch\.complex64\).*real and imaginary parts",
    ),
    "quantised inputs": (
        nn.Identity(),
        (torch.quantize_per_tensor(X, 0.1, 0, torch.quint8),),
        r"quantised \(torch\.quint8\); call \.dequantize",
    ),
    "nested inputs": (
        nn.Identity(),
        (torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged),),
        "is a nested tensor; pad it to one length and give a mask",
    ),
    "sparse inputs": (nn.Identity(), (X.to_sparse(),), r"layout torch\.sparse_coo; call \.to_dense\(\)"),
    "a fixed batch": (
        Of(lambda x: x + torch.ones(3, 1).expand(3, 4)),
        (X,),
        r"batch at 3|fixes a free size|batch",
    ),
    "a fixed size of a view": (
        Of(lambda x: x.reshape(3, 2, 2).mean((1, 2)).sum(0) + x.mean(1).reshape(3, 1)),
        (X,),
        r"fixes a free size|batch at 3",
    ),
    "a function": (lambda x: x, (X,), "a torch module was needed, got function; wrap a function in an nn.Module"),
    "parameters of two dtypes": (
        nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2).double()),
        (X,),
        r"float64|double",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_what_no_program_says_is_refused(name):
    module, inputs, fault = CASES[name]
    with pytest.raises(ConversionError, match=fault):
        convert(module, *inputs)


def test_facts_of_a_wrong_number_of_inputs_are_attributes():
    with pytest.raises(ConversionError) as caught:
        convert(nn.Bilinear(4, 4, 2), X)
    assert (caught.value.needed, caught.value.got) == (2, 1)


def test_parameters_must_be_contiguous():
    layer = nn.Linear(4, 2)
    layer.weight = nn.Parameter(torch.randn(4, 2).t())
    with pytest.raises(
        ConversionError, match=r"weight: .* strides \(1, 2\) for shape \(2, 4\); set it to .contiguous"
    ):
        convert(layer, X)


def test_names_of_free_dimensions_must_be_inputs():
    with pytest.raises(ConversionError, match=r"free names \['y'\], which are no inputs; inputs: input"):
        convert(nn.Linear(4, 2), X, free={"y": {1: "time"}})


def test_a_tensor_with_the_batch_twice_is_refused():
    with pytest.raises(ConversionError, match=r"sizes \['batch', 'batch'\] holds the batch twice"):
        convert(Of(lambda x: x @ x.t()), X)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers_over_the_batch_are_refused(kind):
    """Dimension 0 of every input is the batch, so that a layer which reads time first runs over the samples."""
    x, fault = (
        torch.randn(7, 3, 4),
        "a recurrent layer runs over the batch, which is dimension 0 of every input; ",
    )
    for free in (None, {}):
        with pytest.raises(ConversionError, match=rf"the module: .*{fault}build it with batch_first=True"):
            convert(kind(4, 5), x, free=free)
    with pytest.raises(ConversionError, match=rf"inner\.0: .*{fault}build it with batch_first=True"):
        om.compile(Of(lambda x, layer: layer(x)[0], kind(4, 5)), x)
    with pytest.raises(ConversionError, match=rf"{fault}give it \(batch, time, features\)"):
        convert(Of(lambda x, layer: layer(x.transpose(0, 1))[0], kind(4, 5, batch_first=True)), x)


def test_states_whose_layers_are_the_batch_are_refused():
    layer = nn.GRU(4, 5, 2, batch_first=True)
    with pytest.raises(
        ConversionError,
        match=r"reads the layers of its state from the batch, which is dimension 0 of every input; give the state as "
        r"\(batch, layers, width\) to a small module",
    ):
        convert(layer, torch.randn(7, 3, 4), torch.randn(2, 7, 5))


def test_states_of_another_number_of_layers_are_refused():
    module = Of(lambda x, layer: layer(x, x.mean(1).expand(3, -1, -1))[0], nn.GRU(4, 4, 2, batch_first=True))
    with pytest.raises(
        ConversionError,
        match=r"with 2 layers × directions needs as many states, got 3; give them as \(2, batch, width\)",
    ) as caught:
        convert(module, torch.randn(7, 3, 4))
    assert (caught.value.needed, caught.value.got) == (2, 3)


def test_attention_over_the_batch_says_batch_first():
    """It computes what torch does over dimension 0, as one opaque row; with its weights as output it is refused."""
    remedy = "which is dimension 0 of every input; a layer that reads the time there needs batch_first=True"
    layer, x = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0), torch.randn(7, 3, 4)
    program = convert(layer, x)
    reasons = {f.reason for f in program.opaque().values()}
    assert reasons == {f"it multiplies different samples of the batch, {remedy}"}
    torch.testing.assert_close(om.interpret(program, x), layer(x))
    with pytest.raises(
        ConversionError, match=rf"\['2 \* time', 'batch', 'batch'\] holds the batch twice, {remedy}"
    ):
        convert(nn.MultiheadAttention(4, 2), x, x, x)


def test_two_inputs_where_one_was_given_by_name():
    module = OfTwo(lambda x, y: x + y)
    with pytest.raises(ConversionError, match=r"takes 2 inputs \(x, y\), got 1"):
        convert(module, x=X)
    assert convert(module, x=X, y=X).inputs == ("x", "y")
