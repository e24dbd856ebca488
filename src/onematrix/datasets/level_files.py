"""Drawn sequences on disk: one safetensors file per specification, checked whenever it is read."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onematrix.datasets.download import cache_folder, make_cache_folder
from onematrix.errors import DataError
from onematrix.records.files import replacing


def level_file(specification: Mapping[str, object]) -> Path:
    """Where the levels of a specification are kept: named by the hash of its JSON text."""
    text = json.dumps(specification, sort_keys=True)
    return cache_folder() / "random_anomaly" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def save_levels(levels: Tensor, specification: Mapping[str, object]) -> Path:
    """Write uint8 levels and their hash, whole or not at all. Raises DataError for a read-only folder."""
    path = level_file(specification)
    make_cache_folder(path.parent)
    facts = {"sha256": _sha256(levels), "specification": json.dumps(specification, sort_keys=True)}
    with replacing(path) as temporary:
        save_file({"levels": levels.cpu().contiguous()}, temporary, metadata=facts)
    return path


def load_levels(specification: Mapping[str, object]) -> Tensor | None:
    """The levels of a specification, or None when there is no file or (with a warning) a damaged one."""
    path = level_file(specification)
    if not path.exists():
        return None
    try:
        return _read(path, specification["shape"])
    except (SafetensorError, OSError, DataError) as error:
        warnings.warn(f"{path}: {error}; the sequences are drawn again", RuntimeWarning, stacklevel=3)
        return None


def _read(path: Path, shape: object) -> Tensor:
    """The levels in a file. Raises DataError when they are not of this shape, or not those once written."""
    with safe_open(path, framework="pt") as file:
        facts, levels = file.metadata() or {}, file.get_tensor("levels")
    if levels.dtype != torch.uint8 or list(levels.shape) != shape:
        raise DataError(f"torch.uint8 {shape} needed, got {levels.dtype} {list(levels.shape)}")
    needed, got = facts.get("sha256"), _sha256(levels)
    if needed != got:
        raise DataError(f"sha256 of the levels should be {needed}, is {got}", expected=needed, got=got)
    return levels


def _sha256(levels: Tensor) -> str:
    return hashlib.sha256(levels.cpu().contiguous().numpy().data).hexdigest()
