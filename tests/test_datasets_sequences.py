"""Series and texts from small made files: windows, tables, tokens, vocabularies, and what is refused."""

import gzip
import hashlib

import pytest
import torch

from onematrix.datasets import series, text
from onematrix.datasets.download import fetch, kept
from onematrix.datasets.news import encode, frequent_words, read_news, split_words
from onematrix.datasets.series import Series, load_series, read_table, windows
from onematrix.datasets.text import corpus, load_text
from onematrix.errors import DataError, ShapeError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEMATRIX_DATA", str(tmp_path))
    return tmp_path


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def hash_of(content):
    return hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.parametrize(("length", "horizon", "start", "stop"), [(1, 1, 0, 2), (3, 2, 4, 15), (5, 7, 8, 20)])
def test_windows_are_slices(length, horizon, start, stop):
    values = torch.randn(20, 3, dtype=torch.float64)
    inputs, targets = windows(values, length, horizon, start, stop)
    literal = [
        (values[i : i + length], values[i + length : i + length + horizon])
        for i in range(start, stop)
        if i + length + horizon <= stop
    ]
    assert inputs.shape == (len(literal), length, 3)
    assert torch.equal(inputs, torch.stack([a for a, _ in literal]))
    assert torch.equal(targets, torch.stack([b for _, b in literal]))
    assert inputs.data_ptr() == values[start:].data_ptr(), "windows must be views"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 0, 5), "got .5, 2., length=0, horizon=1, start=0, stop=5"),
        ((1, 0, 0, 5), "horizon=0"),
        ((1, 1, -1, 5), "start=-1"),
        ((1, 1, 3, 3), "start=3, stop=3"),
        ((1, 1, 0, 6), "stop=6"),
        ((3, 2, 1, 5), r"3 \+ 2 rows needed, got 4 \(rows 1 … 5\)"),
    ],
)
def test_windows_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ShapeError, match=message):
        windows(torch.zeros(5, 2), *arguments)
    with pytest.raises(ShapeError, match=r"values \(T, c\)"):
        windows(torch.zeros(5), 1, 1, 0, 5)


def test_tables_are_read_and_bad_lines_named(tmp_path):
    path = written(tmp_path / "t.csv", gzip.compress(b"date,a,b\n2016-01-01,1.5,-2\nx,1e3,0.25\n"))
    names, values = read_table(path, columns=2, skip=1, header=True)
    assert (names, values.tolist()) == (["a", "b"], [[1.5, -2.0], [1000.0, 0.25]])
    assert read_table(written(path, "1,2\n3,4\n"), columns=2)[1].tolist() == [[1, 2], [3, 4]]
    written(path, "date,a\n1,2\n3\n")
    with pytest.raises(DataError, match=r"t\.csv: line 3: 2 fields needed, got 1"):
        read_table(path, columns=1, skip=1, header=True)
    written(path, "date,a\n1,2\n3,four\n")
    with pytest.raises(DataError, match=r"t\.csv: line 3: numbers needed, got four"):
        read_table(path, columns=1, skip=1, header=True)


def test_the_loader_of_a_series_reads_what_lies_there(cache, monkeypatch):
    rows = "".join(f"{'0.5,' * 7}{day}\n" for day in range(20))
    monkeypatch.setattr(series, "EXCHANGE_SHA256", hash_of(rows))
    written(cache / "exchange_rate" / "exchange_rate.txt", rows)
    got = load_series("exchange_rate")
    assert got.values[:, 7].tolist() == list(range(20))
    assert got.splits == {"train": (0, 14), "val": (14, 16), "test": (16, 20)}
    written(cache / "exchange_rate" / "exchange_rate.txt", rows[:-9])
    needed, found = hash_of(rows), hash_of(rows[:-9])
    with pytest.raises(DataError, match=rf"exchange_rate\.txt: sha256 .* should be {needed}, got {found}"):
        load_series("exchange_rate")


def test_series_of_another_form_are_refused():
    with pytest.raises(ShapeError, match=r"values must be \(T, 2\), one column per name, got \(4, 3\)"):
        Series(torch.zeros(4, 3), ("a", "b"), {})
    with pytest.raises(ShapeError, match="split 'val' is rows 3 … 5 of 4"):
        Series(torch.zeros(4, 1), ("a",), {"train": (0, 3), "val": (3, 5)})
    with pytest.raises(DataError, match=r"finite values needed, got \[nan\] in row 1"):
        Series(torch.tensor([[0.0], [torch.nan]]), ("a",), {})


def test_a_corpus_is_numbered_by_the_training_text(tmp_path):
    train = written(tmp_path / "train", " the cat \n\n sat <unk> the\u2028mat \n")  # U+2028 is no line end
    valid, test = written(tmp_path / "valid", "the dog\n"), written(tmp_path / "test", "cat")
    got = corpus(train, valid, test)
    assert got.vocabulary == ["the", "cat", "<eos>", "sat", "<unk>", "mat"]
    assert got.train.tolist() == [0, 1, 2, 2, 3, 4, 0, 5, 2]
    assert got.valid.tolist() == [0, 4, 2]
    assert got.test.tolist() == [1, 2]
    assert got.train.dtype == torch.int64


