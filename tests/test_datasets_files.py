"""Data files: the IDX format, downloads and their checks, MNIST, the digits."""

import gzip
import hashlib
import http.server
import os
import struct
import sys
import threading
from pathlib import Path

import numpy
import pytest
import torch

from onematrix.datasets import mnist
from onematrix.datasets.content import content_sha256
from onematrix.datasets.digits import load_digits, split_digits
from onematrix.datasets.download import cache_folder, fetch
from onematrix.datasets.idx import DTYPES, read_idx
from onematrix.datasets.images import Images, split_by_class
from onematrix.datasets.mnist import load_mnist
from onematrix.errors import DataError, DTypeError, ShapeError


def idx_bytes(array, code=0x08):
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(numpy.dtype(DTYPES[code]).newbyteorder(">")).tobytes()


CUBE = numpy.arange(24).reshape(2, 3, 4)
IDX = idx_bytes(CUBE)  # 16 bytes of header and 24 of data


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEMATRIX_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def serve(tmp_path):
    """A server of the files in `served`; requests are listed in `asked`."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            asked.append(self.path)

        def do_GET(self):
            if "short" not in self.path:
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"only this")
            return asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", folder, asked
        server.shutdown()
        thread.join()


def closed_address():
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return f"http://127.0.0.1:{server.server_port}/"


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("code", DTYPES, ids=hex)
def test_every_type_of_the_format_is_read(code, packed, tmp_path):
    values = CUBE - (0 if code == 0x08 else 11.0)
    path = tmp_path / "numbers"  # the name does not say whether it is packed
    path.write_bytes(gzip.compress(idx_bytes(values, code)) if packed else idx_bytes(values, code))
    got = read_idx(path)
    assert (
        got.dtype
        == {
            0x08: torch.uint8,
            0x09: torch.int8,
            0x0B: torch.int16,
            0x0C: torch.int32,
            0x0D: torch.float32,
            0x0E: torch.float64,
        }[code]
    )
    assert got.tolist() == values.tolist()


@pytest.mark.parametrize("shape", [(0,), (0, 28, 28), (5,), (1, 1, 1, 1)], ids=str)
def test_empty_and_other_ranks_are_read(shape, tmp_path):
    path = tmp_path / "numbers"
    path.write_bytes(idx_bytes(numpy.zeros(shape)))
    assert read_idx(path).shape == shape


def test_an_idx_file_longer_than_one_piece_is_read(tmp_path):
    values = numpy.random.default_rng(0).integers(0, 256, (3, 1000, 1000))
    path = tmp_path / "numbers"
    path.write_bytes(idx_bytes(values))
    assert torch.equal(read_idx(path), torch.from_numpy(values.astype(numpy.uint8)))


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"4 bytes needed for the IDX header, got 0 \(truncated\)"),
        (IDX[:9], r"16 bytes needed for the IDX header, got 9 \(truncated\)"),
        (IDX[:-5], r"40 bytes needed for shape \(2, 3, 4\), got 35 \(truncated\)"),
        (IDX + b"xyz", r"40 bytes needed for shape \(2, 3, 4\), got 43 \(trailing data\)"),
        (IDX + bytes(3_000_000), r"40 bytes needed for shape \(2, 3, 4\), got 3000040 \(trailing data\)"),
        (b"\0\0\x0a\1" + IDX[4:], r"not an IDX file: .*08, 09, 0b, 0c, 0d, 0e.* got 00 00 0a 01"),
        (b"\0\1\x08\1" + IDX[4:], r"not an IDX file: .* got 00 01 08 01"),
        (b"\0\0\x08\0" + IDX[4:], r"1 to 64 dimensions, got 00 00 08 00"),
        (b"\0\0\x08\2" + b"\xff" * 8, r"18446744065119617037 bytes needed .*got 12 \(truncated\)"),
    ],
    ids=["empty", "header", "short", "long", "very-long", "type", "magic", "rank", "huge"],
)
def test_a_damaged_idx_file_names_itself_and_the_bytes(data, message, pack, tmp_path):
    path = tmp_path / "digits.idx"
    path.write_bytes(pack(data))
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_the_bytes_needed_and_got_are_attributes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(IDX[:-1])
    with pytest.raises(DataError) as caught:
        read_idx(path)
    assert (caught.value.needed, caught.value.got) == (40, 39)


def test_corrupt_gzip_says_how_many_bytes_were_needed_and_came(tmp_path):
    values = numpy.random.default_rng(0).integers(0, 256, (60, 500, 100))
    packed, path = bytearray(gzip.compress(idx_bytes(values))), tmp_path / "a.gz"
    path.write_bytes(packed[: len(packed) // 2])
    cut = r"a\.gz: 3000016 bytes needed for shape \(60, 500, 100\), got \d+ \(corrupt gzip data: Comp"
    with pytest.raises(DataError, match=cut) as caught:
        read_idx(path)
    assert 1_000_000 < caught.value.got < 2_000_000
    packed[-5] ^= 1  # the checksum at the end
    path.write_bytes(packed)
    with pytest.raises(DataError, match=r"got 3000016 \(corrupt gzip data: CRC check failed"):
        read_idx(path)
    path.write_bytes(gzip.compress(IDX) + b"no gzip")
    with pytest.raises(
        DataError, match=r"40 bytes needed .*, got 40 \(corrupt gzip data: Not a gzipped file"
    ):
        read_idx(path)
    path.write_bytes(b"\x1f\x8b" + bytes(30))
    with pytest.raises(DataError, match=r"4 bytes needed for the IDX header, got 0 \(truncated\)"):
        read_idx(path)
    with pytest.raises(
        DataError, match=r"a\.gz: corrupt gzip data after 0 bytes of content \(Unknown compression"
    ):
        content_sha256(path)


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file"):
        read_idx(tmp_path / "nowhere")
    with pytest.raises(DataError, match=rf"{tmp_path}: cannot be read \(Is a directory\)"):
        read_idx(tmp_path)


def test_the_hash_is_that_of_the_content(tmp_path):
    (tmp_path / "plain").write_bytes(IDX)
    (tmp_path / "packed").write_bytes(gzip.compress(IDX, 1))
    expected = hashlib.sha256(IDX).hexdigest()
    assert content_sha256(tmp_path / "plain") == content_sha256(tmp_path / "packed") == expected


def test_the_cache_folder_is_the_users(monkeypatch):
    monkeypatch.delenv("ONEMATRIX_DATA", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "onematrix"
    monkeypatch.setenv("ONEMATRIX_DATA", "~/data")
    assert cache_folder() == Path.home() / "data"


def test_fetch_downloads_once_and_then_uses_the_file(cache, serve):
    address, served, asked = serve
    (served / "a.gz").write_bytes(gzip.compress(IDX))
    for _ in range(2):
        path = fetch(address + "a.gz", hashlib.sha256(IDX).hexdigest(), "set/a.gz")
        assert path == cache / "set" / "a.gz"
        assert torch.equal(read_idx(path), torch.from_numpy(CUBE).byte())
    assert asked == ["/a.gz"]
    assert os.listdir(cache / "set") == ["a.gz"]


def test_fetch_uses_an_unpacked_file(cache):
    (cache / "set").mkdir(parents=True)
    (cache / "set" / "a").write_bytes(IDX)
    assert fetch("http://never.invalid/a.gz", hashlib.sha256(IDX).hexdigest(), "set/a.gz").name == "a"


def test_fetch_tries_the_next_mirror(cache, serve):
    address, served, _ = serve
    (served / "a").write_bytes(IDX)
    (served / "wrong").write_bytes(IDX[:-1])
    urls = [closed_address() + "a", address + "absent", address + "wrong", address + "short", address + "a"]
    assert fetch(urls, hashlib.sha256(IDX).hexdigest(), "a").read_bytes() == IDX


def test_a_file_with_the_wrong_hash_is_named_and_kept(cache):
    cache.mkdir()
    (cache / "a").write_bytes(IDX)
    got = hashlib.sha256(IDX).hexdigest()
    with pytest.raises(
        DataError, match=rf"{cache}/a: sha256 .* should be {'0' * 64}, got {got}; delete {cache}/a"
    ) as caught:
        fetch("http://never.invalid/a", "0" * 64, "a")
    assert (caught.value.expected, caught.value.got) == ("0" * 64, got)
    assert (cache / "a").read_bytes() == IDX


def test_a_download_with_the_wrong_hash_leaves_nothing(cache, serve):
    address, served, _ = serve
    (served / "a").write_bytes(IDX)
    got = hashlib.sha256(IDX).hexdigest()
    with pytest.raises(DataError, match=rf"{address}a: sha256 .* should be {'0' * 64}, got {got}; try again"):
        fetch(address + "a", "0" * 64, "a")
    assert os.listdir(cache) == []


def test_a_download_cut_short_says_how_far_it_came(cache, serve):
    with pytest.raises(DataError, match=r"short: 1000 bytes announced, got 9"):
        fetch(serve[0] + "short", "0" * 64, "a")


def test_an_unreachable_address_says_where_to_put_the_file(cache):
    address = closed_address() + "a.gz"
    message = (
        rf"a\.gz could not be downloaded:\n  {address}: .*refused.*\n  or put the file at {cache}/set/a\.gz"
    )
    with pytest.raises(DataError, match=message) as caught:
        fetch(address, "0" * 64, "set/a.gz")
    assert len(caught.value.reasons) == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONEMATRIX_DATA", str(tmp_path / "file" / "under"))
    with pytest.raises(DataError, match=rf"{tmp_path}/file/under: .*cannot be written .*set ONEMATRIX_DATA"):
        fetch("http://never.invalid/a", "0" * 64, "a")


def test_progress_is_shown_on_a_terminal_only(cache, serve, capsys, monkeypatch):
    address, served, _ = serve
    (served / "a").write_bytes(IDX)
    fetch(address + "a", hashlib.sha256(IDX).hexdigest(), "a")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch(address + "a", hashlib.sha256(IDX).hexdigest(), "b")
    assert "a" in capsys.readouterr().err


@pytest.fixture
def small_mnist(serve, monkeypatch):
    """Four made images under the names of MNIST's training files, on a local server."""
    address, served, _ = serve
    pixels = numpy.random.default_rng(0).integers(0, 256, (4, 28, 28))
    files = {}
    for name, array in zip(mnist.FILES["train"], (pixels, numpy.array([3, 1, 3, 0])), strict=True):
        (served / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
        files[name] = hashlib.sha256(idx_bytes(array)).hexdigest()
    monkeypatch.setitem(mnist.FILES, "train", files)
    return address, torch.from_numpy(pixels).byte()


def test_mnist_is_loaded_from_a_mirror(small_mnist, cache):
    address, pixels = small_mnist
    images = load_mnist("train", mirrors=[address])
    assert torch.equal(images.pixels, pixels)
    assert images.labels.tolist() == [3, 1, 3, 0]
    assert images.labels.dtype == torch.int64
    assert len(list((cache / "mnist").iterdir())) == 2
    again = load_mnist("train", mirrors=[closed_address()])
    assert again.sha256() == images.sha256()


def test_an_unknown_split_is_refused():
    with pytest.raises(DataError, match="split must be one of train, test, got 'valid'"):
        load_mnist("valid")


@pytest.mark.parametrize(
    ("split", "count", "histogram"),
    [
        ("train", 60_000, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("test", 10_000, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ],
)
def test_the_official_mnist(split, count, histogram):
    if not (cache_folder() / "mnist" / "train-images-idx3-ubyte.gz").exists():
        pytest.skip("no data")
    images = load_mnist(split)
    assert images.pixels.shape == (count, 28, 28)
    assert images.labels.bincount().tolist() == histogram


def test_the_digits_are_scikit_learns():
    from sklearn import datasets

    images, source = load_digits(), datasets.load_digits()
    assert images.pixels.shape == (1797, 8, 8)
    assert images.labels.tolist() == source.target.tolist()
    assert images.pixels.max() == 255
    restored = (images.pixels.double() * 16 / 255).round()
    assert restored.tolist() == source.images.tolist()


def test_the_digits_are_split_by_class_and_disjoint():
    train, test = split_digits()
    counts = load_digits().labels.bincount()
    assert torch.equal(test.labels.bincount(), (counts + 4) // 5)
    assert torch.equal(train.labels.bincount() + test.labels.bincount(), counts)
    kept = {p.numpy().tobytes() for p in train.pixels}
    assert kept.isdisjoint(p.numpy().tobytes() for p in test.pixels)
    again = split_digits()[1]
    assert again.sha256() == test.sha256()
    assert split_digits(seed=1)[1].sha256() != test.sha256()


def test_missing_scikit_learn_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(
        DataError, match=r'scikit-learn, which is not installed; pip install "onematrix\[data\]"'
    ):
        load_digits()


def test_split_by_class_needs_two_of_each():
    images = Images(torch.zeros(3, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 1]))
    with pytest.raises(ShapeError, match="got every=5 and 1 in the smallest class"):
        split_by_class(images)
    with pytest.raises(ShapeError, match="got every=1 and 3 in the smallest class"):
        split_by_class(Images(images.pixels, torch.zeros(3, dtype=torch.int64)), every=1)


@pytest.mark.parametrize(
    ("pixels", "labels", "error", "message"),
    [
        (
            torch.zeros(2, 3, 3),
            torch.zeros(2).long(),
            DTypeError,
            "pixels must be torch.uint8, got torch.float32",
        ),
        (
            torch.zeros(2, 3, 3).byte(),
            torch.zeros(2),
            DTypeError,
            "labels must be torch.int64, got torch.float32",
        ),
        (
            torch.zeros(2, 9).byte(),
            torch.zeros(2).long(),
            ShapeError,
            r"\(N, h, w\), none of them 0, got \(2, 9\)",
        ),
        (torch.zeros(0, 3, 3).byte(), torch.zeros(0).long(), ShapeError, r"got \(0, 3, 3\)"),
        (
            torch.zeros(2, 3, 3).byte(),
            torch.zeros(3).long(),
            ShapeError,
            r"\(2,\), got labels of shape \(3,\)",
        ),
    ],
)
def test_images_of_another_form_are_refused(pixels, labels, error, message):
    with pytest.raises(error, match=message):
        Images(pixels, labels)
