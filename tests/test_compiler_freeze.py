"""freeze(): inference alone, the same outputs; structures found in fixed numbers; hooks refused."""

import copy

import pytest
import torch

import onematrix as om
from onematrix.compiler.recognition import recognise
from onematrix.errors import CompileError
from onematrix.networks import mlp
from onematrix.networks.examples import examples
from onematrix.programs.interpreter import interpret
from onematrix.structures.dense import Dense
from random_programs import random_program, random_recurrence
from test_compiler_module import random_numbers, same
from test_programs_random import SIZES, inputs_of

NETWORKS = examples(torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_frozen_networks_mean_the_same_and_do_not_train(name):
    module = om.compile(NETWORKS[name], prove=False)
    frozen = module.freeze()
    ins = random_numbers(module.program)
    same(frozen(*ins), interpret(module.program, *ins), rtol=1e-11, atol=1e-11)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not any(
        o.requires_grad for o in (frozen(*ins) if isinstance(frozen(*ins), tuple) else [frozen(*ins)])
    )
    same(copy.deepcopy(frozen)(*ins), frozen(*ins))


def test_a_frozen_module_is_a_copy_and_says_when_it_is_stale():
    module = om.compile(mlp([4, 6, 3], generator=torch.Generator().manual_seed(0)))
    frozen = module.freeze()
    x = torch.randn(2, 4)
    before = frozen(x)
    frozen.check(module)
    module.get_parameter("blocks.x1.x0.weight").data.add_(1.0)
    same(frozen(x), before)
    with pytest.raises(
        CompileError, match=r"frozen: blocks\.x1\.x0\.weight changed after freeze\(\); call freeze"
    ):
        frozen.check(module)
    wide = frozen.double()
    same(wide(x.double()).float(), before, rtol=1e-5, atol=1e-6)
    state = {name: 2 * p for name, p in wide.state_dict().items()}
    wide.load_state_dict(state)
    assert not torch.allclose(wide(x.double()).float(), before)


def frozen_pair():
    module = om.compile(mlp([4, 6, 3], generator=torch.Generator().manual_seed(0)), prove=False)
    return module, module.freeze(), torch.randn(2, 4, generator=torch.Generator().manual_seed(1))


def write_in_place(frozen, name):
    with torch.no_grad():
        frozen.get_parameter(name).mul_(2)


def swap_storage(frozen, name):
    frozen.get_parameter(name).data = 2 * frozen.get_parameter(name).data


def replace_whole(frozen, name):
    room, key = name.rsplit(".", 1)
    setattr(frozen.get_submodule(room), key, torch.nn.Parameter(2 * frozen.get_parameter(name).detach()))


CHANGES = {"written in place": write_in_place, "other storage": swap_storage, "replaced": replace_whole}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("name", ["blocks.x1.x0.weight", "blocks.x2.one.vector"])
def test_a_call_notices_that_its_own_weights_changed(how, name):
    module, frozen, x = frozen_pair()
    frozen(x)
    frozen.check()
    CHANGES[how](frozen, name)
    said = rf"own weights {name} \({how}\) changed after freeze\(\), .*load_state_dict\(\) computes it anew"
    for look in (lambda: frozen(x), lambda: frozen.forward_with_state(x), frozen.check):
        with pytest.raises(CompileError, match=said) as caught:
            look()
        assert caught.value.changed == [name]
    frozen.load_state_dict(module.state_dict())
    frozen.check()
    same(frozen(x), module(x))


def test_writes_through_data_are_noticed_by_a_check_of_every_number():
    _, frozen, x = frozen_pair()
    weight = frozen.get_parameter("blocks.x1.x0.weight")
    weight.data[0, 0] = -weight.data[0, 0]
    frozen(x)  # no trace to see
    with pytest.raises(
        CompileError, match=r"own weights blocks\.x1\.x0\.weight changed after freeze"
    ) as caught:
        frozen.check()
    assert caught.value.changed == ["blocks.x1.x0.weight"]


def test_a_program_frozen_without_version_counters_is_checked_by_its_numbers():
    module, _, x = frozen_pair()
    with torch.inference_mode():
        frozen = module.freeze()
        same(frozen(x), module(x))
        frozen.get_parameter("blocks.x1.x0.weight").mul_(2)
    with pytest.raises(CompileError, match=r"own weights blocks\.x1\.x0\.weight changed"):
        frozen.check()


def test_moves_and_copies_compute_anew_each_for_itself():
    module, frozen, x = frozen_pair()
    twin = copy.deepcopy(frozen)
    twin.check()
    twin.load_state_dict({name: 2 * p for name, p in module.state_dict().items()})
    same(frozen(x), module(x))
    doubled = om.compile(module.program, prove=False)
    with torch.no_grad():
        for p in doubled.parameters():
            p.mul_(2)
    same(twin(x), doubled(x))
    wide = twin.double()
    wide.check()
    assert wide(x.double()).dtype == torch.float64
    assert frozen(x).dtype == torch.float32


def test_a_frozen_program_compiles_into_one_graph():
    module, frozen, x = frozen_pair()
    compiled = torch.compile(frozen, fullgraph=True, backend="eager")
    same(compiled(x), module(x))


def operations(module, ins):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
        module(*ins)
    return {event.key for event in profile.key_averages()}


def test_merged_weights_are_made_once():
    module = om.compile(NETWORKS["encoder_layer"], prove=False)
    ins = random_numbers(module.program)
    assert "aten::cat" in operations(module, ins)
    assert "aten::cat" not in operations(module.freeze(), ins)


def test_a_frozen_module_streams():
    module = om.compile(NETWORKS["sru_14"], prove=False)
    ins = random_numbers(module.program)
    out, state = module.freeze().forward_with_state(*ins)
    same(out, module(*ins))
    assert set(state) == {"c_prev"}


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


SPARSE = torch.zeros(300, 300)
SPARSE[::7, ::11] = 1.5
RANK = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(
    ("dense", "name"),
    [
        (matrix([0, 0], [0, 0]), "zero"),
        (matrix([2, 0], [0, 2]), "scaled"),
        (matrix([1, 0], [0, 1]), "identity"),
        (matrix([1, 0], [0, 2]), "diagonal"),
        (matrix([0, 1], [1, 0]), "permutation"),
        (matrix([3, 3, 3], [3, 3, 3]), "scaled"),
        (matrix([1, 2], [3, 4]), "dense"),
        (matrix([0, 1], [0, 1]), "dense"),
        (matrix([1, 1e-12], [0, 2]), "dense"),
        (SPARSE, "csr"),
        (RANK @ RANK.T, "dense"),
    ],
)
def test_structures_are_found_bit_for_bit(dense, name):
    found = recognise(dense)
    assert found.name == name
    assert torch.equal(found.to_dense(dense.dtype), dense)


def test_a_tolerance_finds_what_is_nearly_so():
    assert recognise(matrix([1, 1e-12], [0, 2]), 1e-9).name == "diagonal"
    thin = recognise(RANK @ RANK.T, 1e-10)
    assert (thin.name, thin.rank) == ("low_rank", 3)
    same(thin.to_dense(), RANK @ RANK.T, rtol=1e-8, atol=1e-8)
    full = torch.randn(30, 30, generator=torch.Generator().manual_seed(0))
    assert recognise(full, 1e-6).name == "dense"


def test_a_diagonal_weight_costs_a_diagonal_product_once_frozen():
    G = om.BlockMatrix({("y", "x"): Dense(torch.diag(torch.arange(1.0, 5.0)))}, {"x": 4, "y": 4})
    module = om.compile(om.Program(om.Step(G), ["x"], ["y"]))
    assert module.lowered.counts().multiply_adds == 16, "a weight that trains is dense"
    frozen = module.freeze()
    assert frozen.lowered.counts().multiply_adds == 4
    same(frozen(torch.ones(2, 4)), torch.arange(1.0, 5.0).expand(2, 4))


def test_hooks_are_refused():
    net = om.Iterated(mlp([2, 3, 1]))
    net.register_forward_hook(lambda *_: None)
    with pytest.raises(
        CompileError, match="Iterated has forward hooks, which a compiled program would not call"
    ):
        om.compile(net)


@pytest.mark.parametrize(
    "kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_hooks_of_all_modules_are_refused(kind):
    handle = getattr(torch.nn.modules.module, f"register_module_{kind}")(lambda *_: None)
    name = kind.removeprefix("full_").replace("_", " ")
    try:
        with pytest.raises(CompileError, match=f"there are {name}s of all modules, which a compiled"):
            om.compile(torch.nn.Linear(2, 3), torch.ones(1, 2))
    finally:
        handle.remove()
    om.compile(torch.nn.Linear(2, 3), torch.ones(1, 2))


def test_after_an_export_it_is_what_it_was():
    frozen = om.compile(mlp([5, 6, 2])).freeze()
    x = torch.randn(2, 5)
    wanted = frozen(x)
    assert torch.equal(torch.export.export(frozen, (x,)).module()(x), wanted)
    frozen.check()
    assert torch.equal(frozen(x), wanted)
    with torch.no_grad():
        next(frozen.parameters()).mul_(2)
    with pytest.raises(CompileError, match="written in place"):
        frozen(x)


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
@pytest.mark.parametrize(
    "dense",
    [
        matrix([1, INF], [2, 3]),
        matrix([-INF, 0], [0, 2]),
        matrix([NAN, NAN], [NAN, NAN]),
        matrix([1, 0], [0, NAN]),
    ],
    ids=["inf", "minus inf", "all nan", "nan"],
)
def test_numbers_that_are_not_finite_stay_what_they_are(dense, tolerance):
    assert recognise(dense, tolerance).name == "dense"
    G = om.BlockMatrix({("y", "x"): Dense(dense)}, {"x": 2, "y": 2})
    module = om.compile(om.Program(om.Step(G), ["x"], ["y"]), prove=False)
    x = matrix([1, 2], [-1, 3])
    same(module.freeze(tolerance)(x), x @ dense.T)


@pytest.mark.parametrize("tolerance", [-1e-9, 1.0, INF, NAN, None, "much"])
def test_a_tolerance_that_is_none_is_refused(tolerance):
    module, _, _ = frozen_pair()
    with pytest.raises(CompileError, match=rf"freeze: a tolerance from 0 .* was needed, got {tolerance!r}"):
        module.freeze(tolerance)


def test_shards_of_distributed_tensors_are_refused():
    module, _, _ = frozen_pair()
    module.get_parameter("blocks.x1.x0.weight").full_tensor = lambda: None
    with pytest.raises(
        CompileError, match=r"freeze: blocks\.x1\.x0\.weight are shards of .* full state"
    ) as caught:
        module.freeze()
    assert caught.value.sharded == ["blocks.x1.x0.weight"]


def test_a_program_is_frozen_on_meta():
    module, frozen, x = frozen_pair()
    abstract = copy.deepcopy(module).to("meta").freeze()
    assert abstract(x.to("meta")).shape == frozen(x).shape


@pytest.mark.parametrize("start", [70_600, 70_750, 71_900])
def test_random_programs_without_gradients_and_frozen_mean_the_same(start):
    for seed in range(start, start + 40):
        module = om.compile((random_program if seed % 3 else random_recurrence)(seed), prove=False)
        ins = inputs_of(module.program, seed)
        given = [x.clone() for x in ins]
        with torch.no_grad():
            wanted = interpret(module.program, *ins, seed=seed, sizes=SIZES)
            for each in (module, module.freeze()):
                same(each(*ins, seed=seed, sizes=SIZES), wanted, msg=lambda m, s=seed: f"seed {s}: {m}")
        assert all(map(torch.equal, ins, given)), f"seed {seed}: an input was written"
