"""The entries of a structure as pixels: where it is not zero, and how large it is."""

import numpy as np
import torch

from onematrix.structures.base import Structure

LARGEST = 40_000_000  # entries of a matrix that is looked at entry by entry
FAINTEST = 0.25  # opacity of a pixel that holds a single entry among many zeros


def entries(structure: Structure, most: int | None = None) -> np.ndarray | None:
    """The definition as an array (m, n); None on the meta device, with free sizes or above `most` entries."""
    m, n = structure.shape
    if isinstance(m, str) or isinstance(n, str) or m * n > (LARGEST if most is None else most):
        return None
    weight = structure.any_weight()
    if weight is not None and weight.device.type == "meta":
        return None
    with torch.no_grad():
        return structure.to_dense().detach().double().cpu().numpy()


def nonzero_pattern(structure: Structure, most: int | None = None) -> np.ndarray | None:
    """Where the definition is not zero, as booleans (m, n); None where `entries` is."""
    found = entries(structure, most)
    return None if found is None else found != 0


def shrink_pattern(pattern: np.ndarray, pixels: int) -> np.ndarray:
    """Opacity per pixel: 1 for an entry that has a pixel of its own; where several share one, the visible share.

    A pixel with any entry is at least FAINTEST, so that single entries of a large block are seen.
    """
    r, c = _places(pattern.shape, pixels)
    rows, columns = r[-1] + 1, c[-1] + 1
    counts = np.zeros((rows, columns))
    i, j = np.nonzero(pattern)
    np.add.at(counts, (r[i], c[j]), 1)
    share = counts / np.outer(np.bincount(r), np.bincount(c))
    return np.where(counts > 0, np.maximum(FAINTEST, share), 0.0)


def shrink_values(values: np.ndarray, pixels: int) -> np.ndarray:
    """Per pixel the entry of largest magnitude, with its sign; nan where an entry is not finite."""
    r, c = _places(values.shape, pixels)
    shape = r[-1] + 1, c[-1] + 1
    high, low = np.full(shape, -np.inf), np.full(shape, np.inf)
    place = np.ix_(r, c)
    full = [np.broadcast_to(index, values.shape) for index in place]
    np.maximum.at(high, tuple(full), values)
    np.minimum.at(low, tuple(full), values)
    shown = np.where(np.abs(high) >= np.abs(low), high, low)
    return np.where(np.isfinite(high) & np.isfinite(low), shown, np.nan)


def _places(shape: tuple[int, ...], pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixel row of every row and the pixel column of every column."""
    m, n = shape
    return np.arange(m) * min(m, pixels) // m, np.arange(n) * min(n, pixels) // n
