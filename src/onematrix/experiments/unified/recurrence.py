"""Recurrences as block lower triangular matrices, solved tick after tick (level by level)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onematrix.experiments.unified.patterns import tiled
from onematrix.programs.linear import Linear
from onematrix.structures.block_sparse import BlockSparse
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity
from onematrix.structures.per_axis import PerAxis

State = tuple[Tensor, ...]


def tanh_cell(a: Tensor, state: State) -> State:
    """h = tanh(a)."""
    return (a.tanh(),)


def lstm_cell(a: Tensor, state: State) -> State:
    """c = σ(f) c₋ + σ(i) tanh(g), h = σ(o) tanh(c); a = (i, f, g, o) as torch orders them."""
    i, f, g, o = a.chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


CELLS = {nn.RNN: (tanh_cell, 1), nn.LSTM: (lstm_cell, 2)}  # cell, and parts of its state


class RecurrenceMatrix(nn.Module):
    """h = f(N h + M x + b) over all ticks at once: N strictly block lower triangular, M block lower triangular.

    x: (B, T, inputs) → (h (B, T, hidden), None), from state zero, as nn.RNN and nn.LSTM of one layer with
    batch_first give. Block row t of N is applied at level t, where all it reads is final.
    """

    def __init__(self, native: nn.RNN | nn.LSTM, ticks: int) -> None:
        super().__init__()
        self.ticks, self.hidden = ticks, native.hidden_size
        self.cell, self.parts = CELLS[type(native)]

    def drive(self, x: Tensor) -> Tensor:
        """M x + b: (B, T, gates)."""
        raise NotImplementedError

    def rows(self) -> Sequence[Tensor]:
        """Block rows 2 … T of N, each (gates, s hidden) for the s ticks before it that it reads."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        drive = self.drive(x).unbind(1)
        state = self.cell(drive[0], (x.new_zeros(()),) * self.parts)
        before = [state[0]]
        for a, row in zip(drive[1:], self.rows(), strict=True):
            read = before[-1] if row.shape[1] == self.hidden else torch.cat(before, 1)
            state = self.cell(a + read @ row.T, state)
            before.append(state[0])
        return torch.stack(before, 1), None


class TiedRecurrence(RecurrenceMatrix):
    """N = Z ⊗ W_hh, M = I ⊗ W_ih, b = 1 ⊗ (b_ih + b_hh): the parameters of the native layer."""

    def __init__(self, native: nn.RNN | nn.LSTM, ticks: int) -> None:
        super().__init__(native, ticks)
        for name, parameter in native.named_parameters():
            self.register_parameter(name, parameter)

    def drive(self, x: Tensor) -> Tensor:
        m = PerAxis((Identity(self.ticks), Dense(self.weight_ih_l0)))
        y = m.matmul(x.flatten(1)).unflatten(1, (self.ticks, -1))
        return y + (self.bias_ih_l0 + self.bias_hh_l0)

    def rows(self) -> Sequence[Tensor]:
        return [self.weight_hh_l0] * (self.ticks - 1)


class FreeRecurrence(RecurrenceMatrix):
    """Every entry of N, M and b is its own parameter, started from the native layer.

    regime "untied": the tiles of Z ⊗ W and I ⊗ W, so weights of their own at each tick; "triangular": all tiles
    below the diagonal (N) and on it (M), zero where the native layer has none.
    """

    def __init__(self, native: nn.RNN | nn.LSTM, ticks: int, regime: str) -> None:
        super().__init__(native, ticks)
        self.banded = regime == "untied"
        bias = (native.bias_ih_l0 + native.bias_hh_l0).detach().repeat(ticks)
        inner, outer = ("diagonal", "delayed") if self.banded else ("lower", "strictly lower")
        self.inputs = Linear(tiled(native.weight_ih_l0, ticks, inner), bias)
        self.memory = Linear(tiled(native.weight_hh_l0, ticks, outer))

    def drive(self, x: Tensor) -> Tensor:
        return self.inputs(x.flatten(1)).unflatten(1, (self.ticks, -1))

    def rows(self) -> Sequence[Tensor]:
        n: BlockSparse = self.memory.structure
        if self.banded:
            return n.tiles.unbind()
        # Split once: a slice per tick would make each of their gradients as large as all tiles.
        by_row = n.tiles.split(list(range(1, self.ticks)))
        return [tiles.transpose(0, 1).flatten(1) for tiles in by_row]
