"""Settings of every test and doctest: one thread, and one line on what was skipped and why."""

import os
import tempfile
from collections import Counter

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("ONEMATRIX_CACHE", os.path.join(tempfile.gettempdir(), "onematrix-test-choices"))


def pytest_configure(config):
    import torch

    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    text = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common()) or "nothing"
    terminalreporter.write_line(f"skipped: {text}")
