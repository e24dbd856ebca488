"""What a compiled module keeps and hands over: its state dict's names, its copies, and the state of its loops."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import onematrix as om
from onematrix.errors import DTypeError, OneMatrixError, ShapeError
from onematrix.networks import elman, mlp
from onematrix.networks.examples import examples
from onematrix.networks.recurrent import over_time
from onematrix.structures.column import Column
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity
from test_compiler_module import random_numbers, same

NETWORKS = examples(torch.Generator().manual_seed(0))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_modules_are_pickled_with_their_own_weights(name, frozen):
    module = om.compile(NETWORKS[name], prove=False)
    module = module.freeze() if frozen else module
    again = pickle.loads(pickle.dumps(module))
    ins = random_numbers(module.program)
    same(again(*ins), module(*ins))
    with torch.no_grad():
        for p in again.parameters():
            p.zero_()
    assert any(p.any() for p in module.parameters())


def test_a_module_is_saved_and_loaded_by_torch():
    module, file = om.compile(mlp([4, 6, 3])), io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    x = torch.randn(2, 4)
    same(torch.load(file, weights_only=False)(x), module(x))


def test_copies_are_made_directly_after_an_export():
    module, x = om.compile(mlp([4, 6, 3])), torch.randn(2, 4)
    wanted = module(x)
    torch.export.export(module, (x,))
    same(copy.deepcopy(module)(x), wanted)


def test_a_converted_module_knows_its_source_names():
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    compiled = om.compile(module, torch.randn(2, 4), measure=False)
    theirs = dict(module.named_parameters())
    assert set(compiled.source_names.values()) == set(theirs)
    for ours, source in compiled.source_names.items():
        assert compiled.get_parameter(ours) is theirs[source]
    assert om.compile(mlp([4, 3])).source_names == {}


@pytest.mark.parametrize(
    ("state", "error", "match"),
    [
        (torch.zeros(7, 4), ShapeError, r"state 'h_prev': shape \(batch = 2, 4\) was needed, got \(7, 4\)"),
        (torch.zeros(1, 4), ShapeError, r"state 'h_prev': shape \(batch = 2, 4\) was needed, got \(1, 4\)"),
        (torch.zeros(2, 9), ShapeError, r"state 'h_prev': 4 was needed, got 9"),
        (
            torch.zeros(2, 4).double(),
            DTypeError,
            r"state 'h_prev': torch.float32 was needed, got torch.float64",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_named(state, error, match):
    module = om.compile(elman(3, 4))
    with pytest.raises(error, match=match):
        module.forward_with_state(torch.zeros(2, 5, 3), torch.zeros(2, 4), state={"h_prev": state})


def reset():
    """c ← b at every tick: the state that is handed over is a weight."""
    parts = {"x": 3, "c_prev": 3, "c": 3, "y": 3}
    bias = Column(nn.Parameter(torch.ones(3)))
    body = om.Seq(
        om.Step(om.BlockMatrix({("c", "one"): bias}, parts)),
        om.Step(om.BlockMatrix({("y", "x"): Identity(3), ("y", "c_prev"): Diagonal(torch.ones(3))}, parts)),
    )
    loop = over_time(body, {"x": 3}, {"ys": ("y", 3)}, {"c_prev": ("c", 3, "c0")}, parts)
    return om.Program(loop, ["inputs", "c0"], ["ys"])


@pytest.mark.parametrize("ticks", [0, 1, 3])
@pytest.mark.parametrize("program", [reset(), elman(3, 3)], ids=["reset", "elman"])
def test_a_state_is_memory_of_its_own(program, ticks):
    module = om.compile(program, prove=False)
    with torch.no_grad():
        given = [torch.randn(2, ticks, 3), torch.zeros(2, 3)]
        _, state = module.forward_with_state(*given)
        _, later = module.forward_with_state(*given, state=state)
        held = [*given, *state.values(), *module.parameters()]
        taken = {t.untyped_storage().data_ptr() for t in held if t.numel()}
        assert not taken & {t.untyped_storage().data_ptr() for t in later.values()}
        kept = [p.clone() for p in module.parameters()]
        for t in later.values():
            t.fill_(7.0)
        same(tuple(module.parameters()), tuple(kept))


@pytest.mark.parametrize(
    "value", ["a", None, [[1.0]], 3, torch.ones(2, 4).numpy()], ids=lambda v: type(v).__name__
)
def test_inputs_and_states_that_are_no_tensors_are_named(value):
    plain, loop = om.compile(mlp([4, 8, 2]), prove=False), om.compile(elman(3, 4), prove=False)
    x, h, kind = torch.zeros(2, 5, 3), torch.zeros(2, 4), type(value).__name__
    for call, who in (
        (lambda: plain(value), "input 'x0'"),
        (lambda: plain.freeze()(value), "input 'x0'"),
        (lambda: om.compile(mlp([4, 8, 2]), value), "input 'x0'"),
        (lambda: loop(x, value), "input 'h0'"),
        (lambda: loop.forward_with_state(x, h, state={"h_prev": value}), "state 'h_prev'"),
    ):
        with pytest.raises(
            OneMatrixError, match=rf"{who}: a tensor of shape \(batch, 4\) was needed, got {kind}"
        ):
            call()
