"""Random Anomaly: which one of T images of a digit was changed in another way than the rest?

Published generator qbhershey/RandomAnomaly (2025), vectorised: a sequence draws a class, an ordered pair of
distinct transforms (base, alternative), T images of the class with replacement and a position p; image p is
changed by the alternative, all others by the base. The label is p, chance is 1 / T.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Dataset

from onematrix.datasets.images import Images, resize
from onematrix.datasets.level_files import load_levels, save_levels
from onematrix.datasets.randomness import below, fold, seed_key, uniform, uniforms
from onematrix.datasets.transforms import TRANSFORMS, Draw
from onematrix.errors import DataError, DTypeError, ShapeError

PROFILES: dict[str, tuple[str, ...]] = {
    "ra8": tuple(TRANSFORMS),  # the published generator
    "ra6": tuple(TRANSFORMS)[:6],  # the changes the report's text names
}
MEAN, DEVIATION = 0.1307, 0.3081  # of MNIST's training pixels / 255
GENERATOR = 1  # raise it when any sequence changes: stored files of another number are not read
RENDERED_TOGETHER = 128  # images; the intermediate tensors of one stack then stay in the cache


@dataclass(frozen=True)
class Recipe:
    """What the sequences of a batch are made of; B sequences of T images, all int64."""

    classes: Tensor  # (B,)
    base: Tensor  # (B,) number of the transform in the profile
    alternative: Tensor  # (B,)
    position: Tensor  # (B,) of the anomaly, 0 … T − 1
    sources: Tensor  # (B, T) index of the source image
    keys: Tensor  # (B, T) streams of the images

    @property
    def transforms(self) -> Tensor:
        """Number of the transform of each image, (B, T)."""
        at = torch.arange(self.sources.shape[1], device=self.base.device)
        return torch.where(at == self.position[:, None], self.alternative[:, None], self.base[:, None])


@dataclass(frozen=True, eq=False)
class RandomAnomaly(Dataset[tuple[Tensor, Tensor]]):
    """Sequences of `length` images of size × size, one of them changed in another way: x, and where it is.

    A map-style data set of `sequences` items, drawn when asked for. Item i depends on (seed, i) and the
    other arguments only, never on the batch or order it is drawn in.

    x is (level / 255 − 0.1307) / 0.3081, cut to the range its own image had before the change, flattened in
    reading order: float32, in [−0.4242, 2.8215]. `blank=True` appends one vector of 0.0 (which is not the
    background, −0.4242): the reading step of the literature. Profile "ra8" has eight transforms
    (56 ordered pairs), "ra6" six (30); at sizes other than 50 they scale (see `transforms`).

    Levels of baseline, perspective, erase and both are whole, those of noise, blur and sharpness are not,
    and an untrained rule can read this. `dequantise=True` rounds all levels and adds uniform noise of one
    level, which removes that leak; the cut to the image's range is made before.

    Raises DataError for an unknown profile, ShapeError for sequences < 1, length < 2 or size < 8.

    >>> images = Images(torch.randint(0, 256, (20, 8, 8), dtype=torch.uint8), torch.arange(20) % 2)
    >>> x, y = RandomAnomaly(images, sequences=50, size=16).batch(torch.tensor([7, 3]))
    >>> x.shape, y.shape
    (torch.Size([2, 10, 256]), torch.Size([2]))
    """

    images: Images
    sequences: int = 4000
    profile: str = "ra8"
    size: int = 50
    length: int = 10
    seed: int = 0
    blank: bool = False
    dequantise: bool = False
    # uint8 (sequences, length, size²), set by `cached`; no argument, so a changed copy never carries it along
    stored: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise DataError(
                f"RandomAnomaly: profile must be one of {', '.join(PROFILES)}, got {self.profile!r}",
                profile=self.profile,
            )
        for name, least in (("sequences", 1), ("length", 2), ("size", 8)):
            got = getattr(self, name)
            if got < least:
                raise ShapeError(f"RandomAnomaly: {name} must be at least {least}, got {got}", got=got)
        seed_key(self.seed)

    def __len__(self) -> int:
        return self.sequences

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([range(self.sequences)[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Many items at once: torch's DataLoader asks for a batch through this name."""
        x, y = self.batch(torch.as_tensor(indices, dtype=torch.int64))
        return list(zip(x, y, strict=True))

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """x: float32 (B, length, size²), one vector more with `blank`; y: int64 (B,), the position.

        `indices` is int64 (B,), B = 0 included, on the CPU or where the images are.
        Raises DTypeError, ShapeError (not 1-d) or DataError (outside 0 … sequences − 1).
        """
        recipe = self.recipe(indices)
        x = self._levels(indices, recipe)
        if self.dequantise:
            x = x.round_().add_(self._lattice_noise(recipe.keys))
        x = x.mul_(1 / (255 * DEVIATION)).sub_(MEAN / DEVIATION)
        if self.blank:
            x = torch.cat([x, x.new_zeros(len(x), 1, self.size**2)], dim=1)
        return x, recipe.position

    def recipe(self, indices: Tensor) -> Recipe:
        """Class, transforms, position and source images of the sequences at `indices` (int64 (B,))."""
        indices = self._checked(indices)
        key = fold(seed_key(self.seed).to(indices.device), indices)
        order, starts, counts, groups = self._classes
        group = groups[below(len(self.images), uniform(key, 0))]
        others = len(PROFILES[self.profile]) - 1
        pair = below((others + 1) * others, uniform(key, 1))
        base, alternative = pair // others, pair % others
        position = below(self.length, uniform(key, 2))
        keys = fold(key[:, None], torch.arange(self.length, device=key.device) + 3)
        rank = below(counts[group, None], uniform(keys, int(Draw.SOURCE)))
        sources = order[starts[group, None] + rank]
        classes = self.images.labels[order[starts[group]]]
        return Recipe(classes, base, alternative + (alternative >= base), position, sources, keys)

    @property
    def bytes_when_cached(self) -> int:
        """Bytes `cached` needs: sequences · length · size² (float32 would take four times as many)."""
        return self.sequences * self.length * self.size**2

    def cached(self, on_disk: bool = False, chunk: int = 256) -> "RandomAnomaly":
        """The same sequences drawn once, kept as one byte a pixel (`bytes_when_cached`) and read from there.

        Levels are rounded to whole numbers, so x differs by at most ½ / 255 / 0.3081 = 0.0064, and the
        whole-level leak is gone; with `dequantise` x equals the uncached one. `on_disk=True` keeps the bytes
        in `cache_folder()/random_anomaly` under the hash of `specification()`; a damaged file is drawn
        again with a warning.
        """
        specification = self.specification()
        levels = load_levels(specification) if on_disk else None
        if levels is None:
            levels = self._draw_all(chunk)
            if on_disk:
                save_levels(levels, specification)
        copy = replace(self)
        object.__setattr__(copy, "stored", levels.to(self.images.pixels.device))
        return copy

    def specification(self) -> dict[str, object]:
        """Everything the levels of all sequences depend on; `blank` and `dequantise` come later."""
        return {
            "generator": GENERATOR,
            "transforms": list(PROFILES[self.profile]),
            "shape": [self.sequences, self.length, self.size**2],
            "seed": self.seed,
            "images": self.images.sha256(),
        }

    @cached_property
    def _classes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images in order of class; first place and count of each class in it; class number per image."""
        _, groups, counts = self.images.labels.unique(return_inverse=True, return_counts=True)
        return groups.argsort(stable=True), counts.cumsum(0) - counts, counts, groups

    def _checked(self, indices: Tensor) -> Tensor:
        if indices.dtype != torch.int64:
            raise DTypeError(f"RandomAnomaly: indices must be torch.int64, got {indices.dtype}")
        if indices.ndim != 1:
            raise ShapeError(f"RandomAnomaly: indices must be (B,), got {tuple(indices.shape)}")
        low, high = (int(v) for v in indices.aminmax()) if len(indices) else (0, 0)
        if low < 0 or high >= len(self):
            raise DataError(
                f"RandomAnomaly: indices must lie in 0 … {len(self) - 1}, got {low} … {high}",
                lowest=low,
                highest=high,
            )
        return indices.to(self.images.labels.device)

    def _levels(self, indices: Tensor, recipe: Recipe) -> Tensor:
        if self.stored is None:
            return self._render(recipe)
        return self.stored[indices.to(self.stored.device)].to(torch.float32)

    def _render(self, recipe: Recipe) -> Tensor:
        """Levels of all images of a recipe, float32 (B, T, S²), in small stacks of one transform."""
        transforms, sources, keys = (t.flatten() for t in (recipe.transforms, recipe.sources, recipe.keys))
        out = torch.empty(len(sources), self.size, self.size, device=sources.device)
        for number, name in enumerate(PROFILES[self.profile]):
            for part in (transforms == number).nonzero()[:, 0].split(RENDERED_TOGETHER):
                plain = resize(self.images.pixels[sources[part]], self.size)
                low, high = plain.amin((1, 2), keepdim=True), plain.amax((1, 2), keepdim=True)
                out[part] = torch.clamp(TRANSFORMS[name](plain, keys[part]), low, high)
        return out.view(*recipe.sources.shape, self.size**2)

    def _draw_all(self, chunk: int) -> Tensor:
        shape = (self.sequences, self.length, self.size**2)
        levels = torch.empty(shape, dtype=torch.uint8)
        for indices in torch.arange(self.sequences).split(chunk):
            levels[indices] = self._render(self.recipe(indices)).round_().to("cpu", torch.uint8)
        return levels

    def _lattice_noise(self, keys: Tensor) -> Tensor:
        """Uniform on [−½, ½] per pixel, float32 (B, T, S²): a stream of its own, the same cached or not."""
        stream = fold(keys.flatten(), torch.tensor(int(Draw.DEQUANTISE), device=keys.device))
        return uniforms(stream, self.size**2).sub_(0.5).view(*keys.shape, self.size**2)
