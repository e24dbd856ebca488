"""Two processes on this machine that talk to each other by gloo."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import onematrix as om


def run_on_two_ranks(tmp_path, code):
    """The outputs of the code run as rank 0 and rank 1; fails when one of them does."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    worker = tmp_path / "worker.py"
    worker.write_text(textwrap.dedent(code))
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(om.__file__).parents[1]),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, worker],
            env=environment | {"RANK": str(rank)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=180)[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(outputs)
    return outputs
