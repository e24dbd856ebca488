"""The 14-part SRU matrix against its equations, written out apart from it."""

import torch
from torch import Tensor

from onematrix.networks import sru
from onematrix.networks.examples import in_double
from onematrix.programs.interpreter import interpret
from onematrix.programs.program import Program


def sru_equations(x: Tensor, c: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """f = σ(W_f x + v_f c + b_f), r likewise, c' = f c + (1 − f) W x, h = r c' + (1 − r) x, per tick.

    x: (batch, time, n), c: (batch, n) → hidden (batch, time, n), c. Lei et al., arXiv:1709.02755v5, eqs. 1–4.
    """
    hidden = []
    for x_t in x.unbind(1):
        f = torch.sigmoid(x_t @ weights["W_f"].T + weights["v_f"] * c + weights["b_f"])
        r = torch.sigmoid(x_t @ weights["W_r"].T + weights["v_r"] * c + weights["b_r"])
        c = f * c + (1 - f) * (x_t @ weights["W"].T)
        hidden.append(r * c + (1 - r) * x_t)
    return torch.stack(hidden, 1), c


def check_sru(units: int = 8, ticks: int = 200, batch: int = 3, seed: int = 0) -> tuple[float, int]:
    """(largest difference of hidden states and final state in float64, ticks)."""
    generator = torch.Generator().manual_seed(seed)
    program = in_double(sru(units, generator=generator))
    x = torch.randn(batch, ticks, units, generator=generator, dtype=torch.float64)
    c = torch.randn(batch, units, generator=generator, dtype=torch.float64)
    outputs = interpret(program, x, c)
    expected = sru_equations(x, c, sru_weights(program))
    return max(float((a - b).abs().max()) for a, b in zip(outputs, expected, strict=True)), ticks


def sru_weights(program: Program) -> dict[str, Tensor]:
    """The matrices and vectors of an sru program under the names of its equations."""
    places = {
        "W_f": ("f", "x"),
        "v_f": ("f", "c_prev"),
        "b_f": ("f", "ones"),
        "W_r": ("r", "x"),
        "v_r": ("r", "c_prev"),
        "b_r": ("r", "ones"),
    }
    grid = program.steps()[0].matrices[0]
    places["W"] = ("Wx", "x") if "Wx" in program.parts else ("u", "x")
    return {name: next(iter(vars(grid[place]).values())) for name, place in places.items()}
