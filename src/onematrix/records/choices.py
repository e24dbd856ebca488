"""Where measured choices are kept, and under which name: one file each, for this machine alone."""

import hashlib
import json
import os
from pathlib import Path

from onematrix.records.machine import describe_machine


def choices_folder() -> Path:
    """Where choices are kept: $ONEMATRIX_CACHE, by default ~/.cache/onematrix/choices."""
    return Path(os.environ.get("ONEMATRIX_CACHE") or "~/.cache/onematrix/choices").expanduser()


def choice_key(*facts: object) -> str:
    """A name for these facts on this machine: versions, threads and all but its load."""
    machine = {name: fact for name, fact in describe_machine().items() if name != "load"}
    text = json.dumps([machine, *facts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