def test_texts_that_do_not_fit_are_refused(tmp_path):
    train, other = written(tmp_path / "train", "the cat\n"), written(tmp_path / "other", "the the dog\n")
    with pytest.raises(
        DataError, match=r"other: word 'dog' \(token 2\) is not in the training text"
    ) as caught:
        corpus(train, train, other)
    assert (caught.value.word, caught.value.position) == ("dog", 2)
    with pytest.raises(DataError, match="other: a text with at least one line needed, got 0 lines"):
        corpus(train, written(other, ""), train)
    with pytest.raises(DataError, match="other: UTF-8 text needed, got byte 0xff at 4"):
        corpus(train, written(other, b"the \xff\n"), train)


def test_the_loader_of_a_text_reads_what_lies_there(cache, monkeypatch):
    for split in text.SPLITS:
        monkeypatch.setitem(text.PTB_SHA256, split, hash_of(f"a {split}\na a <unk>\n"))
        written(cache / "ptb" / f"ptb.{split}.txt.gz", gzip.compress(f"a {split}\na a <unk>\n".encode()))
    got = load_text("ptb")
    assert got.train.tolist() == [0, 1, 2, 0, 0, 3, 2]
    assert got.valid.tolist() == got.test.tolist() == [0, 3, 2, 0, 0, 3, 2]
    packed = gzip.compress(b"a train\n" * 50)
    written(cache / "ptb" / "ptb.valid.txt.gz", packed[:-4])
    with pytest.raises(DataError, match=r"ptb\.valid\.txt\.gz: corrupt gzip data after 400 bytes"):
        load_text("ptb")


def test_words_of_news():
    assert split_words(r"US-funded \$5 &lt;a href='x'&gt;Link&lt;/a&gt; it #39;s a second\team") == [
        *("us", "funded", "5", "link", "it's", "a", "second", "team")
    ]
    assert split_words("no #9999999999; character") == ["no", "character"]
    texts = [["b", "a", "b"], ["c", "a"], ["d"]]
    assert frequent_words(texts, 5) == ["<pad>", "<unk>", "b", "a", "c"]
    assert frequent_words(texts, 99) == ["<pad>", "<unk>", "b", "a", "c", "d"]
    assert encode([*texts, []], frequent_words(texts, 4), 2).tolist() == [[2, 3], [1, 3], [1, 0], [0, 0]]


def test_rows_of_news(tmp_path):
    path = written(tmp_path / "n.csv", '"4","A ""b""","c"\n"1","d","e, f"\n')
    assert read_news(path) == ([["a", "b", "c"], ["d", "e", "f"]], [3, 0])
    written(path, '"1","d","e"\n"5","d","e"\n')
    with pytest.raises(DataError, match=r"n\.csv: row 2: .* got 3 fields starting with \['5'\]"):
        read_news(path)
    written(path, '"1","d"\n')
    with pytest.raises(DataError, match=r"n\.csv: row 1: .* got 2 fields starting with \['1'\]"):
        read_news(path)


def test_files_are_found_packed_or_not(cache):
    written(cache / "set" / "a.gz", gzip.compress(b"content"))
    sha256 = hash_of("content")
    assert fetch("http://never.invalid/a", sha256, "set/a") == kept("set/a", sha256, "") == cache / "set/a.gz"
    written(cache / "set" / "a", b"content")
    assert kept("set/a", sha256, "").name == kept("set/a.gz", sha256, "").with_suffix("").name == "a"
    packed = hashlib.sha256((cache / "set" / "a.gz").read_bytes()).hexdigest()
    assert fetch("http://never.invalid/a.gz", packed, "set/a.gz", unpacked=False).name == "a.gz"
    with pytest.raises(DataError, match=rf"a\.gz: sha256 .* should be {sha256}, got {packed}; delete"):
        fetch("http://never.invalid/a.gz", sha256, "set/a.gz", unpacked=False)
    written(cache / "set" / "c", b"content")
    with pytest.raises(DataError, match=r"c\.gz could not be downloaded"):
        fetch("never:c.gz", sha256, "set/c.gz", unpacked=False)
    with pytest.raises(DataError, match=r"set/b: no such file; from there\. Set ONEMATRIX_DATA to .* set/b"):
        kept("set/b", sha256, "from there")


def test_a_file_that_cannot_be_read_is_named(cache):
    (cache / "folder").mkdir()
    with pytest.raises(DataError, match=r"folder: cannot be read \(Is a directory\)"):
        fetch("http://never.invalid/a", "0" * 64, "folder", unpacked=False)
