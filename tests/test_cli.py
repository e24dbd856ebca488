"""The command line as a person meets it: exit codes, messages, files, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import onematrix as om
from onematrix.cli.main import app
from onematrix.networks import mlp
from onematrix.records.files import read_json

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def command(*arguments, folder, **more):
    """`python -m onematrix …`, a process of its own."""
    line = [sys.executable, "-m", "onematrix", *map(str, arguments)]
    return subprocess.run(
        line, cwd=folder, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, **more
    )


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize(
    "verb", ["demo", "view", "train", "structures", "doctor", "experiment", "experiment run"]
)
def test_help_has_an_example(verb):
    result = invoke(*verb.split(), "--help")
    assert result.exit_code == 0
    assert "Example:" in result.output or verb == "experiment"


def test_structures_and_experiments_are_listed():
    assert "low_rank" in invoke("structures").output
    names = [row["name"] for row in json.loads(invoke("structures", "--json").output)]
    assert names == list(om.list_structures())
    found = [row["id"] for row in json.loads(invoke("experiment", "list", "--json").output)]
    assert {"kale-table-3", "kale-table-4", "kale-table-7", "kale-figure-8", "kale-figure-9"} <= set(found)


def test_doctor_tells_the_machine(tmp_path):
    result = invoke("doctor", "--json", "--out", tmp_path / "doctor.json")
    assert result.exit_code == 0
    facts = json.loads(result.output)
    assert facts == read_json(tmp_path / "doctor.json") | {"load": facts["load"]}
    assert facts["checks"][0]["passed"]
    assert "torch" in facts["versions"]
    assert "sparse product equals its definition" in invoke("doctor").output


def test_view_prints_counts_and_draws(tmp_path):
    result = invoke("view", "onematrix.networks:sru", "--size", "time=10", "--json")
    shown = json.loads(result.output)
    assert shown["total"]["stored numbers"] == 3 * 64 + 4 * 8
    assert sum(row["stored numbers"] for row in shown["blocks"]) == shown["total"]["stored numbers"]
    assert sum(row["share"] for row in shown["blocks"]) == pytest.approx(1)
    result = invoke("view", "onematrix.networks:sru", "--out", tmp_path / "sru.svg", "--area", "bytes")
    assert result.exit_code == 0
    assert (tmp_path / "sru.svg").exists()
    assert "f ← x" in result.output
    assert invoke("view", "onematrix.networks:sru", "--text").output.startswith(
        "program 1\ninputs inputs c0\n"
    )


def test_view_reads_a_saved_folder_and_a_module_of_the_current_folder(tmp_path):
    om.save(om.Iterated(mlp([4, 5, 3])), tmp_path / "net")
    assert "x1 ← x0" in invoke("view", tmp_path / "net").output
    (tmp_path / "mine.py").write_text(
        "from onematrix.networks import mlp\ndef net():\n    return mlp([2, 3])\n"
    )
    assert "x1 ← x0" in command("view", "mine:net", folder=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["view", "nowhere"], 2, "'nowhere' is no model"),
        (["view", "no.such:thing"], 2, "cannot import 'no.such'"),
        (["view", "onematrix.networks:gpt"], 2, "has no callable 'gpt'"),
        (["view", "onematrix.networks:mlp"], 2, "cannot be called without arguments"),
        (["view", "model.pt"], 2, "pickled models are not read"),
        (["view", "torch.nn:ReLU"], 1, "ReLU has no program here"),
        (["view", "onematrix.networks:sru", "--size", "time"], 2, "name=integer was needed"),
        (["view", "onematrix.networks:sru", "--out", "a.pdf"], 1, "a picture ends in .svg, .png"),
        (
            ["experiment", "run", "kale-table-9"],
            1,
            "no experiment is called 'kale-table-9'; there are: kale-figure-8",
        ),
        (["demo", "--data", "cifar"], 2, "digits or mnist was needed"),
        (["demo", "--out", "file/inside"], 1, "output folder file/inside cannot be written to"),
        (["train", "low_rank", "--budget", "1.5"], 3, "budget must lie in (0, 1]"),
        (["train", "fourier", "--steps", "1"], 2, "'fourier' is no model"),
        (["train", "low_rank", "--steps", "1", "--minutes", "1"], 2, "--steps or --minutes, not both"),
        (["train", "low_rank", "--device", "abacus"], 2, "device 'abacus' is not there"),
        (["fly"], 2, "No such command"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, list) else None,
)
def test_what_is_wrong_is_said_in_one_message_with_its_exit_code(arguments, code, message, tmp_path):
    (tmp_path / "file").write_text("")
    result = command(*arguments, folder=tmp_path)
    flat = " ".join(result.stderr.replace("│", " ").split())
    assert result.returncode == code, result.stderr
    assert message in flat
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["kale-table-3", "kale-table-4", "kale-table-7"])
def test_the_tables_run_and_their_checks_pass(name, tmp_path):
    result = invoke("experiment", "run", name, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.output)
    assert all(check["passed"] for check in facts["checks"])
    assert (tmp_path / "report.html").exists()
    assert read_json(tmp_path / "result.json") == facts


@pytest.mark.parametrize("name", ["kale-figure-8", "kale-figure-9", "kale-forms"])
def test_the_figures_run_at_their_smallest_size_and_again_from_their_checkpoints(name, tmp_path):
    results = [
        invoke("experiment", "run", name, "--quick", "--steps", "2", "--out", tmp_path, "--json")
        for _ in "ab"
    ]
    assert [r.exit_code for r in results] == [0, 0], results[0].output
    tables = [json.loads(r.output)["tables"] for r in results]
    keys = ("structure", "form", "E", "stored numbers", "test accuracy (mean ± sd)")
    first, second = ([[row.get(k) for k in keys] for t in ts.values() for row in t] for ts in tables)
    assert first == second
    assert list(tmp_path.glob("*.svg"))


def test_train_keeps_a_model_that_view_and_load_read_and_resumes(tmp_path):
    arguments = ["train", "low_rank", "--budget", "0.2", "--out", tmp_path / "run", "--json"]
    short = json.loads(invoke(*arguments, "--steps", "4").output)
    assert short["steps"] == 4
    longer = json.loads(invoke(*arguments, "--steps", "6").output)
    assert (longer["steps"], longer["resumed_from"]) == (6, 4)
    net = om.load(tmp_path / "run")
    assert net(torch.zeros(2, 10, 400)).shape == (2, 10)
    whole = json.loads(invoke(*arguments[:-2], tmp_path / "whole", "--json", "--steps", "6").output)
    assert whole["evaluation"] == longer["evaluation"]


def test_train_takes_a_module_of_the_user_and_the_digits_themselves(tmp_path):
    (tmp_path / "mine.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(64, 10)\n")
    arguments = [
        "train",
        "mine:net",
        "--task",
        "classify",
        "--steps",
        "60",
        "--learning-rate",
        "0.01",
        "--json",
    ]
    result = command(*arguments, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["evaluation"]["accuracy"] > 0.7


def test_the_demo_runs_outside_a_clone_and_repeats(tmp_path):
    """The quick demo twice with one seed: the same table but for the seconds, every check passed."""
    runs = [
        command("demo", "--quick", "--json", "--out", out, "--threads", "1", folder=tmp_path) for out in "ab"
    ]
    assert [r.returncode for r in runs] == [0, 0], runs[0].stderr + runs[0].stdout
    facts = [json.loads(r.stdout) for r in runs]
    timed = ("ms per step", "seconds")
    first, second = (
        [
            {k: v for k, v in row.items() if k not in timed}
            for row in f["tables"]["Three structures, one task"]
        ]
        for f in facts
    )
    assert first == second
    assert len(first) == 3
    assert len(facts[0]["checks"]) == 4
    page = tmp_path / "a" / "report.html"
    assert page.stat().st_size < 2_000_000
    for file in ("result.json", "sru.svg", "csr.png", "accuracy.csv", "dense/records.jsonl"):
        assert (tmp_path / "a" / file).exists()


def test_ctrl_c_leaves_a_usable_partial_report(tmp_path):
    line = [sys.executable, "-c", "from onematrix.cli import main; main()", "demo", "--threads", "1"]
    process = subprocess.Popen(
        line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT
    )
    records = tmp_path / "onematrix-demo" / "dense" / "records.jsonl"
    for _ in range(600):
        if records.exists() and records.stat().st_size:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    page = (tmp_path / "onematrix-demo" / "report.html").read_text()
    assert "was interrupted" in page
    assert "Three structures, one task" in page
    assert read_json(tmp_path / "onematrix-demo" / "result.json")["interrupted"] is True
    assert "partial report" in output


def test_a_failed_check_exits_with_1(tmp_path, monkeypatch):
    from onematrix.experiments import kale_tables

    monkeypatch.setitem(kale_tables.PRINTED_LOW_RANK, 1, 16181)
    result = invoke("experiment", "run", "kale-table-7", "--out", tmp_path)
    assert result.exit_code == 1
    assert (
        "✗ FAILED: every printed low-rank count follows from the rule"
        in (tmp_path / "report.html").read_text()
    )


def test_the_plan_says_what_how_long_and_where():
    from onematrix.experiments.demo import make_plan

    text = make_plan("mnist", False, 10, Path("somewhere"), 0).text()
    for word in (
        "50×50",
        "4,000 training",
        "10 minutes per network, 30 in all",
        "somewhere",
        "[2500, 300, 20, 10]",
    ):
        assert word in text
