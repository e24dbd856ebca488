"""onematrix bench compile: every row is checked before it is timed, and written with its target and floor."""

import json

import pytest
import torch
from typer.testing import CliRunner

from onematrix.cli.main import app
from onematrix.errors import VerificationError
from onematrix.experiments.compile_bench import Line, check, measure_compiled
from onematrix.experiments.compile_cases import cases


@pytest.mark.parametrize("number", range(len(cases())))
def test_every_case_computes_what_its_peer_computes(number):
    from onematrix.compiler.compilation import compile

    torch.manual_seed(0)
    case = cases(16)[number]()
    check(case, compile(case.program, *case.inputs, measure=False))
    assert all(min(shape) >= 1 for shape in case.products)


def test_a_wrong_program_is_not_timed():
    from onematrix.compiler.compilation import compile

    case = cases(16)[0]()
    ours = compile(case.program)
    with torch.no_grad():
        next(ours.parameters()).add_(0.1)
        ours.get_parameter("blocks.x3.one.vector").copy_(torch.full_like(case.peer_parameters[-1], 3.0))
    theirs = case.peer
    wrong = type(case)(**{**vars(case), "peer": lambda x: theirs(x) + 1})
    with pytest.raises(VerificationError, match=r"MLP .*: output: relative error .*, allowed 2e-04; no time"):
        check(wrong, ours)


def test_rows_say_whether_the_target_is_met():
    line = Line("a", "b", "forward", 1.1, 0.95, 1.2, 1.0, 2.0, 3.0)
    assert line.met
    assert not Line("a", "b", "forward", 1.1, 1.05, 1.2, 1.0, 2.0, 3.0).met
    assert "target 1.00 met" in str(line)
    assert "3.00 × floor" in str(line)
    assert "2.000 MB" in str(Line("a", "b", "memory", 1.0, 1.0, 1.0, 1.1, 2.0, unit="MB"))


def test_the_verb_writes_its_table_and_chart(tmp_path):
    arguments = ["bench", "compile", "--quick", "--only", "64-64", "--pairs", "10", "--out", str(tmp_path)]
    assert list(measure_compiled(10, 8, "no such case")) == []
    result = CliRunner().invoke(app, [*arguments, "--only", "mlp 98", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "compile.json").read_text())
    assert [row["what"] for row in facts["rows"]] == ["forward", "gradients", "memory", "held"]
    assert facts == json.loads(result.stdout)
    assert (tmp_path / "compile.svg").exists()


def test_peak_memory_counts_what_is_held_at_once():
    from onematrix.records.memory import peak_bytes

    def at_once():
        a, b = torch.ones(100_000), torch.ones(100_000)
        return float((a + b).sum())

    def in_turn():
        return [float(torch.ones(100_000).sum()) for _ in range(5)]

    assert 1_200_000 <= peak_bytes(at_once) < 1_300_000
    assert 400_000 <= peak_bytes(in_turn) < 500_000
