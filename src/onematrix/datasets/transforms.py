"""The eight changes of the Random Anomaly task, each on a whole stack of images at once.

Every function takes levels, float32 (n, S, S) in 0 … 255, and keys, int64 (n,), one stream of random numbers
per image, and returns new levels of that shape; the input is not written to. Definitions: the published
generator qbhershey/RandomAnomaly (2025) at S = 50, whose operations are torchvision's on Pillow images.
At other sizes lengths scale with S / 50: the reach of the corners, the blur kernel (15 at 50; the nearest odd
number, at least 3) and its sigma; erased areas are shares already; noise and the 3×3 sharpening do not scale.
"""

import math
from collections.abc import Callable
from enum import IntEnum
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from onematrix.datasets.randomness import below, fold, normals, uniform

Transform = Callable[[Tensor, Tensor], Tensor]


class Draw(IntEnum):
    """Numbers of the draws in an image's stream. Changing one changes every generated data set."""

    SOURCE = 0
    CORNERS = 1  # 1 … 8
    ERASE = 9  # 9 … 12
    SIGMA = 13
    NOISE = 14
    DEQUANTISE = 15


def baseline(levels: Tensor, keys: Tensor) -> Tensor:
    """The image itself."""
    return levels


def corners(keys: Tensor, reach: int, size: int) -> Tensor:
    """Corners of the image after each moved inward by 0 … reach pixels per coordinate, float64 (n, 4, 2).

    Order top left, top right, bottom right, bottom left; (x, y) from 0 to size − 1.
    """
    u = uniform(keys[:, None], torch.arange(8, device=keys.device) + Draw.CORNERS)
    inward = below(reach + 1, u).view(-1, 4, 2).to(torch.float64)
    far = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64, device=keys.device)
    return far * (size - 1 - inward) + (1 - far) * inward


def homography(moved: Tensor, size: int) -> Tensor:
    """Homogeneous map (n, 3, 3), float64, up to scale, from the moved corners to those of the image.

    Heckbert 1989 ("Fundamentals of texture mapping", section 2.2.3) gives unit square → quadrilateral in
    closed form; multiplied by its denominator and inverted by the adjugate it needs no division, so all
    entries are exact and corners of which three are collinear give a rank-deficient map, not an error.
    """
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = (corner.unbind(-1) for corner in moved.unbind(1))
    sx, sy = x0 - x1 + x2 - x3, y0 - y1 + y2 - y3
    i = (x1 - x2) * (y3 - y2) - (x3 - x2) * (y1 - y2)
    g = sx * (y3 - y2) - (x3 - x2) * sy
    h = (x1 - x2) * sy - sx * (y1 - y2)
    a, b, c = i * (x1 - x0) + g * x1, i * (x3 - x0) + h * x3, i * x0
    d, e, f = i * (y1 - y0) + g * y1, i * (y3 - y0) + h * y3, i * y0
    edge = size - 1
    adjugate = [
        [edge * (e * i - f * h), edge * (c * h - b * i), edge * (b * f - c * e)],
        [edge * (f * g - d * i), edge * (a * i - c * g), edge * (c * d - a * f)],
        [d * h - e * g, b * g - a * h, a * e - b * d],
    ]
    return torch.stack([torch.stack(row, -1) for row in adjugate], -2)


def perspective(levels: Tensor, keys: Tensor, distortion: float) -> Tensor:
    """RandomPerspective(distortion): level at H (x + ½, y + ½), bilinear, 0 outside, cut to whole levels.

    H maps corners moved by at most ⌊distortion · S / 2⌋ pixels per coordinate to the corners of the image.
    As in Pillow: nearest pixel beyond the outermost centres, and 8 bits by truncation.
    """
    size = levels.shape[-1]
    maps = homography(corners(keys, int(distortion * size / 2), size), size)
    source = maps @ _pixel_centres(size, levels.device)  # (n, 3, S²), float64: `inside` is a sharp edge
    at = source[:, :2] / source[:, 2:]
    inside = ((at >= 0) & (at < size)).all(1).view(-1, size, size)
    grid = at.mul_(2 / size).sub_(1).nan_to_num_(2.0).clamp_(-2, 2)
    grid = grid.to(torch.float32).mT.reshape(-1, size, size, 2)
    read = grid_sample(levels[:, None], grid, "bilinear", "border", align_corners=False)[:, 0]
    # A float32 error just below a whole level must not cost a level: Pillow computes in float64.
    return read.add_(1e-3).floor_().mul_(inside)


def _pixel_centres(size: int, device: torch.device) -> Tensor:
    """Homogeneous centres (x + ½, y + ½, 1) of all pixels in reading order, float64 (3, S²)."""
    at = torch.arange(size, dtype=torch.float64, device=device) + 0.5
    x, y = at.repeat(size), at.repeat_interleave(size)
    return torch.stack([x, y, torch.ones_like(x)])


