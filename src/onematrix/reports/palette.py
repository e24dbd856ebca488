"""One colour per kind of matrix, told apart with red-green colour blindness as well."""

import colorsys
import hashlib

from onematrix.structures.algebra import Transposed
from onematrix.structures.base import Structure
from onematrix.structures.identity import Scaled

# Chosen by search so that any two differ by at least 8 (CIE 1976) in ordinary, protanope and deuteranope vision
# as Machado, Oliveira & Fernandes 2009 simulate them.
COLOURS = {
    "dense": "#2F6DB5",
    "low_rank": "#E8912D",
    "csr": "#00805A",
    "csc": "#68DCB9",
    "masked": "#9FDF7F",
    "block_sparse": "#2151CD",
    "diagonal": "#521F37",
    "identity": "#707070",
    "permutation": "#C395CE",
    "selection": "#4E2465",
    "product": "#A75F1F",
    "sum": "#652617",
}
ZERO = "#BBBBBB"


def kind_of(structure: Structure) -> str:
    """The name a legend shows: that of the structure inside, where it is only scaled or transposed."""
    return kind_of(structure.inner) if isinstance(structure, Scaled | Transposed) else structure.name


def colour_of(structure: Structure) -> str:
    """The colour of a kind of matrix: fixed for the frequent ones, made from the name for all others."""
    name = kind_of(structure)
    if name == "zero":
        return ZERO
    return COLOURS.get(name) or colour_of_name(name)


def colour_of_name(name: str) -> str:
    """A colour of middle lightness whose hue and saturation come from the name's hash.

    >>> colour_of_name("toeplitz") == colour_of_name("toeplitz")
    True
    """
    digest = hashlib.sha256(name.encode()).digest()
    r, g, b = colorsys.hls_to_rgb(digest[0] / 255, 0.35 + 0.25 * digest[1] / 255, 0.4 + 0.3 * digest[2] / 255)
    return "#" + "".join(f"{round(255 * part):02X}" for part in (r, g, b))
