"""Forms of the code: every one means the same; the choice is measured, remembered, and never trusted blindly."""

import json
from dataclasses import fields

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import onematrix as om
from onematrix.compiler.choice import Trial, choose, program_key, remember, remembered
from onematrix.compiler.form import Form
from onematrix.compiler.module import Compiled
from onematrix.compiler.pipeline import lower
from onematrix.networks import attention, encoder_layer, gru, lstm, mlp, sru
from onematrix.networks.attention import encoder_weights
from onematrix.networks.examples import examples
from onematrix.networks.recurrent import gru_weights, lstm_weights
from onematrix.programs.interpreter import interpret
from onematrix.programs.substitution import replace_structures
from onematrix.records.choices import choices_folder
from onematrix.structures.tree import map_tensors
from random_programs import random_program
from test_compiler_module import random_numbers, same
from test_programs_random import SIZES, as_tuple, gradients, inputs_of

NETWORKS = examples(torch.Generator().manual_seed(0))
QUESTIONS = [f.name for f in fields(Form)]


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("question", [*QUESTIONS, "all"])
def test_every_form_of_a_network_means_the_same(name, question):
    answers = dict.fromkeys(QUESTIONS if question == "all" else [question], False)
    module = Compiled(NETWORKS[name], lower(NETWORKS[name]), Form(**answers))
    ins = [x.requires_grad_() for x in random_numbers(module.program)]
    wanted, got = as_tuple(interpret(module.program, *ins)), as_tuple(module(*ins))
    same(got, wanted, rtol=1e-11, atol=1e-11)
    free = [*ins, *module.parameters()]
    same(gradients(got, free), gradients(wanted, free), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("start", range(40_000, 40_120, 30))
def test_every_form_of_random_programs_means_the_same(start):
    plain = Form(**dict.fromkeys(QUESTIONS, False))
    for seed in range(start, start + 30):
        program = random_program(seed)
        module = Compiled(program, lower(program), plain)
        ins = inputs_of(program, seed)
        wanted = interpret(module.program, *ins, seed=seed, sizes=SIZES)
        same(module(*ins, seed=seed, sizes=SIZES), wanted, msg=lambda m, s=seed: f"seed {s}: {m}")


def double(program):
    table = {}

    def wide(t):
        return table.setdefault(id(t), t.detach().double() if t.is_floating_point() else t)

    return replace_structures(program, {id(s): map_tensors(s, wide) for s in program.structures})


def test_lstm_and_gru_run_as_torchs_own_cells():
    torch.manual_seed(0)
    x, h, c = torch.randn(3, 6, 4).double(), torch.randn(3, 5).double(), torch.randn(3, 5).double()
    module = nn.LSTM(4, 5, batch_first=True).double()
    net = om.compile(double(lstm(4, 5, lstm_weights(module))))
    assert "native_lstm" in str(net._emitted[False].constants)
    out, (end, cell) = module(x, (h[None], c[None]))
    same(net(x, h, c), (out, end[0], cell[0]), rtol=1e-12, atol=1e-12)
    module = nn.GRU(4, 5, batch_first=True).double()
    net = om.compile(double(gru(4, 5, gru_weights(module))))
    assert "native_gru" in str(net._emitted[False].constants)
    out, end = module(x, h[None])
    same(net(x, h), (out, end[0]), rtol=1e-12, atol=1e-12)


def test_attention_without_a_mask_is_torchs_and_with_one_stays_softmax():
    free, masked = om.compile(attention(6, 2)), om.compile(attention(6, 2, mask=True))
    assert "attend(" in free.text
    assert "attend(" not in masked.text
    x, mask = torch.randn(2, 4, 6), torch.zeros(2, 2, 4, 4)
    mask[:, :, 1] = -torch.inf  # no key is left: softmax of nothing is nan
    with torch.no_grad():
        ours, theirs = masked(x, mask), interpret(masked.program, x, mask)
    assert ours[:, 1].isnan().all()
    same(ours, theirs, rtol=1e-5, atol=1e-6)


def test_attention_under_any_mask_is_torchs_on_request():
    program = attention(6, 2, mask=True)
    asked = om.compile(program, never_empty=True)
    assert "attn_mask=" in asked.text
    x, mask = torch.randn(2, 4, 6), torch.randn(2, 2, 4, 4)
    mask[:, :, 1, 1:] = -torch.inf
    same(asked(x, mask), interpret(program, x, mask), rtol=1e-5, atol=1e-6)
    free = list(asked.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(asked(x, mask).sin().sum(), free),
        torch.autograd.grad(interpret(asked.program, x, mask).sin().sum(), free),
        strict=True,
    ):
        same(ours, theirs, rtol=1e-4, atol=1e-5)
    mask[:, :, 1] = -torch.inf
    with torch.no_grad():
        assert not asked(x, mask).isnan().any(), "the caller said that this is never so"
    assert om.compile(program, x, mask, never_empty=True).form.never_empty
    assert not om.compile(program, x, mask).form.never_empty
    assert "attn_mask=" in asked.freeze().text


def test_the_encoder_layer_is_one_product_for_queries_keys_and_values():
    torch.manual_seed(0)
    module = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    net = om.compile(encoder_layer(8, 2, 16, encoder_weights(module)))
    assert net.text.count("linear(") == 3
    assert net.text.count("merged_product(") == 1
    assert net.text.count("layer_norm(") == 2
    x = torch.randn(3, 5, 8)
    same(net(x), module(x), rtol=1e-5, atol=1e-5)


def test_the_sru_is_one_product_and_one_kernel():
    net = om.compile(sru(8, "14"), prove=False)
    assert net.text.count("run_fed_elementwise_loop(") == 1
    assert not any(name in net.text for name in ("linear(", "merged_product(", "mm("))
    with FlopCounterMode(display=False) as counted:
        net(torch.ones(2, 5, 8), torch.zeros(2, 8))
    assert counted.get_flop_counts()["Global"] == {torch.ops.aten.addmm: 2 * 3 * 10 * 8 * 8}
    assert "for " not in net.text
    (loop,) = [k for k in net._emitted[False].constants.values() if type(k).__name__ == "ElementwiseLoop"]
    assert sum(line[0] == "activation" for line in loop.code) == 2
    assert sum(line[0] == "mul" for line in loop.code) == 6  # v ∘ c, f ∘ c, (1 − f) ∘ w and r's three


# The choice.


class Sleeper(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.seconds = (0.02 if form.merge else 0.002) + (0 if form.cells else 0.01)

    def forward(self, x):
        import time

        time.sleep(self.seconds)
        return x


def test_the_faster_answer_is_taken():
    form, trials = choose(Form(implicit=True), Sleeper, ["merge", "cells"], [torch.zeros(1)])
    assert not form.merge, "it sleeps for a tenth of the time"
    assert form.implicit, "what was asked for stays"
    assert [t.question for t in trials] == ["merge", "merge", "cells"], "a change is measured twice"
    assert "merge = False" in str(trials[0])
    assert "taken" in str(trials[0])
    assert "refused" in str(Trial("cells", Form(cells=False), 2.0, 1.0))


def test_a_choice_is_remembered_and_a_spoiled_one_ignored_with_a_note(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ONEMATRIX_CACHE", str(tmp_path))
    assert choices_folder() == tmp_path
    ins = (torch.randn(2, 5, 4), torch.zeros(2, 4))
    om.compile(sru(4, "10"), *ins, explain=True)
    assert "merge = False: " in capsys.readouterr().out
    program = sru(4, "10")
    om.compile(program, *ins, explain=True)
    assert "forms: remembered" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    asked = json.dumps({"key": path.stem, "form": {f.name: True for f in fields(Form)}})
    for text in ("no json", '{"key": "other", "form": {}}', "[]", "[" * 100_000, asked, "\0"):
        path.write_text(text)
        om.compile(program, *ins, explain=True)
        assert f"remembered choice {path.name} ignored: " in capsys.readouterr().out
    path.unlink()
    path.mkdir()
    om.compile(program, *ins, explain=True)
    assert f"remembered choice {path.name} ignored: " in capsys.readouterr().out
    om.compile(program, *ins, measure=False, explain=True)
    assert "remembered" not in capsys.readouterr().out


def test_a_choice_that_cannot_be_kept_is_said_and_harms_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEMATRIX_CACHE", str(tmp_path / "file" / "choices"))
    (tmp_path / "file").write_text("no folder")
    net, x = om.compile(mlp([3, 4, 2]), torch.randn(2, 3)), torch.randn(5, 3)
    same(net(x), interpret(net.program, x), rtol=1e-5, atol=1e-6)
    note = remember(choices_folder(), "key", Form())
    assert (
        note
        == f"choice not remembered: {choices_folder()}: Not a directory; name another folder in ONEMATRIX_CACHE"
    )


def test_another_machine_has_another_key(monkeypatch, tmp_path):
    program, x = sru(4, "10"), torch.zeros(2, 5, 4)
    key = program_key(program, [x], "text")
    assert key == program_key(program, [x], "text")
    assert key != program_key(program, [x], "another text")
    assert key != program_key(program, [x.double()], "text")
    assert key != program_key(program, [x[:1]], "text")
    assert key != program_key(program, [x.transpose(0, 1).contiguous().transpose(0, 1)], "text")
    under = []
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            under.append(program_key(program, [x], "text"))
    assert len({key, *under}) == 3
    with torch.no_grad():
        assert key != program_key(program, [x], "text"), "measured without gradients"
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert key != program_key(program, [x], "text")
    torch.set_num_threads(threads)
    monkeypatch.setattr("onematrix.records.machine.versions", lambda: {"torch": "another"})
    assert key != program_key(program, [x], "text")
    monkeypatch.undo()
    monkeypatch.setattr("onematrix.records.choices.describe_machine", lambda: {"processor": "other"})
    assert key != program_key(program, [x], "text")
    remember(tmp_path, key, Form(cells=False, never_empty=True))
    assert remembered(tmp_path, key, Form()) == Form(cells=False)
    assert remembered(tmp_path, key, Form(implicit=True)) == Form(cells=False, implicit=True)
    assert remembered(tmp_path, "nothing", Form()) is None
