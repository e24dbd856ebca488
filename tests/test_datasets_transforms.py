"""Each transform equals a literal reading of its definition, one image and one pixel at a time."""

import math
from fractions import Fraction

import numpy
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from onematrix.datasets import transforms
from onematrix.datasets.images import resize
from onematrix.datasets.randomness import fold, normals, seed_key, uniform, uniforms
from onematrix.datasets.transforms import TRANSFORMS, blur_kernel_size, homography
from onematrix.errors import DataError

MASK = 2**64 - 1


def splitmix(key, number):
    """Output `number` of SplitMix64 from state `key`, in Python's whole numbers."""
    z = (key + (number + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def draw(key, number):
    return (splitmix(key, number) >> 11) / 2**53


def literal_corners(key, reach, size):
    inward = [math.floor(draw(key, 1 + i) * (reach + 1)) for i in range(8)]
    last = size - 1
    return [
        (inward[0], inward[1]),
        (last - inward[2], inward[3]),
        (last - inward[4], last - inward[5]),
        (inward[6], last - inward[7]),
    ]


def solve_exactly(rows):
    """Gauss-Jordan elimination on fractions; rows = [A | b]."""
    rows = [[Fraction(v) for v in row] for row in rows]
    for c in range(len(rows)):
        pivot = next(r for r in range(c, len(rows)) if rows[r][c] != 0)
        rows[c], rows[pivot] = rows[pivot], rows[c]
        rows[c] = [v / rows[c][c] for v in rows[c]]
        for r in range(len(rows)):
            if r != c and rows[r][c] != 0:
                rows[r] = [v - rows[r][c] * w for v, w in zip(rows[r], rows[c], strict=True)]
    return [row[-1] for row in rows]


def perspective_coefficients(moved, size):
    """The eight numbers with X = (a x + b y + c) / (g x + h y + 1), Y likewise, from moved to own corners."""
    last, rows = size - 1, []
    own = [(0, 0), (last, 0), (last, last), (0, last)]
    for (x, y), (u, v) in zip(moved, own, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y, u])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y, v])
    return solve_exactly(rows)


def literal_perspective(image, key, distortion):
    """Exact levels before the cut to whole numbers."""
    size = len(image)
    a, b, c, d, e, f, g, h = perspective_coefficients(
        literal_corners(key, int(distortion * size / 2), size), size
    )
    out = numpy.zeros((size, size))
    for row in range(size):
        for column in range(size):
            x, y = column + Fraction(1, 2), row + Fraction(1, 2)
            w = g * x + h * y + 1
            if w == 0:
                continue
            u, v = (a * x + b * y + c) / w, (d * x + e * y + f) / w
            if not (0 <= u < size and 0 <= v < size):
                continue
            u, v = u - Fraction(1, 2), v - Fraction(1, 2)
            left, top = math.floor(u), math.floor(v)
            for i, s in ((left, 1 - (u - left)), (left + 1, u - left)):
                for j, t in ((top, 1 - (v - top)), (top + 1, v - top)):
                    near = image[min(max(j, 0), size - 1)][min(max(i, 0), size - 1)]
                    out[row, column] += float(s * t * int(near))
    return out


def literal_erase(image, key):
    size = len(image)
    area = size * size * (0.1 + (0.2 - 0.1) * draw(key, 9))
    ratio = math.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * draw(key, 10))
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    top = math.floor(draw(key, 11) * (size - height + 1))
    left = math.floor(draw(key, 12) * (size - width + 1))
    out = image.copy()
    out[top : top + height, left : left + width] = 0
    return out


def literal_noise(image, key):
    stream, count = splitmix(key, 14), image.size
    half = (count + 1) // 2
    values = [0.0] * (2 * half)
    for i in range(half):
        bits = splitmix(stream, i)
        u, v = ((bits >> 32) + 1) / 2**32, (bits & 0xFFFFFFFF) / 2**32
        radius = math.sqrt(-2 * math.log(u))
        values[i], values[half + i] = radius * math.cos(math.tau * v), radius * math.sin(math.tau * v)
    return image + 255 * 0.01 * numpy.array(values[:count]).reshape(image.shape)


