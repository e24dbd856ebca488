"""Gates of a cell that are the rows of one tensor, as torch holds them: the tensor is handed on and not its rows."""

from collections.abc import Sequence

from torch import Tensor

from onematrix.compiler.cells import Cell
from onematrix.structures.algebra import Sum
from onematrix.structures.base import Structure
from onematrix.structures.reshaped import Reshaped


def whole_tensor(gates: Sequence[Structure]) -> Tensor | None:
    """The tensor that the gates, one below the other, are all rows of."""
    first = gates[0]
    if not isinstance(first, Reshaped) or len(first.tensor) != len(gates) * first.rows:
        return None
    for place, gate in enumerate(gates):
        if not isinstance(gate, Reshaped) or gate.tensor is not first.tensor:
            return None
        if (gate.start, gate.rows) != (place * first.rows, first.rows):
            return None
    return first.tensor


def whole_biases(cell: Cell) -> tuple[Tensor, Tensor] | None:
    """The two vectors each gate adds its entries of: b_ih and b_hh, where it does not matter either first.

    It matters for the last gate of a GRU alone, which multiplies the second by r: tanh(a + b_ih + r ∘ (U h + b_hh)).
    """
    sides = [(_terms(a), _terms(b)) for a, b in zip(cell.b_ih, cell.b_hh, strict=True)]
    if cell.kind == "gru" and [len(side) for side in sides[-1]] != [1, 1]:
        return None
    pairs = [[*a, *b] for a, b in sides]
    if any(len(pair) != 2 for pair in pairs):
        return None
    lead = pairs[-1][0]
    turned = [pair if _is_of(pair[0], lead) else pair[::-1] for pair in pairs]
    b_ih, b_hh = (whole_tensor([pair[side] for pair in turned]) for side in range(2))
    return None if b_ih is None or b_hh is None else (b_ih, b_hh)


def _terms(bias: Structure | None) -> Sequence[Structure]:
    if bias is None:
        return ()
    return bias.terms if isinstance(bias, Sum) else (bias,)


def _is_of(a: Structure, b: Structure) -> bool:
    """Whether both are rows of one tensor."""
    return isinstance(a, Reshaped) and isinstance(b, Reshaped) and a.tensor is b.tensor
