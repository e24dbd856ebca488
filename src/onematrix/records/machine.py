"""The facts a measured number needs beside it: versions, processor, threads, load."""

import os
import platform
from importlib import metadata

PACKAGES = ("torch", "numpy", "scipy", "safetensors", "matplotlib", "scikit-learn", "numba", "triton")


def versions() -> dict[str, str]:
    """Installed versions of this package and of those that shape its numbers; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in ("onematrix", *PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Name of the processor as the operating system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe_machine() -> dict[str, object]:
    """Processor, cores, threads torch uses, load (1 min), operating system, versions."""
    import torch

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": None if load is None else round(load, 2),
        "system": f"{platform.system()} {platform.release()}",
        "mkl": torch.backends.mkl.is_available(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
    }
