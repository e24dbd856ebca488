"""The cost model of frozen products: nanoseconds per input vector, for choosing between forms of one matrix.

The numbers are measured slopes (float32, one thread, 32 vectors, x86-64 with AVX-512), rounded; only their
ratios matter. What they leave out, cache misses and other machines, is why a form has to win by GAIN.
"""

import math

from onematrix.structures.base import Structure
from onematrix.structures.circulant import Circulant
from onematrix.structures.compressed import CSC, CSR
from onematrix.structures.convolution import Convolution
from onematrix.structures.dense import Dense
from onematrix.structures.kronecker import Kronecker
from onematrix.structures.low_rank import LowRank
from onematrix.structures.masked import Masked
from onematrix.structures.per_axis import PerAxis
from onematrix.structures.permutation import Permutation, Selection
from onematrix.structures.toeplitz import Toeplitz

GAIN = 0.7  # a recognised form has to cost less than so much of the one it was given in
SHORT = 15  # taps up to which torch's depthwise kernel in one dimension is a fast one
CALL = {
    Dense: 100,
    CSR: 900,
    CSC: 900,
    Convolution: 4000,
    Circulant: 1000,
    Toeplitz: 1200,
    Kronecker: 700,
    LowRank: 60,
}
MULTIPLY_ADD = {
    Dense: 0.035,
    LowRank: 0.04,
    CSR: 0.15,
    CSC: 0.15,
    Kronecker: 0.04,
    PerAxis: 0.05,
    Masked: 0.06,
}


def nanoseconds(a: Structure) -> float:
    """Estimated time of one of 32 products; the order of forms of one matrix is what it is for.

    >>> import torch
    >>> nanoseconds(Circulant(torch.zeros(1024))) < nanoseconds(Dense(torch.zeros(1024, 1024)))
    True
    """
    call = CALL.get(type(a), 300)
    if isinstance(a, Permutation | Selection):
        return call + 0.75 * int(a.shape[0])
    if isinstance(a, Circulant):
        return call + 5 * len(a.column)
    if isinstance(a, Toeplitz):
        return call + 5 * len(a.diagonals)
    if isinstance(a, Convolution):
        return call + a.multiply_adds() * convolution_slope(a)
    return call + a.multiply_adds() * MULTIPLY_ADD.get(type(a), 0.04)


def convolution_slope(a: Convolution) -> float:
    """Nanoseconds per multiply-add of torch's convolution, whose kernels work on blocks of channels."""
    inner, outer = a.weight.shape[1], a.weight.shape[0] // a.groups
    taps = a.weight.shape[2]
    if inner * outer == 1 and a.groups > 1:
        return 0.37 if a.dimensions == 1 and taps > SHORT else 0.15
    if inner * outer == 1 and a.dimensions == 1:
        return 0.65 + 12 / taps
    return 0.06 * math.pow(max(1.0, 64 / (inner * outer)), 0.6)
