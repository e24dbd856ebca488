"""Labelled grey images: the source every task of this package is made from."""

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
        _check_dtype("pixels", self.pixels, torch.uint8)
        _check_dtype("labels", self.labels, torch.int64)
        if self.pixels.ndim != 3 or 0 in self.pixels.shape:
            came = tuple(self.pixels.shape)
            raise ShapeError(f"Images: pixels must be (N, h, w), none of them 0, got {came}", got=came)
        if self.labels.shape != self.pixels.shape[:1]:
            needed, got = (len(self.pixels),), tuple(self.labels.shape)
            raise ShapeError(
                f"Images: one label per image needed, {needed}, got labels of shape {got}",
                needed=needed,
                got=got,
            )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "Images":
        """The images at `indices` (int64 or bool), in that order."""
        return Images(self.pixels[indices], self.labels[indices])

    def sha256(self) -> str:
        """Hash of shape, pixels and labels."""
        digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        for tensor in (self.pixels, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def _check_dtype(name: str, tensor: Tensor, needed: torch.dtype) -> None:
    if tensor.dtype != needed:
        raise DTypeError(
            f"Images: {name} must be {needed}, got {tensor.dtype}; convert with .to({needed})",
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
