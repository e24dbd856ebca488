"""Networks defined by an equation: Runge–Kutta steps of an ODE, and a fixed point."""

from collections.abc import Mapping
from fractions import Fraction

import torch

from onematrix.errors import ShapeError
from onematrix.networks.recurrent import Blocks, column
from onematrix.programs.block_matrix import BlockMatrix
from onematrix.programs.part import ONE
from onematrix.programs.program import Program
from onematrix.programs.schedule import Loop, Seq, Step
from onematrix.structures.base import Structure
from onematrix.structures.dense import Dense
from onematrix.structures.identity import Identity, scale

Tableau = tuple[tuple[tuple[float | Fraction, ...], ...], tuple[float | Fraction, ...]]

RK4: Tableau = (
    ((), (Fraction(1, 2),), (0, Fraction(1, 2)), (0, 0, 1)),
    (Fraction(1, 6), Fraction(1, 3), Fraction(1, 3), Fraction(1, 6)),
)


def runge_kutta(
    units: int,
    steps: int = 1,
    h: float = 0.1,
    weights: Mapping[str, Structure] | None = None,
    activation: str = "tanh",
    tableau: Tableau = RK4,
    generator: torch.Generator | None = None,
) -> Program:
    """z' = σ(W z + b), solved by k_i = σ(W (z + h Σ_{j<i} a_ij k_j) + b), z ← z + h Σ b_i k_i, `steps` times.

    Parts z_prev (held during a step), k1 …, z; the step applied (stages + 1) times is one Runge–Kutta step.
    tableau: (rows a_ij below the diagonal, b_i); RK4 has 6 parts and, without zeros, 13 blocks besides bias.
    W. Kutta, Z. Math. Phys. 46, 1901.

    >>> runge_kutta(3).counts().stored_numbers
    12
    """
    a, b = tableau
    if len(a) != len(b) or any(len(row) != i for i, row in enumerate(a)):
        raise ShapeError(
            f"runge_kutta: stage i needs i coefficients, got {[len(row) for row in a]} and {len(b)}"
        )
    given = dict(weights or {})
    W = given.get("W") or Dense.random(units, units, generator=generator)
    bias = given.get("b") or column(torch.zeros(units))
    stages = [f"k{i + 1}" for i in range(len(b))]
    parts = dict.fromkeys(["x", "z_prev", *stages, "z"], units)
    I = Identity(units)
    G: Blocks = {("z_prev", "z_prev"): I, ("z", "z_prev"): I}
    for k, row in zip(stages, a, strict=True):
        G |= {(k, "z_prev"): W, (k, ONE): bias}
        G |= {(k, kj): scale(W, Fraction(h) * Fraction(c)) for kj, c in zip(stages, row, strict=False) if c}
    G |= {("z", k): scale(I, Fraction(h) * Fraction(c)) for k, c in zip(stages, b, strict=True) if c}
    step = Step(BlockMatrix(G, parts), activations=dict.fromkeys(stages, activation))
    once = Loop(step, times=len(stages) + 1, init=BlockMatrix({("z_prev", "z_prev"): I}, parts))
    advance = Step(BlockMatrix({("z_prev", "z"): I}, parts))
    start = BlockMatrix({("z_prev", "x"): I}, parts)
    return Program(Loop(Seq(once, advance), times=steps, init=start), ["x"], ["z_prev"])


def fixed_point(
    inputs: int,
    units: int,
    weights: Mapping[str, Structure] | None = None,
    activation: str = "tanh",
    tolerance: float = 1e-10,
    at_most: int = 200,
    generator: torch.Generator | None = None,
) -> Program:
    """z = σ(W z + U x + b): from z = 0, iterated until no entry of a sample moves by more than the tolerance.

    Converges when Lip(σ) ‖W‖ < 1; a random W is scaled to norm 0.5. S. Bai et al., arXiv:1909.01377v2, eq. 2.

    >>> fixed_point(3, 4).outputs
    ('z',)
    """
    given = dict(weights or {})
    W = given.get("W")
    if W is None:
        drawn = Dense.random(units, units, generator=generator).weight
        W = Dense(0.5 * drawn / torch.linalg.matrix_norm(drawn, 2))
    G: Blocks = {
        ("z", "z"): W,
        ("z", "x"): given.get("U") or Dense.random(units, inputs, generator=generator),
        ("z", ONE): given.get("b") or column(torch.zeros(units)),
    }
    step = Step(BlockMatrix(G, {"x": inputs, "z": units}), activations={"z": activation})
    return Program(Loop(step, until=tolerance, at_most=at_most), ["x"], ["z"])
