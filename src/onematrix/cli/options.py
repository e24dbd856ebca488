"""Options that mean the same in every verb."""

import sys
from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder (or file) to write to.", show_default=False)
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads torch uses; its own choice when not given.")
]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu or cuda.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]


def set_threads(threads: int | None) -> None:
    """Set the threads torch uses, when asked to."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def check_device(device: str) -> str:
    """The device, if torch has it. Exits with a usage error otherwise."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"device {device!r} is not there: {str(error).splitlines()[0]}") from error
    return device


def say(text: str = "", quiet: bool = False) -> None:
    """One line for a person, at once; nothing when the output is JSON."""
    if not quiet:
        print(text, flush=True, file=sys.stdout)
