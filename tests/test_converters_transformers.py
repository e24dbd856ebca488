"""Families of the transformers library, tiny and with random weights: equal in float64, at any batch and length.

None of them leaves an opaque row.
"""

import pytest
import torch
from torch import nn

import onematrix as om
from converter_cases import check, compare_gradients, normal, outputs_of, same
from onematrix.converters.conversion import convert

library = pytest.importorskip("transformers", reason="transformers is not installed")
library.logging.set_verbosity_error()

TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}
GROUPED = {**TEXT, "num_key_value_heads": 2, "use_cache": False}
FAMILIES = {
    "gpt2": lambda t: t.GPT2LMHeadModel(
        t.GPT2Config(n_embd=16, n_layer=2, n_head=4, vocab_size=50, n_positions=64, use_cache=False)
    ),
    "llama": lambda t: t.LlamaForCausalLM(t.LlamaConfig(**GROUPED)),
    "qwen2": lambda t: t.Qwen2ForCausalLM(t.Qwen2Config(**GROUPED)),
    "mixtral": lambda t: t.MixtralForCausalLM(
        t.MixtralConfig(**GROUPED, num_local_experts=4, experts_implementation="eager")
    ),
    "bert": lambda t: t.BertModel(t.BertConfig(**TEXT)),
    "t5": lambda t: t.T5Model(
        t.T5Config(d_model=16, d_kv=4, num_heads=4, d_ff=32, num_layers=2, vocab_size=50, use_cache=False)
    ),
    "mamba": lambda t: t.MambaForCausalLM(
        t.MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=50, state_size=4, use_cache=False)
    ),
    "vit": lambda t: t.ViTModel(
        t.ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
            image_size=16, patch_size=4,
        )
    ),
    "resnet": lambda t: t.ResNetModel(
        t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic")
    ),
    "convnext": lambda t: t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2)),
    "swin": lambda t: t.SwinModel(
        t.SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[2, 4], window_size=4)
    ),
    "patchtst": lambda t: t.PatchTSTForPrediction(
        t.PatchTSTConfig(
            num_input_channels=3, context_length=32, patch_length=8, patch_stride=8, d_model=16,
            num_attention_heads=4, num_hidden_layers=2, ffn_dim=32, prediction_length=8,
        )
    ),
}  # fmt: skip
TOKENS = ("gpt2", "llama", "qwen2", "mixtral", "bert", "t5", "mamba")


class First(nn.Module):
    """A model of the library that returns its first tensor alone."""

    def __init__(self, model, two):
        super().__init__()
        self.model, self.two = model, two

    def forward(self, x, y=None):
        out = self.model(input_ids=x, decoder_input_ids=y) if self.two else self.model(x)
        return out.logits if hasattr(out, "logits") else out[0]


def make(name):
    torch.manual_seed(0)
    model = First(FAMILIES[name](library), name == "t5").eval()
    for p in model.parameters():  # norms and biases start at 1 and 0, which would hide them
        if p.dim() == 1:
            p.data.add_(0.1 * torch.randn_like(p))
    return model


def inputs(name, batch, time, other=5):
    g = torch.Generator().manual_seed(batch)
    if name in TOKENS:
        ids = [torch.randint(50, (batch, n), generator=g) for n in (time, other)]
        return ids if name == "t5" else ids[:1]
    return [normal(batch, 32, 3)] if name == "patchtst" else [normal(batch, 3, 16, 16)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_families_convert_without_an_opaque_row(name):
    model = make(name).double()
    program = check(model, *inputs(name, 3, 7))
    assert program.opaque() == {}
    assert not program.couples_batch
    assert program.free_sizes() == (
        {"time", "time_2"} if name == "t5" else {"time"} if name in TOKENS else set()
    )
    compiled = om.compile(program)
    for batch, time, other in ((1, 1, 1), (2, 12, 3)):
        xs = inputs(name, batch, time, other)
        same(om.interpret(program, *xs), model(*xs))
        same(compiled(*xs), model(*xs))
    held = {id(t) for t in program.parameters.values() if isinstance(t, nn.Parameter)}
    named = {id(p): n for n, p in model.named_parameters()}
    assert held <= named.keys(), "a parameter has been copied"
    unused = {"pooler", "cls_token", "mask_token", "model.layernorm"}  # not on the way to the first output
    assert all(any(u in named[i] for u in unused) for i in named.keys() - held)
    assert {program.source_names[n] for n, t in program.parameters.items() if id(t) in held} >= {
        named[i] for i in held
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_narrow_dtypes_are_no_worse_than_twice_the_models_own_error(name, dtype):
    model = make(name).to(dtype)
    xs = inputs(name, 3, 7)
    narrow = [x.to(dtype) if x.is_floating_point() else x for x in xs]
    ours, theirs = om.interpret(convert(model, *narrow), *narrow), model(*narrow)
    assert ours.dtype == theirs.dtype
    exact = model.double()(*[x.double() if x.is_floating_point() else x for x in narrow])
    errors = [float((y.double() - exact).norm()) for y in (ours, theirs)]
    assert errors[0] <= 2 * errors[1]
    assert errors[1] > 0


@pytest.mark.filterwarnings("ignore")
def test_a_large_model_on_the_meta_device_converts_and_counts():
    with torch.device("meta"):
        config = library.LlamaConfig(
            hidden_size=8192, num_hidden_layers=3, num_attention_heads=64, num_key_value_heads=8,
            intermediate_size=28672, vocab_size=128256, use_cache=False,
        )  # fmt: skip
        model = First(library.LlamaForCausalLM(config), False).eval()
        ids = torch.zeros(2, 16, dtype=torch.long)
    counts = convert(model, ids).counts(time=16)
    inv_freq = 64
    assert counts.stored_numbers == sum(p.numel() for p in model.parameters()) + inv_freq
    per_token = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n)
    attention = 3 * 2 * 64 * 16 * 16 * 128
    assert 0 <= counts.multiply_adds - 16 * per_token - attention < 1e-3 * counts.multiply_adds


@pytest.mark.filterwarnings("ignore")
def test_experts_of_two_layers_train_like_the_source():
    model = make("mixtral").double()
    xs = inputs("mixtral", 2, 4)
    program = convert(model, *xs)
    ours, theirs = om.interpret(program, *xs), model(*xs)
    compare_gradients(model, xs, outputs_of(ours), outputs_of(theirs))
    module = om.Iterated(program)
    optimisers = [torch.optim.SGD(m.parameters(), 0.1) for m in (module, model)]
    for _ in range(3):
        for m, o in zip((module, model), optimisers, strict=True):
            o.zero_grad()
            m(*xs).square().mean().backward()
            if m is module:
                gradients = {id(p): p.grad.clone() for p in model.parameters() if p.grad is not None}
            else:
                for p in model.parameters():
                    torch.testing.assert_close(p.grad, gradients[id(p)], rtol=1e-9, atol=1e-14)
        optimisers[1].step()
