"""Ctrl-C as a request: the first one ends the run after its step, the second aborts at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


@dataclass
class Request:
    """Whether an end was asked for."""

    made: bool = False


@contextlib.contextmanager
def catching_interrupt(announce: bool) -> Iterator[Request]:
    """A request that the first SIGINT makes; the handler from before is back after it, and at the end.

    Outside the main thread, or where SIGINT is ignored, nothing is caught.
    """
    request, before = Request(), signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (None, signal.SIG_IGN):
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        request.made = True
        signal.signal(signal.SIGINT, before)
        if announce:  # os.write: printing inside a handler may meet a print under way
            os.write(2, b"\nstopping after this step; press Ctrl-C again to abort at once\n")

    signal.signal(signal.SIGINT, ask)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, before)
