"""Tiny ImageNet: colour images of 64 × 64; here 20 of its 200 classes, every tenth of the sorted names.

Source: Stanford course CS231n, 2015; a selection from ImageNet (J. Deng et al., CVPR 2009). For
non-commercial research only.
"""

import torch

from onematrix.datasets.arrays import read_arrays
from onematrix.datasets.content import read_lines
from onematrix.datasets.decoding import decode_files
from onematrix.datasets.download import kept
from onematrix.datasets.images import ColourImages
from onematrix.errors import DataError

OFFICIAL = (
    "it holds every tenth class of http://cs231n.stanford.edu/tiny-imagenet-200.zip as arrays "
    "blob (the JPEG files one after the other), offsets (N + 1) and labels"
)
FILES = {
    "train": "b7eeb000996714525890f05c8e03f910c85c912708ec08a1abc44074d50c056e",
    "val": "e65374f24ca0d159fde38e3a399a7f720ee3276882d328290276f01a24df5889",
}
CLASSES_SHA256 = "415ad076e9a786fd1c6e95e698b9bb7bc00c7cd8e5b5e189fd16f58f3d74a5b3"


def load_tiny_imagenet(split: str = "train", size: int = 32) -> ColourImages:
    """The "train" (10,000) or "val" (1,000) images, pixels (N, 3, size, size), and classes 0 … 19.

    The files in `cache_folder()/tiny_imagenet20` keep the original JPEG bytes of 64 × 64; other sizes are
    resized (`decode_files`). Accuracies are not comparable with those on 200 classes. Raises DataError for
    another split, a size < 1, and a file that is missing, damaged or of the wrong checksum.
    """
    if split not in FILES:
        raise DataError(
            f"load_tiny_imagenet: split must be one of {', '.join(FILES)}, got {split!r}", split=split
        )
    if size < 1:
        raise DataError(f"load_tiny_imagenet: size must be at least 1, got {size}", size=size)
    path = kept(f"tiny_imagenet20/{split}.npz", FILES[split], OFFICIAL)
    blob, offsets, labels = read_arrays(path, ["blob", "offsets", "labels"])
    source = f"Tiny ImageNet {split}, 20 of 200 classes, {len(labels)} images at {size} × {size}"
    return ColourImages(
        decode_files(path, blob, offsets, size), torch.from_numpy(labels).to(torch.int64), source
    )


def tiny_imagenet_classes() -> list[str]:
    """The words of the 20 classes, in their order. Raises DataError as `load_tiny_imagenet`."""
    path = kept("tiny_imagenet20/classes.tsv", CLASSES_SHA256, OFFICIAL)
    return [line.split("\t")[2] for line in read_lines(path)]
