"""AG News: titles and descriptions of news in four classes; here 30,023 training and all 7,600 test texts.

Source: X. Zhang, J. Zhao & Y. LeCun, "Character-level convolutional networks for text classification",
NeurIPS 2015. For non-commercial use only.
"""

import csv
import html
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from onematrix.datasets.content import read_lines
from onematrix.datasets.download import fetch, kept
from onematrix.errors import DataError

CLASSES = ("World", "Sports", "Business", "Sci/Tech")
PADDING, UNKNOWN = "<pad>", "<unk>"
REPOSITORY = (
    "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/555590db4219b1243abb1918effd6a7425a2d75f/"
    "data/ag_news_csv/"
)
TEST_SHA256 = "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699"
TRAIN_SHA256 = "5387de6b1afca453799be04b03d00358eda8333c868570e7d135b36c5a900c9e"
OFFICIAL = f"it holds 30,023 of the 120,000 rows of {REPOSITORY}train.csv"

ENTITY = re.compile(r"\s?&?#(\d+);")
TAG = re.compile(r"<[^<>]*>")
WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


@dataclass(frozen=True, eq=False)
class News:
    """tokens int64 (N, length), 0 = padding at the end, 1 = unknown; labels int64 (N,), 0 … 3."""

    tokens: Tensor
    labels: Tensor
    vocabulary: list[str]


def load_ag_news(split: str = "train", length: int = 64, words: int = 10_000) -> News:
    """The "train" or "test" texts, title and description, as the numbers of their first `length` words.

    The vocabulary has at most `words` entries: <pad>, <unk>, and the most frequent words of the training
    texts (ties: first appearance). The training texts are a quarter of the official ones. Raises DataError
    for another split, length < 1 or words < 3, as `fetch`, and for a damaged file.
    """
    if split not in ("train", "test"):
        raise DataError(f"load_ag_news: split must be one of train, test, got {split!r}", split=split)
    if length < 1 or words < 3:
        raise DataError(
            f"load_ag_news: length ≥ 1 and words ≥ 3 needed, got length={length} and words={words}",
            length=length,
            words=words,
        )
    texts, labels = read_news(kept("ag_news/train_30k.csv", TRAIN_SHA256, OFFICIAL))
    vocabulary = frequent_words(texts, words)
    if split == "test":
        texts, labels = read_news(fetch(f"{REPOSITORY}test.csv", TEST_SHA256, "ag_news/test.csv"))
    return News(encode(texts, vocabulary, length), torch.tensor(labels), vocabulary)


def read_news(path: str | Path) -> tuple[list[list[str]], list[int]]:
    """(words of each text, classes 0 … 3) of a file of rows "class 1 … 4","title","description".

    Raises DataError naming the row when it has not these three fields.
    """
    texts, labels = [], []
    for number, row in enumerate(csv.reader(read_lines(path)), start=1):
        if len(row) != 3 or row[0] not in ("1", "2", "3", "4"):
            raise DataError(
                f"{path}: row {number}: class 1 … 4, title and description needed, got {len(row)} fields "
                f"starting with {row[:1]}",
                row=number,
                got=len(row),
            )
        labels.append(int(row[0]) - 1)
        texts.append(split_words(f"{row[1]} {row[2]}"))
    return texts, labels


def split_words(text: str) -> list[str]:
    r"""Words and numbers in small letters; entities are resolved, tags and backslashes (line feeds) left out.

    >>> split_words(r"Oil &lt;b&gt;up&lt;/b&gt; 5%: America #39;s bill\rises")
    ['oil', 'up', '5', "america's", 'bill', 'rises']
    """
    text = html.unescape(html.unescape(ENTITY.sub(r"&#\1;", text)))
    return WORD.findall(TAG.sub(" ", text).replace("\\", " ").lower())


def frequent_words(texts: list[list[str]], words: int) -> list[str]:
    """<pad>, <unk> and the words − 2 most frequent words, most frequent first; ties: first appearance."""
    counts = Counter(word for text in texts for word in text)
    return [PADDING, UNKNOWN, *(word for word, _ in counts.most_common(words - 2))]


def encode(texts: list[list[str]], vocabulary: list[str], length: int) -> Tensor:
    """Numbers of the first `length` words of each text, int64 (N, length); 0 behind its end, 1 unknown."""
    numbers = {word: number for number, word in enumerate(vocabulary)}
    tokens = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in zip(tokens.numpy(), texts, strict=True):
        row[: min(length, len(text))] = [numbers.get(word, 1) for word in text[:length]]
    return tokens
