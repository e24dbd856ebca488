"""Random numbers by counter: a draw depends on its key and number only, never on what was drawn before.

The generator is SplitMix64 (Steele, Lea & Flood, OOPSLA 2014, figures 16-17) in 64-bit wrapping arithmetic;
its n-th output is a hash of (key, n), so a whole batch of streams is drawn by one tensor expression, and a
sequence of a data set is the same whatever batch, order or process asks for it.
"""

import math

import torch
from torch import Tensor

from onematrix.errors import DataError

# 2⁶⁴ / golden ratio and the two multipliers of the finaliser, as signed 64-bit numbers.
GAMMA = 0x9E3779B97F4A7C15 - 2**64
FIRST = 0xBF58476D1CE4E5B9 - 2**64
SECOND = 0x94D049BB133111EB - 2**64
LOW_32 = 2**32 - 1


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)  # >> of a signed tensor copies the sign bit


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of 64 bits, int64 in and out, in which every bit moves all."""
    z = _shift(z, 30).bitwise_xor_(z).mul_(FIRST)
    z = _shift(z, 27).bitwise_xor_(z).mul_(SECOND)
    return _shift(z, 31).bitwise_xor_(z)


def fold(key: Tensor, counter: Tensor) -> Tensor:
    """Output number `counter` of the SplitMix64 stream that starts at `key`, int64; shapes broadcast.

    The result is random bits or the key of a stream of its own.

    >>> hex(fold(torch.tensor(0), torch.tensor(0)).item() % 2**64)
    '0xe220a8397b1dcdaf'
    """
    return mix(key + (counter + 1) * GAMMA)


def seed_key(seed: int) -> Tensor:
    """Key of a seed, 0 ≤ seed < 2⁶², int64 scalar. Raises DataError outside that range."""
    if not 0 <= seed < 2**62:
        raise DataError(f"seed must lie in [0, 2**62), got {seed}", seed=seed)
    return mix(torch.tensor(seed))


def uniform(key: Tensor, counter: Tensor | int) -> Tensor:
    """Draw number `counter` of stream `key`, uniform on [0, 1), float64 with 53 random bits; broadcasts."""
    bits = fold(key, torch.as_tensor(counter, device=key.device))
    return _shift(bits, 11).to(torch.float64).mul_(2.0**-53)


def below(bound: Tensor | int, u: Tensor) -> Tensor:
    """⌊u · bound⌋: a uniform u on [0, 1) as a whole number 0 … bound − 1, int64."""
    return (u * bound).floor().long()


def _halves(key: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the first ⌈count / 2⌉ outputs, each float32 (n, ⌈count / 2⌉) in [0, 1]."""
    bits = fold(key[:, None], torch.arange((count + 1) // 2, device=key.device))
    high, low = _shift(bits, 32), bits & LOW_32
    return high.to(torch.float32).mul_(2.0**-32), low.to(torch.float32).mul_(2.0**-32)


def uniforms(key: Tensor, count: int) -> Tensor:
    """`count` uniform numbers on [0, 1] per key, float32: key (n,) → (n, count)."""
    return torch.cat(_halves(key, count), dim=1)[:, :count]


def normals(key: Tensor, count: int) -> Tensor:
    """`count` standard normal numbers per key, float32, |z| < 6.7: key (n,) → (n, count).

    Box & Muller 1958: √(−2 ln u) (cos 2πv, sin 2πv), u in (0, 1], from one 64-bit draw per pair.
    """
    u, v = _halves(key, count)
    radius = u.add_(2.0**-32).clamp_(max=1).log_().mul_(-2).sqrt_()
    angle = v.mul_(2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]
