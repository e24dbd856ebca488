"""One file that holds a run: tensors in safetensors form, all else as JSON in its header; no pickle."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onematrix.errors import FormatError, TrainingError
from onematrix.records.files import replacing
from onematrix.training.data import crc_of

FORMAT = "onematrix training checkpoint 1"
NAME = "checkpoint.safetensors"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Named tensors and a JSON object; `path` is where it was read from."""

    tensors: dict[str, Tensor]
    header: dict[str, Any]
    path: Path


def checksum(tensors: dict[str, Tensor], header: str) -> str:
    """CRC-32 over the header and every tensor's bytes, in the order of their names."""
    crc = zlib.crc32(header.encode())
    for name in sorted(tensors):
        crc = crc_of(tensors[name], crc)
    return f"{crc:08x}"


def write_checkpoint(path: Path, tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    """Replace the file in one rename: a kill leaves the old checkpoint or the new one, never a part.

    Raises TrainingError naming the file when it cannot be written.
    """
    # A copy a tensor: safetensors takes no two tensors that share memory, and no gaps between numbers.
    copies = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(header)
    metadata = {"format": FORMAT, "header": text, "crc32": checksum(copies, text)}
    try:
        with replacing(path) as temporary:
            save_file(copies, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"checkpoint {path} cannot be written ({error})", path=str(path)) from error


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint of that file, its checksum proven.

    Raises FormatError naming the file and the remedy when it is truncated, corrupt or no checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned: what safetensors gives may be a view of the mapped file, which is replaced later.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise refusal(path, str(error)) from error
    if metadata.get("format") != FORMAT:
        raise refusal(path, f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
    found = checksum(tensors, metadata.get("header", ""))
    if metadata.get("crc32") != found:
        raise refusal(path, f"its checksum is {found}, not {metadata.get('crc32')}")
    return Checkpoint(tensors, json.loads(metadata["header"]), path)


def refusal(path: Path, reason: str) -> FormatError:
    return FormatError(
        f"{path} is no whole training checkpoint ({reason}); delete it, or pass resume=False to start over",
        path=str(path),
    )


def remove_leftovers(folder: Path, name: str) -> None:
    """Delete the temporary files a killed writer left beside `name`."""
    for leftover in folder.glob(f".{name}.*.tmp"):
        leftover.unlink(missing_ok=True)
