"""The forms code may take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """How code is written: one yes or no per question, each with the same meaning.

    merge: products of one value as one, where it has a free dimension. kernels: recurrences fused over their
    ticks. cells: torch's own LSTM and GRU. attend: torch's scaled dot product attention.
    """

    merge: bool = True
    kernels: bool = True
    cells: bool = True
    attend: bool = True