def literal_blur(image, key):
    size = len(image)
    reach = {50: 7, 8: 1, 16: 2}[size]
    sigma = (0.1 + (2.0 - 0.1) * draw(key, 13)) * size / 50
    kernel = numpy.array([math.exp(-(d * d) / (2 * sigma * sigma)) for d in range(-reach, reach + 1)])
    kernel = numpy.outer(kernel, kernel) / kernel.sum() ** 2
    padded = numpy.pad(image, reach, mode="reflect")
    out = numpy.zeros_like(image)
    for row in range(size):
        for column in range(size):
            window = padded[row : row + 2 * reach + 1, column : column + 2 * reach + 1]
            out[row, column] = (kernel * window).sum()
    return out


def literal_sharpness(image, key):
    smooth, size = image.copy(), len(image)
    kernel = numpy.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    for row in range(1, size - 1):
        for column in range(1, size - 1):
            smooth[row, column] = (kernel * image[row - 1 : row + 2, column - 1 : column + 2]).sum()
    return numpy.clip(4 * image - 3 * smooth, 0, 255)


SMOOTH = {  # transforms without a cut to whole levels; the tolerance is that of float32 at 255
    "baseline": (lambda image, key: image, 0.0),
    "erase": (literal_erase, 0.0),
    "noise": (literal_noise, 2e-3),
    "blur": (literal_blur, 2e-4),
    "sharpness": (literal_sharpness, 5e-4),
}


