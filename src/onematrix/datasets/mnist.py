"""MNIST: 60,000 training and 10,000 test images of 28 × 28, in the official order.

Source: Y. LeCun, L. Bottou, Y. Bengio & P. Haffner, Proc. IEEE 86(11), 1998.
"""

from collections.abc import Sequence

import torch

from onematrix.datasets.download import fetch
from onematrix.datasets.idx import read_idx
from onematrix.datasets.images import Images
from onematrix.errors import DataError

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")

# sha256 of the unpacked content: a .gz packed again has other bytes, its content has not.
FILES = {
    "train": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    },
    "test": {
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
}


def load_mnist(split: str = "train", mirrors: Sequence[str] = MIRRORS) -> Images:
    """The "train" or "test" images (N, 28, 28) and classes 0 … 9, from `cache_folder()/mnist` or a mirror.

    11 MB are downloaded at the first call. Raises DataError for another split, and as `fetch` and `read_idx`.
    """
    if split not in FILES:
        raise DataError(f"load_mnist: split must be one of {', '.join(FILES)}, got {split!r}", split=split)
    pixels, labels = (
        read_idx(fetch([f"{mirror}{name}.gz" for mirror in mirrors], sha256, f"mnist/{name}.gz"))
        for name, sha256 in FILES[split].items()
    )
    return Images(pixels, labels.to(torch.int64))
