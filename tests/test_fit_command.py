"""onematrix fit: the table for a matrix of a file, the folder it keeps, and what it refuses."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close
from typer.testing import CliRunner

import onematrix as om
from onematrix.cli.fit import read_matrix
from onematrix.cli.main import app
from onematrix.errors import BudgetError, DataError, FitError, FormatError
from structure_cases import generator


@pytest.fixture
def matrix():
    left, right = (torch.randn(s, generator=generator()) for s in ((16, 2), (2, 12)))
    return (left @ right).contiguous()


@pytest.fixture
def file(tmp_path, matrix):
    tensors = {
        "layer.weight": matrix,
        "half.weight": matrix.bfloat16(),
        "layer.bias": torch.zeros(12),
        "steps": torch.tensor([[1, 2]]),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def run(*arguments):
    return CliRunner().invoke(app, ["fit", *map(str, arguments)])


def test_the_table_names_every_structure_with_its_error(file):
    result = run(file, "--tensor", "layer.weight", "--budget", 0.5, "--batch", 2)
    assert result.exit_code == 0, result.output
    head, titles, *rows = result.stdout.splitlines()
    assert "structures for 16×12 within E = 0.5" in head
    assert titles.split()[0] == "structure"
    assert {"low_rank", "blast", "csr"} <= {word for row in rows for word in row.split()}


def test_one_structure_is_kept_in_a_folder(file, matrix, tmp_path):
    folder = tmp_path / "kept"
    options = ("--structure", "low_rank", "--budget", 0.5, "--out", folder)
    result = run(file, "--tensor", "layer.weight", *options, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert [row["structure"] for row in facts["rows"]] == ["low_rank"]
    assert facts["rows"][0]["error"] < 1e-6
    assert facts["saved"] == str(folder)
    assert facts["tensor"] == "layer.weight"
    layer = om.load(folder)
    assert layer.structure.name == "low_rank"
    assert_close(layer.structure.to_dense(), matrix, atol=1e-5, rtol=1e-5)
    said = run(file, "--tensor", "layer.weight", *options).stdout
    assert f"saved in {folder}; om.load('{folder}') is a layer" in said


def test_without_a_structure_the_one_of_least_error_is_kept(file, tmp_path):
    result = run(file, "--tensor", "layer.weight", "--budget", 0.4, "--out", tmp_path / "best", "--json")
    rows = json.loads(result.stdout)["rows"]
    assert rows[0]["error"] == min(row["error"] for row in rows)
    assert om.load(tmp_path / "best").structure.name == rows[0]["structure"]


def test_half_precision_is_read_as_float32(file, matrix):
    read = read_matrix(file, "half.weight")
    assert read.dtype == torch.float32
    assert torch.equal(read, matrix.bfloat16().float())
    assert torch.equal(read_matrix(file, "layer.weight"), matrix)


def test_a_single_matrix_needs_no_name(tmp_path, matrix):
    save_file({"w": matrix, "b": torch.zeros(3)}, tmp_path / "one.safetensors")
    assert torch.equal(read_matrix(tmp_path / "one.safetensors", None), matrix)


REFUSED = [
    (
        ("--tensor", "nope"),
        DataError,
        r"model.safetensors: no tensor is called 'nope'; matrices there are: half",
    ),
    (("--tensor", "layer.bias"), DataError, r"layer.bias has shape \(12,\), a matrix was needed"),
    ((), DataError, "name one with --tensor; .*: half.weight 16×12, layer.weight 16×12, steps 1×2"),
    (("--tensor", "steps"), FitError, r"a real matrix was needed, got torch\.int64"),
    (("--tensor", "layer.weight", "--budget", 0.001), BudgetError, r"budget 0\.001 is below the smallest"),
    (("--tensor", "layer.weight", "--structure", "nope"), FitError, "no structure is called 'nope'"),
    (("--tensor", "layer.weight", "--seconds", 0), FitError, r"seconds must be above 0 .*got 0\.0"),
    (("--tensor", "layer.weight", "--batch", 0), FitError, "batch must be at least 1 .*got 0"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED)
def test_what_is_not_there_is_said(arguments, error, message, file):
    result = run(file, *arguments)
    assert isinstance(result.exception, error)
    with pytest.raises(error, match=message):
        raise result.exception


def test_files_that_are_none_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.safetensors: no such file; a \.safetensors file was needed"):
        read_matrix(tmp_path / "none.safetensors", None)
    (tmp_path / "torn.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(FormatError, match=r"torn\.safetensors: not a \.safetensors file, or damaged"):
        read_matrix(tmp_path / "torn.safetensors", None)
    many = {f"w{i:02}": torch.zeros(1, 1) for i in range(33)}
    save_file(many, tmp_path / "many.safetensors")
    with pytest.raises(DataError, match=r"w29 1×1 and 3 more"):
        read_matrix(tmp_path / "many.safetensors", "x")
    save_file({"b": torch.zeros(1)}, tmp_path / "no.safetensors")
    with pytest.raises(DataError, match="matrices there are: none"):
        read_matrix(tmp_path / "no.safetensors", "x")


def test_a_file_to_write_to_is_refused(file):
    result = run(file, "--tensor", "layer.weight", "--out", "fitted.safetensors")
    assert result.exit_code == 2
    assert "a folder is written" in " ".join(result.output.replace("│", " ").split())
    assert "Example: onematrix fit" in run("--help").output
