"""Models on the command line: what MODEL may be, its table against torch's own counter, its messages."""

import json
import re

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import model_cases
import onematrix as om
from onematrix.cli.main import app
from onematrix.cli.model import as_program, find_example, find_model
from onematrix.cli.model_config import read_config
from onematrix.cli.model_inputs import Example, read_input
from onematrix.errors import ConversionError, FormatError, OneMatrixError, ProgramError
from onematrix.reports.model_table import part_lines, table_lines

TINY = {
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"], "n_embd": 16, "n_layer": 3, "n_head": 4, "vocab_size": 50,
        "n_positions": 64,
    },
    "resnet": {
        "architectures": ["ResNetModel"], "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 3],
        "layer_type": "basic", "image_size": 16,
    },
    "t5": {
        "architectures": ["T5Model"], "d_model": 16, "d_kv": 4, "num_heads": 4, "d_ff": 32, "num_layers": 2,
        "vocab_size": 50,
    },
    "patchtst": {
        "architectures": ["PatchTSTForPrediction"], "num_input_channels": 3, "context_length": 32,
        "patch_length": 8, "patch_stride": 8, "d_model": 16, "num_attention_heads": 4, "num_hidden_layers": 1,
        "ffn_dim": 32, "prediction_length": 8,
    },
    "mixtral": {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 32, "vocab_size": 50, "num_local_experts": 4,
    },
}  # fmt: skip


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "160"})


def config(folder, name, **more):
    pytest.importorskip("transformers", reason="transformers is not installed")
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"model_type": name} | TINY.get(name, {}) | more))
    return f"hf:{path}"


