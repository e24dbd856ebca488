"""Products of a value of every tick that a recurrence alone reads: without gradients, of a few ticks at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onematrix.kernels.merged_product import grouped, merged_product
from onematrix.structures.ordinary import is_ordinary

LEAST = 2**18  # numbers of all products from which on they are made in pieces
MOST = 2**21  # numbers of the products of one piece
PIECES = 4  # at least
ROWS = 128  # of one piece at least: fewer would take longer to read the weights than to multiply


@dataclass(frozen=True)
class FedProduct:
    """[W_1; …; W_k] x_t + [b_1; …; b_k] for every tick t.

    x: (B, T, n). weights: (m_i, n). biases: (m_i,) each, or None. B T n Σ m_i multiply-adds.
    """

    x: Tensor
    weights: Sequence[Tensor]
    biases: Sequence[Tensor] | None

    @property
    def widths(self) -> list[int]:
        """m_i."""
        return [len(w) for w in self.weights]

    def whole(self) -> Tensor:
        """Of all ticks, (B, T, Σ m_i), differentiable."""
        return merged_product(self.x, self.weights, self.biases)

    def is_read_once(self, others: Sequence[Tensor]) -> bool:
        """Whether the products may be forgotten tick by tick: nothing traces, casts, or asks for a gradient.

        others: the tensors the recurrence reads beside the products.
        """
        given = (self.x, *self.weights, *(self.biases or ()), *others)
        if not is_ordinary(*given) or torch.is_autocast_enabled(self.x.device.type):
            return False
        return not (torch.is_grad_enabled() and any(t.requires_grad for t in given))

    def ticks_of_a_piece(self) -> int:
        """How many ticks a piece is of; all where pieces save little memory or cost time."""
        batch, ticks, width = self.x.shape
        height = sum(self.widths)
        if batch * ticks * height < LEAST or (batch > 1 and width > height):  # what is cut of x is copied
            return ticks
        pieces = min(max(PIECES, -(-batch * ticks * height // MOST)), batch * ticks // ROWS)
        return -(-ticks // pieces) if pieces > 1 else ticks

    def pieces(self, length: int, reverse: bool = False) -> Iterator[tuple[int, int, Tensor]]:
        """(start, stop, products of these ticks (B, stop − start, Σ m_i)), each valid until the next; no gradients."""
        batch, ticks, width = self.x.shape
        groups = grouped(self.weights, self.biases)
        room = self.x.new_empty(batch * min(length, ticks), sum(self.widths))
        starts = range(0, ticks, length)
        for start in reversed(starts) if reverse else starts:
            stop = min(start + length, ticks)
            made = room[: batch * (stop - start)]
            rows = self.x[:, start:stop].reshape(-1, width)
            for group in groups:
                group.write(rows, made)
            del rows
            yield start, stop, made.view(batch, stop - start, -1)
