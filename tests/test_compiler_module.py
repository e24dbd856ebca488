"""om.compile(program): a module that computes what the interpreter computes, and behaves as modules do."""

import copy
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import onematrix as om
import onematrix.compiler.compilation as compilation
import onematrix.compiler.module as compiled_module
from onematrix.compiler.compilation import explanation
from onematrix.compiler.form import Form
from onematrix.compiler.module import Compiled
from onematrix.compiler.pipeline import Trace, lower
from onematrix.compiler.proof import in_double, prove
from onematrix.errors import CompileError, DTypeError, ProgramError, ShapeError
from onematrix.networks import elman, lstm, mlp, sru
from onematrix.networks.examples import examples
from onematrix.programs.interpreter import interpret, interpret_with_state
from onematrix.programs.substitution import replace_structures
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity
from onematrix.structures.tree import map_tensors
from random_programs import random_program, random_recurrence
from test_programs_random import SIZES, as_tuple, gradients, inputs_of

NETWORKS = examples(torch.Generator().manual_seed(0))
network = pytest.mark.parametrize("name", sorted(NETWORKS))
SEEDS = range(30_000, 30_300)
GROUPS = [SEEDS[i : i + 30] for i in range(0, len(SEEDS), 30)]
LOOPS_BY_DATA = {"fixed_point"}  # stop when they stand still: no fixed graph


