"""The native networks of the experiments: one with convolutions, one with a recurrence, one with attention."""

import torch
from torch import Tensor, nn

from onematrix.experiments.unified.attention import SelfAttention


def image_network(channels: int, size: int, classes: int, widths: tuple[int, int] = (8, 16)) -> nn.Sequential:
    """Two 3 × 3 convolutions of stride 2 with relu, and a dense layer: (B, channels, size, size) → (B, classes)."""
    first, second = widths
    left = -(-size // 4)  # two strides of 2, rounded up
    return nn.Sequential(
        nn.Conv2d(channels, first, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * left * left, classes),
    )


class AttentionBlock(nn.Module):
    """x + attention(norm x), then x + W₂ gelu(W₁ norm x): (B, n, d) → (B, n, d)."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), SelfAttention(width, heads, causal)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm(x), hidden)
        return x + self.feed(x)


class Mixer(nn.Module):
    """(B, n, d) → (B, n, d): "rnn", "lstm", or "attention" (causal) with learned positions."""

    def __init__(self, kind: str, width: int, length: int, causal: bool = True) -> None:
        super().__init__()
        self.positions = None
        if kind == "attention":
            self.positions = nn.Parameter(0.02 * torch.randn(length, width))
            self.layer: nn.Module = AttentionBlock(width, 2, causal)
        else:
            self.layer = {"rnn": nn.RNN, "lstm": nn.LSTM}[kind](width, width, batch_first=True)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        if self.positions is None:
            return self.layer(x)[0]
        return self.layer(x + self.positions, hidden)


class Forecaster(nn.Module):
    """The next `horizon` rows from the last state of a mixer, added to the last row: (B, n, c) → (B, horizon, c)."""

    def __init__(self, kind: str, channels: int, length: int, horizon: int, width: int) -> None:
        super().__init__()
        self.grid = (horizon, channels)
        self.enter = nn.Linear(channels, width)
        self.mixer = Mixer(kind, width, length)
        self.leave = nn.Linear(width, horizon * channels)

    def forward(self, x: Tensor) -> Tensor:
        state = self.mixer(self.enter(x))[:, -1]
        return x[:, -1:] + self.leave(state).unflatten(1, self.grid)


class LanguageModel(nn.Module):
    """Scores of the next word after each word: (B, n) → (B, n, words)."""

    def __init__(self, kind: str, words: int, length: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.mixer = Mixer(kind, width, length)
        self.leave = nn.Linear(width, words)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.leave(self.mixer(self.embedding(tokens)))


class TextClassifier(nn.Module):
    """Class scores from the mean over the words, read in both directions: (B, n) → (B, c).

    Token 0 is padding, except in the first place, so that an empty text is the padding itself.
    """

    def __init__(self, words: int, length: int, width: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.mixer = Mixer("attention", width, length, causal=False)
        self.leave = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = (tokens == 0).index_fill(1, torch.zeros(1, dtype=torch.int64), False)
        kept = (~hidden)[:, :, None]
        x = self.mixer(self.embedding(tokens), hidden) * kept
        return self.leave(x.sum(1) / kept.sum(1))
