"""Products of the block-Kronecker family: its seven sizes, the two batched products, their numbers and rates."""

import math
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor

from onematrix.errors import ShapeError
from onematrix.structures.deviations import core_deviations
from onematrix.structures.grouped_product import multiply_columns, multiply_groups


@dataclass(frozen=True)
class Factors:
    """The seven sizes of a member: n = γ β α columns, m = φ ε δ rows, ρ Kronecker products per block.

    >>> Factors(alpha=4, gamma=4, epsilon=4, phi=4).shape
    (16, 16)
    """

    alpha: int = 1
    beta: int = 1
    gamma: int = 1
    delta: int = 1
    epsilon: int = 1
    phi: int = 1
    rank: int = 1  # ρ

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.phi * self.epsilon * self.delta, self.gamma * self.beta * self.alpha

    @property
    def largest_rank(self) -> int:
        """The ρ from which on every matrix is a member: min(ε β, δ α)."""
        return min(self.epsilon * self.beta, self.delta * self.alpha)

    def numbers(self) -> int:
        """Stored numbers: φ γ ρ (δ α + ε β)."""
        return self.phi * self.gamma * self.rank * (self.delta * self.alpha + self.epsilon * self.beta)

    def multiply_adds(self) -> int:
        """Of one product with one vector: β γ δ φ ρ (α + ε)."""
        return self.beta * self.gamma * self.delta * self.phi * self.rank * (self.alpha + self.epsilon)

    def generic_rank(self) -> int:
        """The rank of almost every member, the least of m, n and what each order of contraction lets through.

        With A first γ β min(α, φ δ ρ) and φ δ min(ε, β γ ρ); with B first γ α min(β, φ ε ρ), which is less
        where one Kronecker factor is wide and the other is tall.
        """
        a, b, g, d, e, f, r = astuple(self)
        right_first = min(g * b * min(a, f * d * r), f * d * min(e, b * g * r))
        return int(min(*self.shape, right_first, g * a * min(b, f * e * r)))

    def exponents(self) -> tuple[float, float, float]:
        """(ω, ψ, ν) of a d × d member: multiply-adds ÷ numbers ~ d^ω, rank ~ d^ψ, multiply-adds ~ d^(2 − ν).

        With θ = log_d of each size: ν = min(θα, θε) − θρ, ψ = min(1, 2 + θρ − θα − θε),
        ω = min(θδ + θα, θβ + θε) − min(θα, θε). Raises ShapeError unless m = n > 1.
        Source: A. Potapczynski et al., arXiv:2410.02117, section 3.
        """
        m, d = self.shape
        if m != d or d == 1:
            raise ShapeError(f"exponents: a square member larger than 1×1 was needed, got {m}×{d}")
        a, b, _, delta, e, _, r = (math.log(size, d) for size in astuple(self))
        shared = min(a, e)
        return min(delta + a, b + e) - shared, min(1.0, 2 + r - a - e), shared - r

    def with_rank(self, rank: int) -> "Factors":
        """The same sizes with another ρ, at most the one from which on every matrix is a member."""
        return replace(self, rank=min(rank, self.largest_rank))


def read_factors(left: Tensor, right: Tensor) -> Factors:
    """The sizes of B: (φ, ε, β, ρ, γ) and A: (γ, φ, ρ, δ, α). Raises ShapeError when they do not fit."""
    if left.dim() == right.dim() == 5:
        phi, epsilon, beta, rank, gamma = left.shape
        if right.shape[:3] == (gamma, phi, rank):
            return Factors(right.shape[4], beta, gamma, right.shape[3], epsilon, phi, rank)
    raise ShapeError(
        "block_kronecker: left (φ, ε, β, ρ, γ) and right (γ, φ, ρ, δ, α) were needed, "
        f"got {tuple(left.shape)} and {tuple(right.shape)}"
    )


def multiply_family(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """x Wᵀ for x: (..., γ β α) → (..., φ ε δ): Z = A x per column of blocks, then Y = B Z per row of blocks.

    For β = δ = 1 no number is copied between the two batched products; otherwise x and Z are, once each.
    """
    phi, e, b, r, g = left.shape
    d, a = right.shape[3:]
    rows = x.reshape(-1, g * b * a)
    k = rows.shape[0]
    columns = rows.reshape(k, g, b, a).permute(1, 2, 0, 3).reshape(g, b * k, a).mT  # (γ, α, β k)
    z = multiply_groups(right.reshape(g, phi * r * d, a), columns)  # (φ ρ δ, γ, β k)
    if b > 1 or d > 1:
        z = z.reshape(phi, r, d, g, b, k).permute(0, 4, 1, 3, 5, 2)  # (φ, β, ρ, γ, k, δ)
    z = z.reshape(phi, b * r * g, k * d)
    weights = left.reshape(phi, e, b * r * g)
    if d == 1:  # as columns: a view of them turned, 1.5 % of a dense product sooner than rows
        return multiply_columns(weights, z).reshape(phi * e, k).mT.reshape(*x.shape[:-1], phi * e)
    y = multiply_groups(z.mT, weights.mT)  # (k δ, φ, ε)
    return y.reshape(k, d, phi, e).permute(0, 2, 3, 1).reshape(*x.shape[:-1], phi * e * d)


def multiply_family_adjoint(left: Tensor, right: Tensor, y: Tensor) -> Tensor:
    """y W for y: (..., φ ε δ) → (..., γ β α): the two products of `multiply_family`, the other way round."""
    phi, e, b, r, g = left.shape
    d, a = right.shape[3:]
    rows = y.reshape(-1, phi * e * d)
    k = rows.shape[0]
    columns = rows.reshape(k, phi, e, d).permute(1, 3, 0, 2).reshape(phi, d * k, e).mT  # (φ, ε, δ k)
    z = multiply_columns(left.reshape(phi, e, b * r * g).mT, columns)  # (φ, β ρ γ, δ k)
    if b > 1 or d > 1:
        z = z.reshape(phi, b, r, g, d, k).permute(0, 2, 4, 3, 5, 1)  # (φ, ρ, δ, γ, k, β)
    z = z.reshape(phi * r * d, g, k * b)
    x = multiply_groups(z.permute(1, 2, 0), right.reshape(g, phi * r * d, a))  # (k β, γ, α)
    if b > 1:
        x = x.reshape(k, b, g, a).transpose(1, 2)
    return x.reshape(*y.shape[:-1], g * b * a)


def random_family(factors: Factors, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """(left, right) of the deviations of `core_deviations`: A sums over α inputs, B over β γ ρ."""
    f = factors
    left = torch.randn(f.phi, f.epsilon, f.beta, f.rank, f.gamma, generator=generator)
    right = torch.randn(f.gamma, f.phi, f.rank, f.delta, f.alpha, generator=generator)
    outer, inner = core_deviations([f.beta * f.rank * f.gamma, f.alpha])
    return left * outer, right * inner


def learning_rates(factors: Factors) -> dict[str, float]:
    """Factor on the rate of Adam per core: (n ÷ inputs of one sum) ÷ 2 cores; α inputs, then β γ ρ.

    Source: S. Qiu et al., arXiv:2406.06248, section 3.2. Not flat in the width for members with ω > 0,
    whose numbers are each used several times.
    """
    f, n = factors, factors.shape[1]
    return {"left": n / (2 * f.beta * f.gamma * f.rank), "right": n / (2 * f.alpha)}
