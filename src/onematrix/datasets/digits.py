"""Scikit-learn's handwritten digits: 1,797 real images of 8 × 8, part of that package, no download.

Source: E. Alpaydin & C. Kaynak, UCI "Optical Recognition of Handwritten Digits", 1998 (its test set).
"""

import torch

from onematrix.datasets.images import Images, split_by_class
from onematrix.errors import DataError


def load_digits() -> Images:
    """All 1,797 images; the 17 grey values 0 … 16 become whole levels round(255 v / 16) of 0 … 255.

    Raises DataError when scikit-learn is not installed.

    >>> load_digits().pixels.shape
    torch.Size([1797, 8, 8])
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise DataError(
            'the digits come with scikit-learn, which is not installed; pip install "onematrix[data]"',
            package="scikit-learn",
        ) from error
    digits = load()
    levels = torch.from_numpy(digits.images).mul(255 / 16).round()
    return Images(levels.to(torch.uint8), torch.from_numpy(digits.target).to(torch.int64))


def split_digits(every: int = 5, seed: int = 0) -> tuple[Images, Images]:
    """(train, test): disjoint and balanced by class, one image in `every` is test (see `split_by_class`)."""
    return split_by_class(load_digits(), every, seed)
