"""om.save and om.load: round trips without pickle, damaged folders, filling a module of one's own."""

import json

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import onematrix as om
from onematrix.errors import FormatError, OneMatrixError
from onematrix.networks import elman, inn, mlp
from onematrix.structures.base import STRUCTURES
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity
from onematrix.structures.low_rank import LowRank
from random_programs import random_program


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def same_numbers(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


@pytest.mark.parametrize("seed", range(20))
def test_programs_come_back_as_they_were(seed, tmp_path):
    program = random_program(seed)
    assert om.save(program, tmp_path / "deep" / "folder") == tmp_path / "deep" / "folder"
    again = om.load(tmp_path / "deep" / "folder")
    assert isinstance(again, om.Program)
    assert again.text() == program.text()
    assert same_numbers(again.parameters, program.parameters)
    assert len(again.structures) <= len(program.structures)  # blocks written alike are one


@pytest.mark.parametrize(
    "make", [lambda: mlp([4, 5, 3]), lambda: elman(4, 3), lambda: inn([4, 5, 3], "csr", 0.4)]
)
def test_networks_come_back_as_modules(make, tmp_path):
    net = om.Iterated(make())
    om.save(net, tmp_path)
    again = om.load(tmp_path)
    assert isinstance(again, om.Iterated)
    assert same_numbers(again.state_dict(), net.state_dict())
    g = torch.Generator().manual_seed(0)
    ins = [torch.randn(2, *net.program.parts[n].at({"time": 3}), generator=g) for n in net.program.inputs]
    for a, b in zip(as_tuple(again(*ins)), as_tuple(net(*ins)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("bias", [None, True])
def test_linear_layers_of_every_structure_come_back(name, bias, tmp_path):
    structure = next(a for a in STRUCTURES[name].examples(torch.Generator().manual_seed(0)))
    layer = om.Linear(structure, bias)
    if bias:
        nn.init.normal_(layer.bias)
    om.save(layer, tmp_path)
    again = om.load(tmp_path)
    assert isinstance(again, om.Linear)
    assert same_numbers(again.state_dict(), layer.state_dict())
    kind = torch.float32 if structure.any_weight() is None else torch.float64
    x = torch.randn(2, structure.fixed_shape[1], dtype=kind)
    assert torch.equal(again(x), layer(x))


def test_ties_come_back_as_ties(tmp_path):
    W = Dense(torch.randn(3, 3))
    P = {"x": 3, "h": 3, "y": 3}
    blocks = {("h", "x"): W, ("y", "x"): LowRank(W.weight, W.weight)}
    om.save(om.Iterated(om.Program(om.Step(om.BlockMatrix(blocks, P)), ["x"], ["h", "y"])), tmp_path)
    again = om.load(tmp_path)
    assert len(list(again.parameters())) == 1


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    whole = torch.randn(4, 3)
    blocks = {("h", "x"): Dense(whole[:2]), ("y", "x"): Dense(whole[1:3]), ("z", "x"): Dense(whole.detach())}
    P = {"x": 3, "h": 2, "y": 2, "z": 4}
    program = om.Program(om.Step(om.BlockMatrix(blocks, P)), ["x"], ["h", "y", "z"])
    om.save(program, tmp_path)
    assert same_numbers(om.load(tmp_path).parameters, program.parameters)


def test_a_folder_tells_people_what_it_holds(tmp_path):
    program = mlp([4, 5, 3])
    om.save(om.Iterated(program), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["kind"] == "iterated"
    assert config["stored_numbers"] == 4 * 5 + 5 + 5 * 3 + 3
    assert config["parts"][program.inputs[0]] == [4]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "onematrix.json",
    ]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleDict({"y": nn.ModuleDict({"x": nn.Linear(3, 2, bias=False)})})


def saved_for_net(tmp_path, dtype=torch.float32, width=3):
    W = Dense(torch.randn(2, width, dtype=dtype))
    P = {"x": width, "y": 2}
    om.save(om.Program(om.Step(om.BlockMatrix({("y", "x"): W}, P)), ["x"], ["y"]), tmp_path)
    return W.weight


def test_a_module_of_ones_own_is_filled_by_name(tmp_path):
    weight = saved_for_net(tmp_path)
    net = Net()
    assert om.load(tmp_path, into=net) is net
    assert torch.equal(net.blocks["y"]["x"].weight, weight)


def test_a_module_that_differs_is_not_filled(tmp_path):
    saved_for_net(tmp_path)
    net = nn.Linear(3, 2)
    with pytest.raises(
        FormatError, match=r"load\(into=Linear\): names differ at bias, blocks.y.x.weight, weight"
    ):
        om.load(tmp_path, into=net)
    saved_for_net(tmp_path, width=4)
    with pytest.raises(
        FormatError, match=r"x.weight is float32 \[2, 3\] in the module, float32 \[2, 4\] in the file"
    ):
        om.load(tmp_path, into=Net())
    saved_for_net(tmp_path, dtype=torch.float64)
    with pytest.raises(FormatError, match=r"float32 \[2, 3\] in the module, float64 \[2, 3\] in the file"):
        om.load(tmp_path, into=Net())


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(
        FormatError, match=r"nothing: there is no onematrix.json; a folder written by om.save"
    ):
        om.load(tmp_path / "nothing")
    om.save(mlp([4, 5, 3]), tmp_path)
    weights = tmp_path / "model.safetensors"
    good = weights.read_bytes()
    for damaged in (good[:-7], good[:20], b"", b"\xff" * 64):
        weights.write_bytes(damaged)
        with pytest.raises(FormatError, match=r"model.safetensors: damaged \(.*\); save the model again"):
            om.load(tmp_path)
    weights.unlink()
    with pytest.raises(FormatError, match=r"there is no model.safetensors"):
        om.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"format": 2}, "format 2, this version reads format 1"),
        ({"format": None}, "format None, this version reads format 1"),
        ({"kind": "pickle"}, "a kind of program, iterated, linear were needed, got str and kind 'pickle'"),
        ({"program": None}, "a program's text and a kind .* were needed, got NoneType"),
        ({"program": "program 1\n"}, "onematrix.json: program text, line 1: a line starting with 'inputs'"),
        ({"kind": "linear"}, "kind 'linear' needs y = A x or y = A x \\+ b, got Program"),
    ],
)
def test_headers_that_say_something_else_are_named(change, fault, tmp_path):
    om.save(mlp([4, 5, 3]), tmp_path)
    header = json.loads((tmp_path / "onematrix.json").read_text()) | change
    (tmp_path / "onematrix.json").write_text(json.dumps(header))
    with pytest.raises(FormatError, match=fault):
        om.load(tmp_path)