def flops(module, *inputs, **named):
    """What torch counts, per sample: attention as its products, without fused kernels."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(*inputs, **named)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() / [*inputs, *named.values()][0].shape[0]


@pytest.fixture
def module_of(tmp_path, monkeypatch):
    """A module of the current folder with this text; its name."""

    def write(text):
        name = f"net_{abs(hash((str(tmp_path), text)))}"
        (tmp_path / f"{name}.py").write_text("import torch, onematrix as om\nfrom torch import nn\n" + text)
        monkeypatch.chdir(tmp_path)
        return name

    return write


@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder_layer"])
def test_products_are_the_flops_torch_counts(name):
    module, x = getattr(model_cases, name)()
    program = om.convert(module.eval(), x)
    sizes = dict.fromkeys(program.free_sizes(), x.shape[1])
    work = program.counts(**sizes).work
    assert 2 * work.in_products == flops(module, x)
    # Outside of what torch counts: one add per bias, mean or scale of a number, by definition far below the products.
    assert work.in_products < work.multiply_adds < 1.1 * work.in_products + 2 * work.activated


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gpt2", "resnet", pytest.param("t5", marks=pytest.mark.slow), "patchtst"])
def test_a_configuration_is_a_model_whose_products_torch_counts_alike(name, tmp_path):
    found = find_example(config(tmp_path, name))
    program = as_program(found)
    assert list(program.inputs) == list(found.named)
    sizes = {"time": 16} | ({"time_2": 8} if name == "t5" else {})
    counted = program.counts(**{s: n for s, n in sizes.items() if s in program.free_sizes()})
    assert 2 * counted.work.in_products == flops(found.module, **found.named)
    assert program.opaque() == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_experts_are_counted_for_every_token_where_torch_counts_the_chosen_ones(tmp_path):
    found = find_example(config(tmp_path, "mixtral"))
    assert type(found.module).__name__ == "MixtralForCausalLM"
    work = as_program(found).counts(time=16).work
    chosen = found.module.config.num_experts_per_tok / found.module.config.num_local_experts
    experts = 2 * 16 * 4 * 3 * 16 * 32  # layers, tokens, experts, matrices
    assert 2 * (work.in_products - (1 - chosen) * experts) == pytest.approx(
        flops(found.module, **found.named), rel=0.02
    )


def test_the_lines_of_a_table_add_up_and_equal_layers_are_one():
    program = model_cases.layered()
    counts = program.counts()
    for fold in (True, False):
        lines = table_lines(program, {}, fold=fold)
        assert sum(line.stored_numbers for line in lines) == counts.stored_numbers
        assert sum(line.work.multiply_adds for line in lines) == counts.multiply_adds
        assert sum(line.work.in_products for line in lines) == counts.work.in_products
    folded = table_lines(program, {})
    assert [(line.label, line.parts) for line in folded] == [("stem", 1), ("5 × layers.*", 20), ("head", 1)]
    assert folded[1].stored_numbers == 5 * (8 * 16 + 16 + 16 * 8 + 8)
    assert folded[1].structure == "dense"
    zoomed = table_lines(program, {}, zoom="layers.2.*", fold=False)
    assert [line.label for line in zoomed] == [
        "layers.2.inner", "layers.2.act", "layers.2.outer", "layers.2"
    ]  # fmt: skip
    assert zoomed[0].structure == "dense 16×8 + column"
    assert zoomed[0].reads == ("layers.1",)
    assert zoomed[1].structure == "identity, relu"
    assert zoomed[0].work.multiply_adds == 16 * 8 + 16
    with pytest.raises(ProgramError, match=r"zoom 'layer\.\*' fits none of 22 parts; names begin with stem"):
        table_lines(program, {}, zoom="layer.*")


def test_a_tied_tensor_is_counted_once_and_said_to_be_tied():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    net[2].weight = net[0].weight
    lines = part_lines(om.convert(net, torch.zeros(2, 4)), {})
    assert [(n, line.stored_numbers, line.tied) for n, line in lines.items()] == [
        ("_0", 16, False), ("_1", 0, False), ("_2", 0, True)
    ]  # fmt: skip


def test_rows_in_loops_cost_every_tick():
    from onematrix.networks import elman

    program = elman(2, 3)
    lines = part_lines(program, {"time": 7})
    assert sum(line.work.multiply_adds for line in lines.values()) == 7 * (6 + 9 + 3)
    assert sum(line.work.in_products for line in lines.values()) == 7 * (6 + 9)


def test_a_wide_model_is_listed_by_its_modules():
    net = nn.Sequential(*(model_cases.Block(width) for width in [4] * 1))
    for i in range(30):  # all of another slope: nothing folds
        net.append(model_cases.Block(4, 0.01 * (i + 1)))
    program = om.convert(net, torch.zeros(2, 4))
    lines = table_lines(program, {}, limit=31)
    assert len(lines) == 31
    assert lines[3].label == "_3.*"
    assert sum(line.stored_numbers for line in lines) == program.counts().stored_numbers
    assert len(table_lines(program, {}, fold=False)) == 31 * 4


def test_view_converts_a_module_with_its_inputs(module_of, tmp_path):
    name = module_of(
        "def net(): return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))\n"
        "def pair(): return net(), torch.zeros(2, 6)\n"
        "def program(): return om.convert(*pair())\n"
        "def matrix(): return om.list_structures()['dense'](torch.ones(4, 3))\n"
        "def two(): return Two()\n"
        "class Two(nn.Module):\n"
        "    def forward(self, ids, x): return x[:, None] * ids.sum(1)[:, None, None]\n"
    )
    tables = []
    for arguments in (["net", "--input", "6"], ["pair"], ["program"]):
        shown = json.loads(invoke("view", f"{name}:{arguments[0]}", *arguments[1:], "--json").output)
        assert shown["total"]["stored numbers"] == 6 * 5 + 5 + 5 * 2 + 2
        assert shown["total"]["in products"] == 40
        assert sum(row["share"] for row in shown["blocks"]) == pytest.approx(1)
        assert sum(row["share of multiply-adds"] for row in shown["blocks"]) == pytest.approx(1)
        tables.append(shown["blocks"])
    assert tables[0] == tables[1] == tables[2]
    assert [row["part"] for row in tables[0]] == ["_0", "_2"]
    told = invoke("view", f"{name}:net", "--input", "6").output
    assert re.search(r"_0 +│ 5 +│ dense 5×6 \+ column +│ +35 │ +74\.5 % │ +35 │", told)
    assert "and 1 parts that store nothing" in told
    assert "of these 40 in matrix products" in told
    assert "dense 4×3" in invoke("view", f"{name}:matrix", "--out", tmp_path / "m.svg").output
    two = json.loads(
        invoke("view", f"{name}:two", "--input", "7:int64", "--input", "x=3", "--json", "--no-fold").output
    )
    assert two["blocks"][0]["shape"] == "time" or two["sizes"] == {"time": 7}
    meta = json.loads(invoke("view", f"{name}:net", "--input", "6", "--meta", "--json").output)
    assert meta["total"]["stored numbers"] == 47


def test_view_of_a_configuration_folds_zooms_and_takes_sizes(tmp_path):
    source = config(tmp_path, "gpt2")
    told = invoke("view", source)
    assert told.exit_code == 0, told.output
    assert "3 × transformer.h.*" in told.output
    assert "(tied)" in told.output
    assert "at time=16" in told.output
    shown = json.loads(
        invoke("view", source, "--json", "--zoom", "transformer.h.1.*", "--size", "time=5").output
    )
    assert shown["sizes"] == {"time": 5}
    by_part = {row["part"]: row for row in shown["blocks"]}
    assert all(part.startswith("transformer.h.1.") for part in by_part)
    fc = by_part["transformer.h.1.mlp.c_fc"]
    assert (fc["structure"], fc["stored numbers"]) == ("denseᵀ 64×16 + column", 16 * 64 + 64)
    assert fc["in products"] == 5 * 16 * 64
    picture = invoke("view", source, "--zoom", "transformer.h.1.*", "--out", tmp_path / "h.png")
    assert f"wrote {tmp_path / 'h.png'}" in picture.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["torch.nn:ReLU"],
            1,
            "ReLU has no program here without an example input: give the shape of one sample",
        ),
        (["torch.nn:ReLU", "--input", "a;b"], 2, "--input 'a;b': [NAME=]SHAPE[:dtype]"),
        (["torch.nn:ReLU", "--input", "3:float12"], 2, "'float12' is no torch dtype"),
        (["torch.nn:ReLU", "--input", "3", "--batch", "1"], 2, "Invalid value for '--batch'"),
        (["torch.nn:ReLU", "--input", "3", "--input", "3"], 1, "the module takes 1 inputs (input), got 2"),
        (["onematrix.networks:sru", "--input", "3"], 2, "--input belongs to torch modules"),
        (["onematrix.networks:sru", "--zoom", "encoder.*"], 1, "zoom 'encoder.*' fits none of"),
        (["model.safetensors.pickle"], 2, "pickled models are not read"),
        (["weights.bin"], 2, "pickled models are not read"),
        (["hf:nowhere.json"], 1, "nowhere.json: there is no such file; hf: needs the config.json"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, list) else None,
)
def test_what_is_wrong_with_a_model_is_said_with_its_remedy(arguments, code, message):
    result = invoke("view", *arguments)
    text = f"{result.output} {result.exception}".replace("│", " ")
    assert message in " ".join(text.split())
    assert result.exit_code == code
    if code == 1:
        assert isinstance(result.exception, OneMatrixError)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"n_layer": 2}, 'a "model_type" was needed'),
        ({"model_type": "gpt2", "auto_map": {"AutoModel": "code.Net"}}, '"auto_map" names code of its own'),
        ({"model_type": "gpt17"}, "no model of transformers: "),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(held, message, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    (tmp_path / "config.json").write_text(json.dumps(held))
    with pytest.raises(FormatError, match=re.escape(message)):
        read_config(tmp_path)


def test_only_classes_of_the_librarys_own_table_are_made(tmp_path):
    with pytest.raises(
        FormatError, match=r"'AutoConfig' is no model of transformers for 'gpt2'; there are: GPT2LM"
    ):
        find_example(config(tmp_path, "gpt2", architectures=["AutoConfig"]))


def test_a_main_input_nobody_knows_asks_for_its_shape(tmp_path, monkeypatch):
    from onematrix.cli.model_config import example_inputs

    found = find_example(config(tmp_path, "gpt2"))
    monkeypatch.setattr(type(found.module), "main_input_name", "smells")
    with pytest.raises(
        ConversionError, match=r"no example of its main input 'smells' .* --input smells=16,8"
    ):
        example_inputs(found.module, found.module.config, 2)


def test_large_models_are_made_without_numbers(tmp_path, monkeypatch):
    source = config(tmp_path, "gpt2")
    assert next(find_model(source).parameters()).device.type == "cpu"
    monkeypatch.setattr("onematrix.cli.model_config.LARGEST", 1000)
    found = find_example(source)
    assert next(found.module.parameters()).device.type == "meta"
    assert found.tensors[0].device.type == "meta"


def test_without_transformers_the_remedy_is_named(tmp_path, monkeypatch):
    import sys

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(OneMatrixError, match=r'pip install "onematrix\[models\]"'):
        read_config(tmp_path)


def test_inputs_are_read_as_they_are_written():
    name, tensor = read_input("x=3,4:bool", 2)
    assert (name, tuple(tensor.shape), tensor.dtype) == ("x", (2, 3, 4), torch.bool)
    assert read_input("3x4", 5)[1].shape == (5, 3, 4)
    assert read_input(":int64", 2)[1].shape == (2,)
    assert find_model("torch.nn:ReLU").training
    with pytest.raises(
        ConversionError, match=r"int has no program; a torch module, an om.Program or a structure"
    ):
        as_program(3)
    with pytest.raises(ConversionError, match="ReLU has no program here without an example input"):
        as_program(Example(nn.ReLU()))


def test_one_tensor_given_as_two_inputs_stays_two_inputs():
    class Difference(nn.Module):
        def forward(self, x, y):
            return 2 * x - y

    x, y = torch.randn(3, 4), torch.randn(3, 4)
    program = om.convert(Difference(), x, x)
    torch.testing.assert_close(om.interpret(program, x, y), 2 * x - y)


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_no_name_and_no_number_is_cut_in_a_narrow_terminal(columns, module_of):
    name = module_of(
        "def net(): return nn.Sequential(nn.Linear(784, 3000), nn.ReLU(), nn.Linear(3000, 10))\n"
    )
    told = (
        CliRunner()
        .invoke(app, ["view", f"{name}:net", "--input", "784"], env={"COLUMNS": str(columns)})
        .output
    )
    line = next(line for line in told.splitlines() if "_0" in line)
    assert ("2.35 M" if columns < 140 else "2,355,000") in line
    assert line.count("98.7 %") == 2
    assert max(map(len, told.split("parts that")[0].splitlines())) <= columns
    assert ("shape" in told) == (columns >= 100)
