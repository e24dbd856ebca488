"""CIFAR-10: colour images of 32 × 32 in ten classes (50,000 training and 10,000 test images).

Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009, chapter 3.
"""

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor

from onematrix.datasets.arrays import read_arrays
from onematrix.datasets.decoding import decode_files, decode_sheet
from onematrix.datasets.download import cache_folder, fetch, kept
from onematrix.datasets.images import ColourImages
from onematrix.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
OFFICIAL = ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",)
ARCHIVE = "cifar10/cifar-10-binary.tar.gz"
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"  # of the .tar.gz itself
BATCHES = {"train": tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test": ("test_batch.bin",)}
RECORD_BYTES = 1 + 3 * 32 * 32
BATCH_IMAGES = 10_000

# sha256 of the files of the selections: the first 2,000 training images of each class and the first 1,000
# test images without loss, and all images as JPEG of quality 75.
SELECTED = {
    "lossless_index.npz": "850b03c486b31a86fef517ffbc92c31d0caf7ed8e2a31fff6f9b14f304c53241",
    "lossless_train20k_0.webp": "0c540445580e2b4751a4fb5e79175f3eced765d47d186c46cf6aaa7a076c47d9",
    "lossless_train20k_1.webp": "76e2540c71c93d26ed9463cf5dd2ce47422d3d1e65a021d7bc6a6a4b5bdfc7af",
    "lossless_test1k.webp": "5ab36e8e3676eefd105ec74c5e6d28425b724c66fe5a389e90524da15811b027",
    "lossless_heldout5k.webp": "daeefae293cc0ce0e34932d85501a5ad4e36c112af59cf5fc767f7df78e195eb",
    "jpeg_q75_train.npz": "029d5c14d8b67149dd3111f6a6702a409c71d652ff16bc081b34a5704f346c08",
    "jpeg_q75_test.npz": "30b34a64fb1c0ba121f9840855072cabe99cd9071e8bb35f5ca29e79ed37a1aa",
}
SHEETS = {
    "train": ("lossless_train20k_0.webp", "lossless_train20k_1.webp"),
    "test": ("lossless_test1k.webp",),
    "heldout": ("lossless_heldout5k.webp",),
}
SHEET_IMAGES = 10_000  # at most in one sheet
SPLITS = {"official": ("train", "test"), "lossless": ("train", "test", "heldout"), "jpeg": ("train", "test")}


def load_cifar10(
    split: str = "train", variant: str | None = None, mirrors: Sequence[str] = OFFICIAL
) -> ColourImages:
    """The "train" or "test" images, pixels (N, 3, 32, 32), and classes 0 … 9 (`CLASSES`).

    - variant="official": all 50,000 or 10,000, from the official archive (binary version, 170 MB), which is
      downloaded at the first call;
    - "lossless": a selection of 20,000 or 1,000 of them, bit-exact; "heldout" is a third split of 5,000 of
      the training images, in neither;
    - "jpeg": all of them after JPEG of quality 75 (median 30.5 dB), not comparable with published results;
    - None: "official" where the archive lies in `cache_folder()/cifar10`, else "lossless" where its index
      does, else "official".

    The images' `source` names what was read. Raises DataError for another split or variant, as `fetch`, and
    for a file that is missing, truncated or of the wrong checksum.
    """
    variant = variant or _lying_variant()
    if variant not in SPLITS:
        raise DataError(
            f"load_cifar10: variant must be one of {', '.join(SPLITS)}, got {variant!r}", variant=variant
        )
    if split not in SPLITS[variant]:
        raise DataError(
            f"load_cifar10: split of the {variant} images must be one of {', '.join(SPLITS[variant])}, "
            f"got {split!r}",
            split=split,
        )
    if variant == "official":
        return _official(split, mirrors)
    return _lossless(split) if variant == "lossless" else _jpeg(split)


def _lying_variant() -> str:
    folder = cache_folder()
    selected = (folder / "cifar10" / "lossless_index.npz").exists() and not (folder / ARCHIVE).exists()
    return "lossless" if selected else "official"


def _official(split: str, mirrors: Sequence[str]) -> ColourImages:
    path = fetch(mirrors, ARCHIVE_SHA256, ARCHIVE, unpacked=False)
    parts = [read_records(path, name, data) for name, data in _members(path, BATCHES[split])]
    pixels, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return ColourImages(pixels, labels, f"CIFAR-10 {split}, official, {len(labels)} images")


def _members(path: Path, names: Sequence[str]) -> list[tuple[str, bytes]]:
    """(name, content) of the named files in an archive. Raises DataError for a missing one or no archive."""
    try:
        with tarfile.open(path) as archive:
            found = {Path(m.name).name: m for m in archive.getmembers() if m.isfile()}
            if missing := [name for name in names if name not in found]:
                raise DataError(
                    f"{path}: {', '.join(missing)} needed, got {', '.join(found) or 'nothing'}",
                    path=str(path),
                    missing=missing,
                )
            return [(name, archive.extractfile(found[name]).read()) for name in names]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a tar archive ({error})", path=str(path)) from error


def read_records(path: str | Path, name: str, data: bytes) -> tuple[Tensor, Tensor]:
    """(pixels (10000, 3, 32, 32), labels (10000,)) of a batch: per image the class, then red, green, blue.

    Raises DataError when it is cut off or too long (bytes needed, got), or a class is above 9.
    """
    needed = RECORD_BYTES * BATCH_IMAGES
    if len(data) != needed:
        raise DataError(
            f"{path}: {name}: {needed} bytes needed for {BATCH_IMAGES} images, got {len(data)}",
            needed=needed,
            got=len(data),
        )
    records = torch.from_numpy(numpy.frombuffer(data, numpy.uint8).reshape(-1, RECORD_BYTES).copy())
    labels = records[:, 0].to(torch.int64)
    if labels.max() > 9:
        raise DataError(f"{path}: {name}: classes 0 … 9 needed, got {labels.max()}", got=int(labels.max()))
    return records[:, 1:].reshape(-1, 3, 32, 32).contiguous(), labels


def _selected(name: str) -> Path:
    official = f"it holds images selected from {OFFICIAL[0]}, which variant='official' downloads"
    return kept(f"cifar10/{name}", SELECTED[name], official)


def _lossless(split: str) -> ColourImages:
    (classes,) = read_arrays(_selected("lossless_index.npz"), [f"{split}_labels"])
    labels = torch.from_numpy(classes).to(torch.int64)
    counts = [len(part) for part in labels.split(SHEET_IMAGES)]
    sheets = [
        decode_sheet(_selected(name), count, 32) for name, count in zip(SHEETS[split], counts, strict=True)
    ]
    whole = "the first 2,000 of each class" if split == "train" else "a part of the official images"
    return ColourImages(
        torch.cat(sheets), labels, f"CIFAR-10 {split}, lossless, {len(labels)} images: {whole}"
    )


def _jpeg(split: str) -> ColourImages:
    path = _selected(f"jpeg_q75_{split}.npz")
    blob, offsets, labels = read_arrays(path, ["blob", "offsets", "labels"])
    source = f"CIFAR-10 {split}, all {len(labels)} images after JPEG of quality 75 (with loss)"
    return ColourImages(
        decode_files(path, blob, offsets, 32), torch.from_numpy(labels).to(torch.int64), source
    )
