"""Python's search for garbage, put off while many small objects are made that all stay."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Within it no search for cycles runs; a collector that was off stays off. Also a decorator.

    A search through everything torch holds takes half a second, as long as compiling 24 layers.

    >>> with collector_at_rest():
    ...     gc.isenabled()
    False
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
