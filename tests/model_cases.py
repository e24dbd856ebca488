"""Models that the tests of views and drawings share."""

import torch
from torch import nn

import onematrix as om


class Block(nn.Module):
    def __init__(self, width=8, slope=None):
        super().__init__()
        self.inner = nn.Linear(width, 2 * width)
        self.act = nn.ReLU() if slope is None else nn.LeakyReLU(slope)
        self.outer = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.outer(self.act(self.inner(x)))


class Layered(nn.Module):
    """A stem, layers one after the other, a head; slopes: per layer, None for relu."""

    def __init__(self, slopes=(None,) * 5, width=8):
        super().__init__()
        self.stem = nn.Linear(3, width)
        self.layers = nn.ModuleList(Block(width, slope) for slope in slopes)
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def layered(slopes=(None,) * 5):
    return om.convert(Layered(slopes), torch.zeros(2, 3))


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.zeros(2, 8)


def cnn():
    layers = [
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5, groups=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 20), nn.ReLU(), nn.Linear(20, 10),
    ]  # fmt: skip
    return nn.Sequential(*layers), torch.zeros(2, 1, 28, 28)


def encoder_layer():
    return nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), torch.zeros(2, 6, 16)