def erase(levels: Tensor, keys: Tensor) -> Tensor:
    """RandomErasing(scale .1-.2, ratio .3-3.3, value 0): one rectangle becomes 0.

    Area S² U(.1, .2), height / width = exp U(ln .3, ln 3.3), sides rounded, place uniform. Sides stay below
    .813 S, so torchvision's ten attempts to find a rectangle that fits never need the second.
    """
    size = levels.shape[-1]
    u = uniform(keys[:, None], torch.arange(4, device=keys.device) + Draw.ERASE)
    area = size * size * (0.1 + 0.1 * u[:, 0])
    ratio = torch.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * u[:, 1])
    height, width = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    rows = _between(below(size - height + 1, u[:, 2]), height, size)
    columns = _between(below(size - width + 1, u[:, 3]), width, size)
    return levels.masked_fill(rows[:, :, None] & columns[:, None, :], 0.0)


def _between(first: Tensor, count: Tensor, size: int) -> Tensor:
    """first ≤ position < first + count for positions 0 … size − 1: bool (n, size)."""
    at = torch.arange(size, device=first.device)
    return (at >= first[:, None]) & (at < (first + count)[:, None])


def noise(levels: Tensor, keys: Tensor) -> Tensor:
    """v + 255 N(0, 0.01²) at every pixel."""
    size = levels.shape[-1]
    stream = fold(keys, torch.tensor(int(Draw.NOISE), device=keys.device))
    return normals(stream, size * size).mul_(2.55).view(-1, size, size).add_(levels)


def both(levels: Tensor, keys: Tensor) -> Tensor:
    """erase, then perspective 0.5 (levels are whole between the two)."""
    return perspective(erase(levels, keys), keys, distortion=0.5)


def blur_kernel_size(size: int) -> int:
    """Odd width of the Gaussian kernel: 15 at size 50, in proportion elsewhere, at least 3.

    >>> [blur_kernel_size(s) for s in (8, 16, 28, 50)]
    [3, 5, 9, 15]
    """
    return 2 * max(1, round(7 * size / 50)) + 1


def _reflections(size: int, reach: int, device: torch.device) -> Tensor:
    """R[d] is the S × S matrix that sums the two neighbours at distance d, edges mirrored; R[0] = I."""
    at = torch.arange(size, device=device)
    shifted = torch.arange(-reach, reach + 1, device=device)[:, None] + at  # (2 reach + 1, S)
    mirrored = (size - 1) - ((size - 1) - shifted.abs()).abs()
    one_hot = torch.nn.functional.one_hot(mirrored, size).to(torch.float32)
    return torch.cat([one_hot[reach:][:1], one_hot[reach + 1 :] + one_hot[:reach].flip(0)])


def blur(levels: Tensor, keys: Tensor) -> Tensor:
    """GaussianBlur(15), edges mirrored: B X Bᵀ with B[i, j] ∝ exp(−(i − j)² / 2σ²), σ ~ U(.1, 2) S / 50."""
    size = levels.shape[-1]
    reach = blur_kernel_size(size) // 2
    sigma = (0.1 + 1.9 * uniform(keys, int(Draw.SIGMA))) * (size / 50)
    distance = torch.arange(reach + 1, dtype=torch.float64, device=keys.device)
    weight = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    weight = weight / (2 * weight.sum(1, keepdim=True) - weight[:, :1])
    reflections = _reflections(size, reach, levels.device).flatten(1)
    band = (weight.to(torch.float32) @ reflections).view(-1, size, size)
    return band @ levels @ band.mT


def sharpness(levels: Tensor, keys: Tensor) -> Tensor:
    """AdjustSharpness(4): 4 v − 3 smooth(v), cut to 0 … 255; smooth(v) = v on the border.

    Elsewhere smooth is the convolution with [1 1 1; 1 5 1; 1 1 1] / 13.
    """
    rows = levels[:, :-2] + levels[:, 1:-1] + levels[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    sharp = levels.clone()
    inner = sharp[:, 1:-1, 1:-1]
    inner.mul_(4 - 12 / 13).sub_(box, alpha=3 / 13)  # the centre counts 1 in the box and 4 more here
    return sharp.clamp_(0, 255)


TRANSFORMS: dict[str, Transform] = {
    "baseline": baseline,
    "perspective_small": partial(perspective, distortion=0.5),
    "perspective": partial(perspective, distortion=0.9),
    "erase": erase,
    "noise": noise,
    "both": both,
    "blur": blur,
    "sharpness": sharpness,
}
