"""The data sets of the experiments as training and test examples, with the native network for each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onematrix.datasets.cifar import load_cifar10
from onematrix.datasets.digits import split_digits
from onematrix.datasets.images import ColourImages, Images
from onematrix.datasets.mnist import load_mnist
from onematrix.datasets.news import load_ag_news
from onematrix.datasets.series import load_series, windows
from onematrix.datasets.text import load_text
from onematrix.datasets.tiny_imagenet import load_tiny_imagenet
from onematrix.experiments.unified.networks import (
    Forecaster,
    LanguageModel,
    TextClassifier,
    image_network,
)
from onematrix.training.data import Examples

QUICK = 128  # training and test examples of a quick run


@dataclass(frozen=True, eq=False)
class Sets:
    """Training and test examples, how to build the native network for them, and what they are in words."""

    train: Examples
    test: Examples
    build: Callable[[], nn.Module]
    note: str

    @property
    def example(self) -> Tensor:
        """Inputs of two examples, from which a network's sizes are read."""
        return self.train.x[:2]


def digits(quick: bool) -> Sets:
    """Scikit-learn's digits, 8 × 8."""
    return _images(*split_digits(), 1400, 400, quick, "digits 8 × 8")


def mnist(quick: bool) -> Sets:
    """MNIST, 6,000 of the training and 2,000 of the test images."""
    return _images(load_mnist("train"), load_mnist("test"), 6000, 2000, quick, "MNIST 28 × 28")


def cifar10(quick: bool) -> Sets:
    """CIFAR-10, 8,000 of the training images and up to 2,000 of the test images."""
    train, test = load_cifar10("train"), load_cifar10("test")
    return _images(train, test, 8000, 2000, quick, train.source)


def tiny_imagenet(quick: bool) -> Sets:
    """20 classes of Tiny ImageNet at 32 × 32."""
    train, test = load_tiny_imagenet("train", 32), load_tiny_imagenet("val", 32)
    return _images(train, test, 8000, 1000, quick, train.source)


def _images(
    train: Images | ColourImages,
    test: Images | ColourImages,
    most: int,
    most_test: int,
    quick: bool,
    note: str,
) -> Sets:
    """Pixels to mean 0 and variance 1 per colour over the chosen training images."""
    train, test = (
        part.select(_choose(len(part), QUICK if quick else n))
        for part, n in ((train, most), (test, most_test))
    )
    levels = [p.pixels.float().reshape(len(p), -1, *p.pixels.shape[-2:]) for p in (train, test)]
    mean, deviation = levels[0].mean((0, 2, 3), keepdim=True), levels[0].std((0, 2, 3), keepdim=True)
    x, y = ((part - mean) / deviation for part in levels)
    classes, (channels, size) = int(train.labels.max()) + 1, x.shape[1:3]
    said = f"{note}; {len(x):,} training and {len(y):,} test images of them"
    return Sets(
        Examples(x, train.labels),
        Examples(y, test.labels),
        lambda: image_network(channels, size, classes),
        said,
    )


def _choose(count: int, most: int) -> Tensor:
    """The same random choice of at most so many of `count` examples every time."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]


def series(name: str, kind: str, length: int, horizon: int, width: int) -> Callable[[bool], Sets]:
    """Loader of a series: from `length` rows the next `horizon`, all channels, in units of the training deviation."""

    def load(quick: bool) -> Sets:
        found = load_series(name)
        start, stop = found.splits["train"]
        rows = found.values[start:stop]
        values = (found.values - rows.mean(0)) / rows.std(0).clamp(min=1e-6)
        first, last = found.splits["test"]
        spans = ((start, stop), (first - length, last))
        train, test = (
            _windows(values, length, horizon, span, most, quick)
            for span, most in zip(spans, (4000, 1500), strict=True)
        )
        channels = len(found.names)
        note = (
            f"{name}: {channels} channels, {horizon} rows from the {length} before them; {len(train):,} "
            f"training and {len(test):,} test windows"
        )
        return Sets(train, test, lambda: Forecaster(kind, channels, length, horizon, width), note)

    return load


def _windows(
    values: Tensor, length: int, horizon: int, span: tuple[int, int], most: int, quick: bool
) -> Examples:
    """At most so many windows, evenly spread over the rows of the span."""
    x, target = windows(values, length, horizon, *span)
    apart = -(-len(x) // (QUICK if quick else most))
    return Examples(x[::apart].contiguous(), target[::apart].contiguous())


def text(name: str, kind: str, words: int, length: int, width: int) -> Callable[[bool], Sets]:
    """Loader of a text cut into pieces of `length` words, each read from an empty state."""

    def load(quick: bool) -> Sets:
        corpus = load_text(name)
        kept = min(words, len(corpus.vocabulary))
        order = torch.bincount(corpus.train, minlength=len(corpus.vocabulary)).argsort(
            descending=True, stable=True
        )
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)).clamp(max=kept - 1))
        train, test = (
            _pieces(rank[part[: (QUICK if quick else most) * length + 1]], length)
            for part, most in ((corpus.train, 3000), (corpus.test, 500))
        )
        note = (
            f"{name}: the {kept - 1:,} most frequent words, all others as one; {len(train):,} training and "
            f"{len(test):,} test pieces of {length} words, each from an empty state"
        )
        return Sets(train, test, lambda: LanguageModel(kind, kept, length, width), note)

    return load


def _pieces(tokens: Tensor, length: int) -> Examples:
    """Words and, for each, the word after it: both (N, length)."""
    count = (len(tokens) - 1) // length * length
    return Examples(tokens[:count].view(-1, length), tokens[1 : count + 1].view(-1, length))


def ag_news(quick: bool, length: int = 32, words: int = 4000) -> Sets:
    """AG News: the class of a text from its first words."""
    found = load_ag_news("train", length, words), load_ag_news("test", length, words)
    train, test = (
        Examples(part.tokens[chosen], part.labels[chosen])
        for part, most in zip(found, (8000, 2000), strict=True)
        for chosen in [_choose(len(part.labels), QUICK if quick else most)]
    )
    kept = len(found[0].vocabulary)
    note = (
        f"AG News: {len(train):,} training and {len(test):,} test texts, their first {length} words, "
        f"{kept:,} words known"
    )
    return Sets(train, test, lambda: TextClassifier(kept, length, 32, 4), note)
