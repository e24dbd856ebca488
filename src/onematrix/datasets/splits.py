"""Random Anomaly with training and test sequences made from different source images."""

from onematrix.datasets.digits import split_digits
from onematrix.datasets.images import Images
from onematrix.datasets.mnist import load_mnist
from onematrix.datasets.random_anomaly import RandomAnomaly
from onematrix.errors import DataError

SOURCES = ("digits", "mnist")


def load_source(source: str) -> tuple[Images, Images]:
    """(train, test) images of "digits" (split by class) or "mnist" (official split: 60,000, 10,000).

    Raises DataError for another name.
    """
    if source == "digits":
        return split_digits()
    if source == "mnist":
        return load_mnist("train"), load_mnist("test")
    raise DataError(f"source must be one of {', '.join(SOURCES)}, got {source!r}", source=source)


def random_anomaly_splits(
    source: str = "digits",
    train: int = 4000,
    test: int = 1000,
    profile: str = "ra8",
    size: int = 50,
    seed: int = 0,
    length: int = 10,
    blank: bool = False,
    dequantise: bool = False,
) -> tuple[RandomAnomaly, RandomAnomaly]:
    """(train, test) of `train` and `test` sequences; no source image is in both.

    The images of a source are split the same way whatever `seed`, so test images stay test images over
    repeats. The two sets draw from streams of their own, seeds 2·seed and 2·seed + 1.
    """
    train_images, test_images = load_source(source)
    options = (profile, size, length)
    return (
        RandomAnomaly(train_images, train, *options, 2 * seed, blank, dequantise),
        RandomAnomaly(test_images, test, *options, 2 * seed + 1, blank, dequantise),
    )