def test_headers_that_are_no_json_are_named(tmp_path):
    om.save(mlp([4, 5, 3]), tmp_path)
    (tmp_path / "onematrix.json").write_text('{"format": 1')
    with pytest.raises(FormatError, match=r"onematrix.json: not valid JSON"):
        om.load(tmp_path)
    (tmp_path / "onematrix.json").write_text("[1]")
    with pytest.raises(FormatError, match="a JSON object was needed, got list"):
        om.load(tmp_path)


def test_tensors_of_another_program_are_named(tmp_path):
    om.save(mlp([4, 5, 3]), tmp_path / "a")
    om.save(mlp([4, 6, 3]), tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").replace(tmp_path / "a" / "model.safetensors")
    with pytest.raises(FormatError, match=r"torch.float32 \[5, 4\] was needed, got torch.float32 \[6, 4\]"):
        om.load(tmp_path / "a")


def test_what_is_no_program_is_refused(tmp_path):
    with pytest.raises(OneMatrixError, match=r"a Program, om.Iterated or om.Linear was needed, got Conv2d"):
        om.save(nn.Conv2d(1, 1, 1), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OneMatrixError, match=r"output folder .*file cannot be written to"):
        om.save(mlp([2, 2, 2]), tmp_path / "file")


def test_what_is_loaded_trains(tmp_path):
    om.save(om.Iterated(mlp([4, 5, 3])), tmp_path)
    net = om.load(tmp_path)
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in net.parameters())
    net(torch.randn(2, 4)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_programs_without_tensors_are_saved_too(tmp_path):
    program = om.Program(om.Step(om.BlockMatrix({("y", "x"): Identity(2)}, {"x": 2, "y": 2})), ["x"], ["y"])
    om.save(program, tmp_path)
    assert om.load(tmp_path) == program
    assert_close(om.interpret(om.load(tmp_path), torch.ones(1, 2)), torch.ones(1, 2))
