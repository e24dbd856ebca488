"""Files are whole or absent; torn lines are dropped; the machine is described."""

import gc
import json
import os

import pytest

from onematrix.errors import FormatError, OneMatrixError
from onematrix.records.collector import collector_at_rest
from onematrix.records.files import append_line, make_folder, read_json, read_lines, replacing, write_json
from onematrix.records.machine import describe_machine, versions


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})
    with pytest.raises(ZeroDivisionError):
        _break_halfway(target)
    assert read_json(target) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def _break_halfway(target):
    with replacing(target) as temporary:
        temporary.write_text('{"new": ')
        print(1 / 0)


def test_a_torn_last_line_is_dropped_and_a_torn_middle_line_is_named(tmp_path):
    path = tmp_path / "records.jsonl"
    append_line(path, {"step": 1})
    append_line(path, {"step": 2, "σ": "relu"})
    with open(path, "a") as lines:
        lines.write('{"step": 3')
    assert read_lines(path) == [{"step": 1}, {"step": 2, "σ": "relu"}]
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(FormatError, match="line 1"):
        read_lines(path)


def test_missing_records_are_none_and_bad_json_is_named(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == []
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(FormatError, match=r"bad\.json: not valid JSON"):
        read_json(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(FormatError, match="got list"):
        read_json(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        (b'{"a": ' + b"[" * 100_000, "maximum recursion depth exceeded"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "Exceeds the limit"),
        (b"\xff{}", "can't decode byte 0xff"),
    ],
    ids=["deep", "long", "bytes"],
)
def test_json_no_reader_gets_through_is_named(tmp_path, written, fault):
    (tmp_path / "bad.json").write_bytes(written)
    with pytest.raises(FormatError, match=rf"bad\.json: not valid JSON \(.*{fault}") as caught:
        read_json(tmp_path / "bad.json")
    assert caught.value.path == str(tmp_path / "bad.json")


def test_a_line_nested_too_deeply_is_named(tmp_path):
    (tmp_path / "deep.jsonl").write_text("{}\n" + "[" * 100_000 + "\n{}\n")
    with pytest.raises(
        FormatError, match=r"deep\.jsonl, line 2: not valid JSON \(maximum recursion"
    ) as caught:
        read_lines(tmp_path / "deep.jsonl")
    assert caught.value.line == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OneMatrixError, match=r"output folder .*/file/inside cannot be written to"):
        make_folder(tmp_path / "file" / "inside")
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert os.listdir(tmp_path / "a" / "b") == []


def test_the_machine_is_described_in_plain_data():
    facts = describe_machine()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["threads"] >= 1
    assert versions()["onematrix"]


def test_the_collector_is_left_as_it_was():
    @collector_at_rest()
    def fails():
        raise ValueError(str(gc.isenabled()))

    assert gc.isenabled()
    with pytest.raises(ValueError, match="False"):
        fails()
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_at_rest():
            pass
        assert not gc.isenabled(), "it was off before"
    finally:
        gc.enable()
