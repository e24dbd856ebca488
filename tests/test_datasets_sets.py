"""The real sets (CIFAR-10, Tiny ImageNet, series, text, news), and what their loaders refuse."""

import hashlib
import io
import sys
import tarfile

import numpy
import pytest
import torch

from onematrix.datasets import cifar, tiny_imagenet
from onematrix.datasets.arrays import read_arrays
from onematrix.datasets.cifar import load_cifar10
from onematrix.datasets.decoding import decode_files, decode_sheet
from onematrix.datasets.download import cache_folder
from onematrix.datasets.images import ColourImages
from onematrix.datasets.news import load_ag_news
from onematrix.datasets.series import load_series
from onematrix.datasets.text import load_text
from onematrix.datasets.tiny_imagenet import load_tiny_imagenet
from onematrix.errors import DataError, DTypeError, ShapeError

DRAW = numpy.random.default_rng(0)


def needs(path):
    if not (cache_folder() / path).exists():
        pytest.skip("no data")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, from which no address is reachable."""
    monkeypatch.setenv("ONEMATRIX_DATA", str(tmp_path))

    def refuse(url, timeout):
        raise OSError("no network in this test")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    return tmp_path


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def image_bytes(pixels, kind):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


def npz(**arrays):
    file = io.BytesIO()
    numpy.savez(file, **arrays)
    return file.getvalue()


def joined(files, labels):
    """An .npz of image files one after the other."""
    offsets = numpy.cumsum([0, *map(len, files)])
    return npz(blob=numpy.frombuffer(b"".join(files), numpy.uint8), offsets=offsets, labels=labels)


# Real data: the counts that are known, and one value read by hand.


@pytest.mark.parametrize(
    ("split", "counts"),
    [
        ("train", [2000] * 10),
        ("heldout", [500] * 10),
        ("test", [103, 89, 100, 103, 90, 86, 112, 102, 106, 109]),
    ],
)
def test_the_lossless_cifar10(split, counts):
    needs("cifar10/lossless_index.npz")
    images = load_cifar10(split, "lossless")
    assert images.pixels.shape == (sum(counts), 3, 32, 32)
    assert images.labels.bincount().tolist() == counts
    assert images.source.startswith(f"CIFAR-10 {split}, lossless, {sum(counts)} images")


def test_the_two_selections_of_cifar10_show_the_same_images():
    """Layout, order and labels of the sheets and of the JPEG files agree where both have an image."""
    needs("cifar10/lossless_index.npz")
    exact, lossy = load_cifar10("test", "lossless"), load_cifar10("test", "jpeg")
    assert len(lossy) == 10_000
    assert lossy.labels.bincount().tolist() == [1000] * 10
    assert torch.equal(lossy.labels[:1000], exact.labels)
    difference = (lossy.pixels[:1000].float() - exact.pixels.float()).abs().mean((1, 2, 3))
    assert difference.mean() == pytest.approx(5.8, abs=0.05)
    assert difference.max() < 20


@pytest.mark.parametrize(("split", "each"), [("train", 500), ("val", 50)])
def test_the_tiny_imagenet(split, each):
    needs("tiny_imagenet20/train.npz")
    images = load_tiny_imagenet(split, size=16)
    assert images.pixels.shape == (20 * each, 3, 16, 16)
    assert images.labels.bincount().tolist() == [each] * 20
    assert tiny_imagenet.tiny_imagenet_classes()[:2] == ["goldfish, Carassius auratus", "centipede"]


@pytest.mark.parametrize(
    ("name", "shape", "train", "test", "first"),
    [
        ("etth1", (17_420, 7), (0, 8640), (11_520, 14_400), [5.827, 2.009, 1.599]),
        ("exchange_rate", (7588, 8), (0, 5311), (6071, 7588), [0.7855, 1.611, 0.861698]),
        ("electricity", (840, 321), (0, 588), (672, 840), [12.0, 77.0, 8.0]),
    ],
)
def test_the_series(name, shape, train, test, first):
    needs({"etth1": "etth1", "exchange_rate": "exchange_rate", "electricity": "electricity35d"}[name])
    got = load_series(name)
    assert (got.values.shape, got.values.dtype, len(got.names)) == (shape, torch.float32, shape[1])
    assert got.splits == {"train": train, "val": (train[1], test[0]), "test": test}
    torch.testing.assert_close(got.values[0, :3], torch.tensor(first), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "tokens", "words"),
    [("ptb", (929_589, 73_760, 82_430), 10_000), ("wikitext2", (2_088_628, 217_646, 245_569), 33_278)],
)
def test_the_texts(name, tokens, words):
    """The published numbers of tokens and words, <eos> included."""
    needs(name)
    got = load_text(name)
    assert (len(got.train), len(got.valid), len(got.test)) == tokens
    assert len(got.vocabulary) == len(set(got.vocabulary)) == words
    assert got.train.unique().tolist() == list(range(words))
    assert "<unk>" in got.vocabulary


def test_the_news():
    needs("ag_news")
    train, test = load_ag_news("train", 32, 5000), load_ag_news("test", 32, 5000)
    assert train.labels.bincount().tolist() == [7479, 7526, 7544, 7474]
    assert test.labels.bincount().tolist() == [1900] * 4
    assert test.tokens.shape == (7600, 32)
    assert train.vocabulary == test.vocabulary
    assert train.vocabulary[:4] == ["<pad>", "<unk>", "the", "to"]
    assert len(train.vocabulary) == 5000
    first = "fears for t n pension after talks unions representing workers at turner"
    shown = [test.vocabulary[n] if n > 1 else None for n in test.tokens[0]]
    assert all(got in (word, None) for got, word in zip(shown, first.split(), strict=False))


# Made data: the official archive of CIFAR-10.


@pytest.fixture
def archive(cache, monkeypatch):
    """Writes an archive of the official form with three images in a batch; returns (records, rewrite)."""
    records = DRAW.integers(0, 256, (6, 3, 3073), dtype=numpy.uint8)
    records[:, :, 0] = DRAW.integers(0, 10, (6, 3))
    monkeypatch.setattr(cifar, "BATCH_IMAGES", 3)

    def write(files):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as tar:
            for name, data in files.items():
                entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        monkeypatch.setattr(cifar, "ARCHIVE_SHA256", put(cache / cifar.ARCHIVE, file.getvalue()))

    names = [*cifar.BATCHES["train"], *cifar.BATCHES["test"]]
    write({name: part.tobytes() for name, part in zip(names, records, strict=True)})
    return records, write


def test_the_official_archive_of_cifar10_is_read(archive):
    records, _ = archive
    train, test = load_cifar10("train"), load_cifar10("test")
    assert (len(train), len(test)) == (15, 3)
    flat = records[:5].reshape(15, 3073)
    assert train.labels.tolist() == flat[:, 0].tolist()
    for image, channel, row, column in [(0, 0, 0, 0), (4, 1, 2, 31), (14, 2, 31, 5)]:
        at = 1 + 1024 * channel + 32 * row + column
        assert train.pixels[image, channel, row, column] == flat[image, at]
    assert test.pixels.flatten().tolist() == records[5, :, 1:].flatten().tolist()
    assert test.source == "CIFAR-10 test, official, 3 images"


def test_a_damaged_archive_of_cifar10_is_refused(archive, cache, monkeypatch):
    records, write = archive
    batch = records[5].tobytes()
    write({"test_batch.bin": batch[:-1]})
    with pytest.raises(DataError, match=r"test_batch\.bin: 9219 bytes needed for 3 images, got 9218"):
        load_cifar10("test")
    write({"test_batch.bin": b"\x0a" + batch[1:]})
    with pytest.raises(DataError, match=r"test_batch\.bin: classes 0 … 9 needed, got 10"):
        load_cifar10("test")
    write({"readme": b""})
    with pytest.raises(DataError, match=r"tar\.gz: test_batch\.bin needed, got readme"):
        load_cifar10("test")
    monkeypatch.setattr(cifar, "ARCHIVE_SHA256", put(cache / cifar.ARCHIVE, b"no archive"))
    with pytest.raises(DataError, match=r"binary\.tar\.gz: cannot be read as a tar archive"):
        load_cifar10("test")
    monkeypatch.setattr(cifar, "ARCHIVE_SHA256", "0" * 64)
    with pytest.raises(DataError, match=rf"tar\.gz: sha256 .* should be {'0' * 64}, got [0-9a-f]{{64}}"):
        load_cifar10("test")


def test_without_data_cifar10_says_where_it_is(cache):
    where = r"https://www\.cs\.toronto\.edu/~kriz/cifar-10-binary\.tar\.gz: no network"
    with pytest.raises(DataError, match=where):
        load_cifar10("train")
    (cache / "cifar10" / "lossless_index.npz").write_bytes(b"")  # from here on the selection is taken
    with pytest.raises(
        DataError, match=rf"index\.npz: sha256 .* should be {cifar.SELECTED['lossless_index.npz']}"
    ):
        load_cifar10("train")
    with pytest.raises(
        DataError, match=r"jpeg_q75_test\.npz: no such file; it holds images selected from http"
    ):
        load_cifar10("test", "jpeg")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: load_cifar10("heldout", "jpeg"),
            "the jpeg images must be one of train, test, got 'heldout'",
        ),
        (lambda: load_cifar10("train", "png"), "variant must be one of official, lossless, jpeg, got 'png'"),
        (lambda: load_tiny_imagenet("test"), "split must be one of train, val, got 'test'"),
        (lambda: load_tiny_imagenet("val", 0), "size must be at least 1, got 0"),
        (lambda: load_series("weather"), "one of etth1, electricity, exchange_rate, got 'weather'"),
        (lambda: load_text("enwik8"), "one of wikitext2, ptb, got 'enwik8'"),
        (lambda: load_ag_news("val"), "one of train, test, got 'val'"),
        (lambda: load_ag_news("test", 0), "got length=0 and words=10000"),
        (lambda: load_ag_news("test", 8, 2), "got length=8 and words=2"),
    ],
)
def test_unknown_names_and_sizes_are_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_tiny_imagenet("val"), r"val\.npz: no such file; it holds every tenth class of http"),
        (
            lambda: load_series("electricity"),
            r"electricity35\.npz: no such file; it holds the last 840 hours",
        ),
        (lambda: load_series("etth1"), r"ETDataset/1d16c8f.*ETTh1\.csv: no network"),
        (lambda: load_text("wikitext2"), r"train_shuffled\.txt: no such file; .*wikitext-2-v1\.zip"),
        (lambda: load_text("ptb"), r"lstm/master/data/ptb\.train\.txt: no network"),
        (
            lambda: load_ag_news(),
            r"train_30k\.csv: no such file; it holds 30,023 of the 120,000 rows of http",
        ),
    ],
)
def test_a_missing_set_says_where_it_comes_from(cache, call, message):
    with pytest.raises(DataError, match=message):
        call()


# Made data: images.


def test_sheets_are_cut_into_tiles(tmp_path):
    tiles = DRAW.integers(0, 256, (130, 4, 4, 3), dtype=numpy.uint8)
    sheet = numpy.zeros((8, 400, 3), numpy.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, 100)
        sheet[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = tile
    (tmp_path / "sheet").write_bytes(image_bytes(sheet, "WEBP"))
    got = decode_sheet(tmp_path / "sheet", 130, 4)
    assert got.permute(0, 2, 3, 1).tolist() == tiles.tolist()
    with pytest.raises(
        DataError, match=r"201 tiles of 4 × 4 need a sheet of \(12, 400\) pixels, got \(8, 400\)"
    ):
        decode_sheet(tmp_path / "sheet", 201, 4)
    (tmp_path / "sheet").write_bytes(b"RIFF")
    with pytest.raises(DataError, match="sheet: cannot be decoded: cannot identify"):
        decode_sheet(tmp_path / "sheet", 130, 4)


def test_files_are_decoded_and_resized():
    colour = DRAW.integers(0, 256, (4, 4, 3), dtype=numpy.uint8)
    grey = DRAW.integers(0, 256, (4, 4), dtype=numpy.uint8)
    files = [image_bytes(colour, "PNG"), image_bytes(grey, "PNG")]
    blob, offsets = numpy.frombuffer(b"".join(files), numpy.uint8), numpy.cumsum([0, *map(len, files)])
    got = decode_files("made", blob, offsets, 4)
    assert got[0].permute(1, 2, 0).tolist() == colour.tolist()
    assert got[1].tolist() == [grey.tolist()] * 3
    # Shrinking 4 → 2 by the triangle of width ±2: weights 3, 3, 1 of 7 at either edge.
    weights = numpy.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    literal = numpy.einsum("pr, rcx, qc -> xpq", weights, colour, weights)
    half = decode_files("made", blob[: offsets[1]], offsets[:2], 2)
    assert numpy.abs(half[0].numpy() - literal).max() <= 1
    with pytest.raises(
        DataError, match=rf"made: image 1 of 2 \({len(files[1]) - 30} bytes\) cannot be decoded"
    ):
        decode_files("made", blob[:-30], offsets - numpy.array([0, 0, 30]), 4)
    with pytest.raises(DataError, match=rf"rise from 0 to {len(blob)}, .*got \[0\] … \[{len(files[0])}\]"):
        decode_files("made", blob, offsets[:2], 4)


def test_missing_pillow_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r'Pillow, which is not installed; pip install "onematrix\[viz\]"'):
        decode_sheet("any", 1, 4)


def test_the_loader_of_tiny_imagenet_reads_what_lies_there(cache, monkeypatch):
    pixels = numpy.full((64, 64, 3), 90, numpy.uint8)
    data = joined([image_bytes(pixels, "JPEG")] * 3, numpy.array([2, 0, 19], numpy.uint8))
    monkeypatch.setitem(tiny_imagenet.FILES, "val", put(cache / "tiny_imagenet20" / "val.npz", data))
    got = load_tiny_imagenet("val")
    assert got.pixels.shape == (3, 3, 32, 32)
    assert got.pixels.unique().tolist() == [90]
    assert got.labels.tolist() == [2, 0, 19]
    put(cache / "tiny_imagenet20" / "val.npz", data[:-1])
    with pytest.raises(
        DataError, match=rf"val\.npz: sha256 .*{tiny_imagenet.FILES['val']}, got .*put the right"
    ):
        load_tiny_imagenet("val")


def test_arrays_are_read_without_pickles(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(npz(a=numpy.arange(3), b=numpy.zeros((2, 2))))
    b, a = read_arrays(path, ["b", "a"])
    assert (a.tolist(), b.shape) == ([0, 1, 2], (2, 2))
    with pytest.raises(DataError, match=r"a\.npz: arrays a, c needed, got a, b") as caught:
        read_arrays(path, ["a", "c"])
    assert caught.value.missing == ["c"]
    path.write_bytes(npz(a=numpy.array([{}], object)))
    with pytest.raises(DataError, match=r"a\.npz: an \.npz file with a needed.*allow_pickle=False"):
        read_arrays(path, ["a"])
    whole = npz(a=numpy.arange(1000))
    for data in (b"", b"text", whole[: len(whole) // 2], whole[:200] + b"\xff" * 100 + whole[300:]):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"a\.npz: an \.npz file with a needed"):
            read_arrays(path, ["a"])


@pytest.mark.parametrize(
    ("pixels", "labels", "error", "message"),
    [
        (
            torch.zeros(2, 4, 3, 3).byte(),
            torch.zeros(2).long(),
            ShapeError,
            r"\(N, 3, h, w\).*got \(2, 4, 3, 3\)",
        ),
        (torch.zeros(2, 3, 3).byte(), torch.zeros(2).long(), ShapeError, r"ColourImages: .*got \(2, 3, 3\)"),
        (torch.zeros(2, 3, 3, 0).byte(), torch.zeros(2).long(), ShapeError, r"got \(2, 3, 3, 0\)"),
        (
            torch.zeros(2, 3, 3, 3),
            torch.zeros(2).long(),
            DTypeError,
            "ColourImages: pixels must be torch.uint8",
        ),
        (
            torch.zeros(2, 3, 3, 3).byte(),
            torch.zeros(1).long(),
            ShapeError,
            r"\(2,\), got labels of shape \(1,\)",
        ),
    ],
)
def test_colour_images_of_another_form_are_refused(pixels, labels, error, message):
    with pytest.raises(error, match=message):
        ColourImages(pixels, labels)


def test_colour_images_are_selected():
    images = ColourImages(torch.arange(36).byte().view(3, 3, 2, 2), torch.tensor([4, 5, 6]), "made")
    got = images.select(torch.tensor([2, 0]))
    assert (got.labels.tolist(), got.pixels[0, 0, 0, 0].item(), got.source) == ([6, 4], 24, "made")
    assert got.sha256() != images.sha256() == images.select(torch.arange(3)).sha256()