def stack(size, count=4, seed=0):
    """Levels with flat areas, edges and grain, and one stream per image."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (count, size, size), generator=generator).float()
    levels[:, : size // 2] = (levels[:, : size // 2] > 120) * 255.0
    return levels, fold(seed_key(seed + 5), torch.arange(count))


@pytest.mark.parametrize("size", [8, 16, 50])
@pytest.mark.parametrize("name", SMOOTH)
def test_a_transform_is_its_definition(name, size):
    literal, tolerance = SMOOTH[name]
    levels, keys = stack(size)
    kept = levels.clone()
    got = TRANSFORMS[name](levels, keys)
    for image, key, result in zip(levels, keys, got, strict=True):
        expected = literal(image.double().numpy(), key.item() & MASK)
        assert_close(result.double(), torch.from_numpy(expected), rtol=0, atol=tolerance)
    assert torch.equal(levels, kept)
    assert name == "baseline" or not torch.equal(got, levels)


@pytest.mark.parametrize(("name", "distortion"), [("perspective_small", 0.5), ("perspective", 0.9)])
@pytest.mark.parametrize("size", [8, 16])
def test_perspective_is_its_definition_cut_to_whole_levels(name, distortion, size):
    levels, keys = stack(size, count=6)
    got = TRANSFORMS[name](levels, keys)
    assert torch.equal(got, got.round())
    for image, key, result in zip(levels, keys, got.double().numpy(), strict=True):
        exact = literal_perspective(image.double().numpy(), key.item() & MASK, distortion)
        assert (result <= exact + 2e-3).all()
        assert (result > exact - 1).all()
    assert (got == 0).float().mean() > 0.2  # the outside is black


def test_both_erases_then_changes_the_perspective():
    levels, keys = stack(16)
    for image, key, result in zip(levels, keys, TRANSFORMS["both"](levels, keys), strict=True):
        number = key.item() & MASK
        exact = literal_perspective(literal_erase(image.double().numpy(), number), number, 0.5)
        assert ((result.double().numpy() - exact <= 2e-3) & (result.double().numpy() > exact - 1)).all()


@pytest.mark.parametrize("distortion", [0.5, 0.9])
def test_perspective_at_50_is_pillows(distortion):
    """Pillow computes where to read in float64 with error; ours is exact, so edges differ in a few pixels."""
    levels, keys = stack(50, count=20)
    got = transforms.perspective(levels, keys, distortion)
    different = 0
    for image, key, result in zip(levels, keys, got, strict=True):
        corners = literal_corners(key.item() & MASK, int(distortion * 25), 50)
        coefficients = [float(c) for c in perspective_coefficients(corners, 50)]
        source = Image.fromarray(image.numpy().astype(numpy.uint8))
        moved = source.transform((50, 50), Image.PERSPECTIVE, coefficients, Image.BILINEAR, fillcolor=0)
        different += (numpy.abs(numpy.asarray(moved) - result.numpy()) > 1).sum()
    assert different <= 20 * 2500 * 1e-3


def test_the_homography_sends_moved_corners_to_the_corners():
    keys = fold(seed_key(3), torch.arange(50))
    moved = transforms.corners(keys, reach=22, size=50)
    assert moved[:, 0].min() == 0
    assert moved[:, 0].max() == 22
    assert moved[:, 2].min() == 27
    assert moved[:, 2].max() == 49
    image = torch.cat([moved, torch.ones(50, 4, 1, dtype=torch.float64)], 2) @ homography(moved, 50).mT
    own = torch.tensor([[0, 0], [49, 0], [49, 49], [0, 49]], dtype=torch.float64)
    assert torch.equal(image[..., :2], own * image[..., 2:])
    assert (image[..., 2] != 0).all()


def test_three_corners_on_a_line_give_an_image_not_an_error(monkeypatch):
    line = torch.tensor([[[20, 7], [27, 0], [49, 49], [0, 27]]], dtype=torch.float64)
    assert torch.linalg.matrix_rank(homography(line, 50)).item() < 3
    monkeypatch.setattr(transforms, "corners", lambda keys, reach, size: line)
    out = transforms.perspective(torch.full((1, 50, 50), 200.0), torch.tensor([1]), 0.9)
    assert set(out.unique().tolist()) <= {0.0, 200.0}


def test_blur_keeps_the_mean_of_a_flat_image_and_scales_its_kernel():
    flat = torch.full((3, 50, 50), 77.0)
    assert_close(transforms.blur(flat, torch.arange(3)), flat, rtol=0, atol=1e-4)
    assert [blur_kernel_size(s) for s in (8, 10, 28, 50, 100)] == [3, 3, 9, 15, 29]


@pytest.mark.parametrize("size", [4, 12, 50])
def test_resize_is_pillows_up_to_its_rounding_between_passes(size):
    pixels = torch.randint(0, 256, (5, 9, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = [Image.fromarray(p.numpy()).resize((size, size), Image.BILINEAR) for p in pixels]
    difference = resize(pixels, size) - torch.from_numpy(numpy.stack(expected)).float()
    assert difference.abs().max() <= 1
    assert (difference == 0).float().mean() > 0.6


def test_resize_upward_reads_between_the_nearest_centres():
    pixels = torch.tensor([[[0, 100], [200, 40]]], dtype=torch.uint8)
    between = [0.0, 0.25, 0.75, 1.0]  # output centres −.25, .25, .75, 1.25 cut to the input's 0 … 1
    expected = [
        [round((1 - v) * ((1 - u) * 0 + u * 100) + v * ((1 - u) * 200 + u * 40)) for u in between]
        for v in between
    ]
    assert resize(pixels, 4)[0].tolist() == expected


def test_streams_are_splitmix64():
    keys = [0, 1, -1, 2**63 - 1, -(2**63)]
    for key in keys:
        for number in (0, 1, 1000):
            got = fold(torch.tensor(key), torch.tensor(number)).item() & MASK
            assert got == splitmix(key & MASK, number)
            assert uniform(torch.tensor(key), number).item() == draw(key & MASK, number)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_normals_and_uniforms_do_not_depend_on_the_other_keys(count):
    keys = fold(seed_key(0), torch.arange(5))
    for of in (normals, uniforms):
        together = of(keys, count)
        assert together.shape == (5, count)
        assert torch.equal(together[3:4], of(keys[3:4], count))


def test_normals_are_normal_and_uniforms_uniform():
    z = normals(fold(seed_key(1), torch.arange(20)), 10_000).flatten().double().sort().values
    u = uniforms(fold(seed_key(2), torch.arange(20)), 10_000).flatten().double().sort().values
    at = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    # Kolmogorov-Smirnov distance: exceeds 2 / √n with probability 7e-4.
    assert (0.5 * torch.erfc(-z / math.sqrt(2)) - at).abs().max() < 2 / math.sqrt(200_000)
    assert (u - at).abs().max() < 2 / math.sqrt(200_000)
    assert z.isfinite().all()


def test_a_seed_outside_its_range_is_refused():
    with pytest.raises(DataError, match=r"seed must lie in \[0, 2\*\*62\), got -1"):
        seed_key(-1)
    with pytest.raises(DataError, match=f"got {2**62}"):
        seed_key(2**62)
