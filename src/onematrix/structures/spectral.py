"""Cyclic convolution by the real FFT: the fast product of circulant and Toeplitz matrices."""

import torch
from torch import Tensor

COARSE = (torch.bfloat16, torch.float16)  # there is no FFT of these: theirs is taken in float32


def cyclic_convolution(x: Tensor, c: Tensor, size: int, start: int, count: int) -> Tensor:
    """y_i = Σ_j c[(start + i − j) mod size] x_j for i < count, over the last dimension; size ≥ that of x and c.

    Three real FFTs of that size, one of them of c alone: about 2.5 size log₂ size multiply-adds each.

    >>> cyclic_convolution(torch.tensor([1.0, 0.0]), torch.tensor([5.0, 6.0]), 2, 0, 2)
    tensor([5., 6.])
    """
    if x.numel() == 0:  # MKL refuses an empty batch
        return (x[..., :1] * c[:1]).expand(*x.shape[:-1], count)
    wide = torch.float32 if x.dtype in COARSE else x.dtype
    spectrum = torch.fft.rfft(x.to(wide), size) * torch.fft.rfft(c.to(wide), size)
    y: Tensor = torch.fft.irfft(spectrum, size)
    return y.narrow(-1, start, count).to(x.dtype)


def spectral_multiply_adds(size: int) -> int:
    """Two real FFTs of so many numbers and the product of their spectra; that of the weights is made once.

    A real FFT of N numbers is 2.5 N log₂ N flops (split radix, to the leading order); a product of two complex
    numbers is 4 multiply-adds.
    """
    return (5 * size * max(1, (size - 1).bit_length())) // 2 + 4 * (size // 2 + 1)


def fast_size(least: int) -> int:
    """The smallest 2^a 3^b 5^c that is not below `least`: FFTs of other sizes are slower.

    >>> [fast_size(n) for n in (1, 7, 97, 8191)]
    [1, 8, 100, 8192]
    """
    best = 1 << (least - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            two = three << max(0, (-(-least // three) - 1).bit_length())
            best = min(best, two)
            three *= 3
        five *= 5
    return best
