"""Labelled images, grey or in colour: the source every task on images is made from."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from onematrix.datasets.randomness import fold, seed_key
from onematrix.errors import DTypeError, ShapeError


@dataclass(frozen=True, eq=False)
class Images:
    """Grey images with one class each: pixels uint8 (N, h, w), 0 = background; labels int64 (N,).

    Raises DTypeError or ShapeError when the two are not of that form.

    >>> len(Images(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0])))
    3
    """

    pixels: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        _check_form(self, ("N", "h", "w"))

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "Images":
        """The images at `indices` (int64 or bool), in that order."""
        return Images(self.pixels[indices], self.labels[indices])

    def sha256(self) -> str:
        """Hash of shape, pixels and labels."""
        return _sha256(self.pixels, self.labels)


@dataclass(frozen=True, eq=False)
class ColourImages:
    """Red, green, blue images with one class each: pixels uint8 (N, 3, h, w); labels int64 (N,).

    `source` says in words which images these are. Raises DTypeError or ShapeError as `Images`.

    >>> len(ColourImages(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])))
    2
    """

    pixels: Tensor
    labels: Tensor
    source: str = ""

    def __post_init__(self) -> None:
        _check_form(self, ("N", "3", "h", "w"))

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "ColourImages":
        """The images at `indices` (int64 or bool), in that order."""
        return ColourImages(self.pixels[indices], self.labels[indices], self.source)

    def sha256(self) -> str:
        """Hash of shape, pixels and labels."""
        return _sha256(self.pixels, self.labels)


def _sha256(pixels: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    for tensor in (pixels, labels):
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _check_form(images: Images | ColourImages, sizes: tuple[str, ...]) -> None:
    who = type(images).__name__
    _check_dtype(who, "pixels", images.pixels, torch.uint8)
    _check_dtype(who, "labels", images.labels, torch.int64)
    came = tuple(images.pixels.shape)
    fits = len(came) == len(sizes) and all(str(n) == s for n, s in zip(came, sizes, strict=True) if s == "3")
    if not fits or 0 in came:
        raise ShapeError(
            f"{who}: pixels must be ({', '.join(sizes)}), none of them 0, got {came}",
            got=came,
        )
    if images.labels.shape != came[:1]:
        got = tuple(images.labels.shape)
        raise ShapeError(
            f"{who}: one label per image needed, {came[:1]}, got labels of shape {got}",
            needed=came[:1],
            got=got,
        )


def _check_dtype(who: str, name: str, tensor: Tensor, needed: torch.dtype) -> None:
    if tensor.dtype != needed:
        raise DTypeError(
            f"{who}: {name} must be {needed}, got {tensor.dtype}; convert with .to({needed})",
            needed=needed,
            got=tensor.dtype,
        )


def resize(pixels: Tensor, size: int) -> Tensor:
    """Bilinear resize of uint8 (n, h, w) to (n, size, size): float32 whole levels 0 … 255.

    Half-pixel centres; the triangle filter widens with the scale where it shrinks. This is Pillow's
    BILINEAR except that Pillow also rounds to 8 bits between its two passes (difference ≤ 1 level).
    """
    levels = pixels.to(torch.float32)
    if levels.shape[1:] == (size, size):
        return levels
    resized = interpolate(levels[:, None], (size, size), mode="bilinear", antialias=True)
    return resized[:, 0].round_()


def split_by_class(images: Images, every: int = 5, seed: int = 0) -> tuple[Images, Images]:
    """(train, test): in a random order of each class, images 0, every, 2·every, … are test, the rest train.

    Disjoint, and balanced: of a class with c images ⌈c / every⌉ are test. The order depends on the seed and
    an image's index only, so the split is the same everywhere. Raises ShapeError when every < 2 or when a
    class has a single image.
    """
    counts = torch.unique(images.labels, return_counts=True)[1]
    if every < 2 or counts.min() < 2:
        raise ShapeError(
            f"split_by_class: every ≥ 2 and ≥ 2 images of each class needed, "
            f"got every={every} and {int(counts.min())} in the smallest class",
            every=every,
            smallest=int(counts.min()),
        )
    order = torch.argsort(fold(seed_key(seed), torch.arange(len(images))))
    order = order[torch.argsort(images.labels.cpu()[order], stable=True)]  # by class, random inside it
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(images)) - starts.cpu().repeat_interleave(counts.cpu())
    test = torch.zeros(len(images), dtype=torch.bool)
    test[order[rank % every == 0]] = True
    test = test.to(images.labels.device)
    return images.select(~test), images.select(test)
