"""Launches of Triton kernels without a GPU: each is compiled for an H100 or H200 to the end, and none runs."""

import contextlib
import re
import subprocess
from pathlib import Path

import torch

from onematrix.kernels import grouped_triton


class Driver:
    """What Triton asks a driver before it compiles."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@contextlib.contextmanager
def compiling(monkeypatch):
    """Inside, tensors on the CPU are launched with; the list holds (name, compiled kernel) of each launch."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    launched, run = [], JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        made = run(self, *args, grid=grid, warmup=True, **options)
        launched.append((self.fn.__name__, made))

    with monkeypatch.context() as patch:
        patch.setattr(driver, "_active", Driver())
        patch.setattr(JITFunction, "run", compile_only)
        patch.setattr(grouped_triton, "refusal", lambda like: None)
        yield launched


def stack_bytes(kernel, folder):
    """Bytes of registers that went to memory, as the assembler says; None without the tool that reads it."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return None
    file = folder / "kernel.cubin"
    file.write_bytes(kernel.asm["cubin"])
    found = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", found)[1])


def normal(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype).requires_grad_()