def random_numbers(program, ticks=4, batch=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    shapes = [program.parts[name].at({"time": ticks}) for name in program.inputs]
    return [torch.randn(batch, *shape, generator=g, dtype=dtype) for shape in shapes]


def same(ours, theirs, **options):
    for a, b in zip(as_tuple(ours), as_tuple(theirs), strict=True):
        assert_close(a, b, **{"rtol": 1e-9, "atol": 1e-9, "equal_nan": True, **options})


@pytest.mark.parametrize("seeds", GROUPS, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_random_programs_compiled_equal_the_interpreter(seeds):
    for seed in seeds:
        module = om.compile(random_program(seed), prove=False)
        ins = inputs_of(module.program, seed)
        free = [x.requires_grad_() for x in ins if x.is_floating_point()] + list(module.parameters())
        wanted = as_tuple(interpret(module.program, *ins, seed=seed, sizes=SIZES))
        got = as_tuple(module(*ins, seed=seed, sizes=SIZES))
        same(got, wanted, msg=lambda m, s=seed: f"seed {s}: {m}")
        slopes = gradients(wanted, free)
        same(gradients(got, free), slopes, rtol=1e-7, atol=1e-7, msg=lambda m, s=seed: f"seed {s}: {m}")
        assert not any(o is x or o._base is x for o in got for x in ins)


@pytest.mark.parametrize("seed", range(40))
def test_recurrences_hand_over_their_state(seed):
    module = om.compile(random_recurrence(seed), prove=False)
    program = module.lowered
    whole = inputs_of(program, seed, ticks=5, batch=2)
    cut = [[x[:, :2] for x in whole], [x[:, 2:] for x in whole]]
    for name, place in zip(program.inputs, range(len(whole)), strict=True):
        if "time" not in program.parts[name].shape:
            cut[0][place] = cut[1][place] = whole[place]
    if " reverse" in program.text() or " ticks " in program.text():
        cut = [whole, whole]  # a later half does not continue an earlier one: only equal the interpreter
    state, theirs = None, None
    for tick, ins in zip((0, 2), cut, strict=True):
        given = dict(state or {})
        out, state = module.forward_with_state(*ins, state=given, seed=seed, sizes=SIZES, first_tick=tick)
        wanted, theirs = interpret_with_state(
            program, *ins, state=theirs, seed=seed, sizes=SIZES, first_tick=tick
        )
        same(out, wanted)
        assert state.keys() == theirs.keys()
        for name in state:
            same(state[name], theirs[name])


@network
@pytest.mark.parametrize("ticks", [0, 1, 5])
def test_networks_compiled_equal_the_interpreter(name, ticks):
    if ticks == 0 and "after hold" in NETWORKS[name].text():
        pytest.skip("nothing can be held of no tick")
    module = om.compile(NETWORKS[name])
    ins = random_numbers(module.program, ticks)
    same(module(*ins), interpret(module.program, *ins), rtol=1e-11, atol=1e-11)


@network
def test_networks_compile_into_one_graph_and_export(name):
    if name in LOOPS_BY_DATA:
        pytest.skip("the number of rounds depends on the data")
    module = om.compile(NETWORKS[name], prove=False)
    ins = random_numbers(module.program)
    wanted = module(*ins)
    torch._dynamo.reset()
    same(torch.compile(module, fullgraph=True, backend="eager")(*ins), wanted)
    same(torch.export.export(module, tuple(ins)).module()(*ins), wanted)


@pytest.mark.parametrize("name", ["sru_10", "elman", "lstm"])  # elementwise, dense, torch's own
def test_an_exported_recurrence_has_any_batch_and_the_ticks_of_its_example(name):
    module = om.compile(NETWORKS[name], prove=False)
    example = random_numbers(module.program)
    free = tuple({0: torch.export.Dim("batch", min=2)} for _ in example)
    exported = torch.export.export(module, tuple(example), dynamic_shapes={"inputs": free}).module()
    more = [torch.cat([x, x.flip(0), x[:1]]) for x in example]
    same(exported(*more), module(*more))
    longer = [torch.cat([x, x], 1) if x.dim() == 3 else x for x in example]
    module(*longer)
    with pytest.raises(AssertionError, match="Guard failed"):
        exported(*longer)


def test_the_parameters_are_those_of_the_program_and_train():
    iterated = om.Iterated(elman(3, 4, generator=torch.Generator().manual_seed(0)))
    compiled = om.compile(iterated)
    theirs = dict(iterated.named_parameters())
    assert {n: id(p) for n, p in compiled.named_parameters()} == {n: id(p) for n, p in theirs.items()}
    assert compiled.state_dict().keys() == iterated.state_dict().keys()
    optimiser = torch.optim.AdamW(compiled.parameters(), lr=1e-2)
    x, h = torch.randn(8, 5, 3), torch.zeros(8, 4)
    losses = []
    for _ in range(20):
        loss = (compiled(x, h)[1] - 0.3).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    same(compiled(x, h), iterated(x, h), rtol=1e-5, atol=1e-6)


def test_copies_dtypes_states_and_functional_calls():
    module = om.compile(mlp([4, 6, 3], generator=torch.Generator().manual_seed(0)))
    x = torch.randn(5, 4)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    assert not torch.allclose(twin(x), module(x))
    twin.load_state_dict(module.state_dict())
    same(twin(x), module(x))
    wide = copy.deepcopy(module).double()
    same(wide(x.double()).float(), module(x), rtol=1e-5, atol=1e-5)
    doubled = {name: 2 * p for name, p in module.named_parameters()}
    same(torch.func.functional_call(module, doubled, x), _with(module, doubled)(x))
    meta = copy.deepcopy(module).to("meta")
    assert meta(x.to("meta")).device.type == "meta"


def _with(module, values):
    other = copy.deepcopy(module)
    other.load_state_dict(values)
    return other


def test_autocast_gives_what_the_interpreter_gives():
    module = om.compile(mlp([8, 16, 4], generator=torch.Generator().manual_seed(0)))
    x = torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = module(x), interpret(module.program, x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    same(ours, theirs, rtol=5e-2, atol=5e-2)


def test_vmap_and_jvp_go_through():
    module = om.compile(mlp([4, 6, 3], activation="tanh", generator=torch.Generator().manual_seed(0)))
    x = torch.randn(5, 4)
    one_by_one = torch.func.vmap(lambda row: module(row[None])[0])(x)
    same(one_by_one, module(x), rtol=1e-5, atol=1e-6)
    value, slope = torch.func.jvp(module, (x,), (torch.ones_like(x),))
    wanted = torch.func.jvp(lambda x: interpret(module.program, x), (x,), (torch.ones_like(x),))
    same((value, slope), wanted, rtol=1e-5, atol=1e-6)


def test_after_an_export_it_runs_on_its_own_weights():
    module = copy.deepcopy(om.compile(mlp([4, 6, 3], generator=torch.Generator().manual_seed(0))))
    x = torch.randn(5, 4)
    wanted = module(x)
    torch.export.export(module, (x,))
    same(module(x), wanted)
    same(module.forward_with_state(x)[0], wanted)


def test_the_literal_sru_streams():
    module = om.compile(sru(4, "14", generator=torch.Generator().manual_seed(0)))
    x, c = torch.randn(2, 7, 4), torch.zeros(2, 4)
    whole, final = module(x, c)
    (first, _), state = module.forward_with_state(x[:, :3], c)
    (second, end), _ = module.forward_with_state(x[:, 3:], c, state=state)
    same((torch.cat([first, second], 1), end), (whole, final), rtol=1e-5, atol=1e-6)
    with pytest.raises(ProgramError, match=r"state gives \['nobody'\]; carried: c_prev"):
        module.forward_with_state(x, c, state={"nobody": c})


def test_a_compiled_module_compiles_to_itself_and_explains(capsys):
    module = om.compile(sru(4, "14"), explain=True)
    assert om.compile(module) is module
    shown = capsys.readouterr().out
    assert "carries: carried" in shown
    assert "products" in shown
    assert re.search(r"bytes moved +[\d,]+ +[\d,]+", shown)
    assert "run_fed_elementwise_loop(" in module.text


@pytest.mark.parametrize(
    ("inputs", "error", "match"),
    [
        ((torch.zeros(2, 5),), ShapeError, r"input 'x0': 4 was needed, got 5"),
        ((torch.zeros(2, 4, dtype=torch.float64),), DTypeError, r"input 'x0': torch.float32 was needed"),
        ((torch.zeros(2, 4), torch.zeros(2, 4)), ShapeError, r"takes 1 inputs \(x0\), got 2"),
        ((torch.zeros(4),), ShapeError, r"input 'x0': shape \(batch, 4\) was needed, got \(4,\)"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs, error, match):
    module = om.compile(mlp([4, 6, 3]))
    with pytest.raises(error, match=match):
        module(*inputs)


def test_what_is_no_program_is_refused():
    with pytest.raises(CompileError, match=r"Linear is converted by running it; give example inputs"):
        om.compile(nn.Linear(2, 2))
    with pytest.raises(CompileError, match=r"an om\.Program or nn\.Module was needed, got int"):
        om.compile(3)


@pytest.mark.parametrize(
    ("old", "new"),
    [("torch.tanh_(", "torch.sigmoid_("), ("in range(3)", "in range(2)"), ("alpha=0.0", "alpha=0.1")],
)
def test_the_proof_finds_wrong_code(old, new):
    def broken(exact, lowered):
        module = Compiled(exact, lowered)
        emitted = module._emitted[False]
        assert old in emitted.text
        changed = replace(emitted, body=tuple(line.replace(old, new) for line in emitted.body))
        module._function = changed.function()
        return module

    with pytest.raises(CompileError, match="proof: output 'z_prev', random inputs: differs"):
        prove(NETWORKS["runge_kutta"], lower(NETWORKS["runge_kutta"]), broken)


def test_the_proof_finds_a_lost_gradient():
    program = mlp([3, 4, 2], generator=torch.Generator().manual_seed(0))

    def detached(exact, lowered):
        module = Compiled(exact, lowered)
        return lambda *ins, **more: module(*(x.detach() for x in ins), **more)

    with pytest.raises(CompileError, match=r"proof: gradient 0 of 5, random inputs: differs .* by "):
        prove(program, lower(program), detached)


def test_nothing_of_the_caller_is_written_or_returned():
    parts = {"x": 2, "y": 2, "z": 2}
    G = om.BlockMatrix({("y", "x"): Identity(2), ("z", "x"): Dense(torch.eye(2))}, parts)
    module = om.compile(om.Program(om.Step(G, activations={"z": "relu"}), ["x"], ["y", "x", "z"]))
    x = torch.tensor([[-1.0, 2.0]])
    y, again, _ = module(x)
    y.zero_()
    again.zero_()
    assert_close(x, torch.tensor([[-1.0, 2.0]]))


def test_in_double_keeps_ties():
    program = lstm(3, 4, generator=torch.Generator().manual_seed(0))
    (tied,) = in_double(program)
    assert tied.dtype == torch.float64
    assert tied.parameters.keys() == program.parameters.keys()


def test_kernels_that_are_refused_say_why():
    program = lstm(3, 4)
    assert Compiled(program, lower(program)).notes == (), "torch's own LSTM runs it"
    elementwise, dense = Compiled(program, lower(program), Form(cells=False)).notes
    assert re.match(
        r"loop over 'time': no elementwise recurrence: the dense block on '\w+' mixes", elementwise
    )
    assert dense == "loop over 'time': no dense recurrence: it computes other parts than those it carries"
    refused = Compiled(program, lower(program), Form(cells=False))
    assert dense in explanation(program, refused, Trace(), ["measured"]).splitlines()


def test_numbers_on_several_devices_are_refused():
    meta = nn.Parameter(torch.empty(2, 3, device="meta"))
    program = mlp([4, 3, 2], [Dense(nn.Parameter(torch.ones(3, 4))), Dense(meta)], [None, None])
    with pytest.raises(
        CompileError, match=r"one device was needed, got 'blocks.x1.x0.weight' on cpu, .* on meta"
    ):
        om.compile(program)


def test_a_device_no_code_was_tried_on_is_refused(monkeypatch):
    monkeypatch.setattr("onematrix.compiler.compilation.DEVICES", ("cuda",))
    with pytest.raises(
        CompileError, match=r"'blocks\..*' is on cpu; supported are cuda: move the program there"
    ):
        om.compile(mlp([4, 3, 2]))


def test_the_proof_finds_a_wrongly_lowered_program():
    program, other = (
        mlp([3, 4, 2], generator=torch.Generator().manual_seed(0), activation=name)
        for name in ("relu", "tanh")
    )
    tensors = dict(zip(map(id, other.parameters.values()), program.parameters.values(), strict=True))
    swapped = {id(s): map_tensors(s, lambda t: tensors[id(t)]) for s in other.structures}
    lowered = lower(replace_structures(other, swapped))
    with pytest.raises(CompileError, match="proof: output 'x2', random inputs: differs"):
        prove(program, lowered, Compiled)


def layers(count):
    return nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(count)))


@pytest.mark.parametrize("measure", [False, True])
def test_compiling_reads_a_program_once_and_its_cost_is_linear(measure, monkeypatch, tmp_path):
    """One lowering and one module, the proof's apart; the code is written once a question, whatever the depth."""
    monkeypatch.setenv("ONEMATRIX_CACHE", str(tmp_path))
    calls = Counter()

    def counted(owner, name):
        inner = getattr(owner, name)

        def count(*args, **options):
            calls[name] += 1
            return inner(*args, **options)

        monkeypatch.setattr(owner, name, count)

    counted(compilation, "lower")
    for name in ("adopt", "emit", "find_native"):
        counted(compiled_module, name)
    found = []
    for depth in (2, 12):
        calls.clear()
        om.compile(layers(depth), torch.randn(2, 8), measure=measure)
        found.append(Counter(calls))
    assert found[0]["lower"] == found[1]["lower"] == 1
    assert found[0]["adopt"] == found[1]["adopt"] == 2
    assert max(calls["emit"] for calls in found) <= 14, "two modules, nine questions, three answers built"
    assert found[0]["find_native"] == found[1]["find_native"] == int(measure)
    if not measure:
        assert found[0] == found[1] == Counter(lower=1, adopt=2, emit=2)


def test_a_program_without_a_state_hands_over_none():
    program = mlp([3, 4, 2], generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, 3)
    for net in (om.compile(program), om.compile(program).freeze()):
        out, state = net.forward_with_state(x)
        assert state == {}
        same(out, net(x))


def test_another_form_shares_the_tensors():
    program = mlp([3, 4, 2], generator=torch.Generator().manual_seed(0))
    plain = om.compile(program)
    other = plain.in_form(Form(merge=False))
    assert other.form == Form(merge=False) != plain.form
    assert {id(p) for p in other.parameters()} == {id(p) for p in plain.parameters()}
    same(other(torch.ones(2, 3)), plain(torch.ones(2, 3)))
    assert list(other.state_dict()) == list(plain.state_dict())
