"""What every benchmark uses: timings of `onematrix.records.timing`, and a check that stops a wrong one."""

from torch import Tensor

from onematrix.records.timing import (
    HEAD,
    PAIRS,
    SAMPLE_SECONDS,
    Ratio,
    compare,
    conditions,
    median_interval,
    row,
    time_call,
)

__all__ = [
    "HEAD",
    "PAIRS",
    "SAMPLE_SECONDS",
    "Ratio",
    "compare",
    "conditions",
    "median_interval",
    "require_close",
    "row",
    "time_call",
]


def require_close(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Stop the benchmark when the thing it measures is wrong: relative error in float64 above the tolerance."""
    error = float((actual.double() - expected.double()).norm() / expected.double().norm())
    if not error <= tolerance:
        raise SystemExit(f"{name}: relative error {error:.2e}, allowed {tolerance:.0e}; no time is reported")
