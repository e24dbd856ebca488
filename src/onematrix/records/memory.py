"""Peak memory of a call, in bytes."""

import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes torch's allocator of the CPU held at once during the call, above what it held before.

    Counts every tensor made in the call, also those kept for a backward pass inside it; memory of other
    libraries is not seen. The call runs once under the profiler, after one call that is not measured.

    >>> peak_bytes(lambda: torch.ones(1000).add(1).sum()) >= 2 * 4000
    True
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler otherwise prints where it starts and stops
    function()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        kept = function()
    del kept
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.device_type() == torch.profiler.DeviceType.CPU:
            held += event.nbytes()
            peak = max(peak, held)
    return peak
