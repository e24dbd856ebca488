"""onematrix doctor: what a bug report needs, and whether this machine is ready."""

import json

from onematrix.cli.options import Json, Out


def doctor(as_json: Json = False, out: Out = None) -> None:
    """Versions, threads, kernels, load, data and folders of this machine; exit 1 when something is broken.

    Example: onematrix doctor --json > doctor.json
    """
    import typer

    from onematrix.records.files import write_json
    from onematrix.records.machine import describe_machine

    facts = describe_machine() | {"checks": _checks()}
    if out is not None:
        write_json(out, facts)
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)
    if any(not check["passed"] for check in facts["checks"] if check["needed"]):
        raise typer.Exit(1)


def _checks() -> list[dict[str, object]]:
    import importlib.util
    import os

    import torch

    from onematrix.datasets.download import cache_folder
    from onematrix.structures.compressed import CSR
    from onematrix.structures.sparse_kernels import uses_torch_kernels

    a = CSR.random(64, 64, 0.1, torch.Generator().manual_seed(0))
    x = torch.ones(3, 64)
    close = bool(torch.allclose(a.matmul(x), x @ a.to_dense().mT, atol=1e-5))
    kernel = "torch (MKL)" if uses_torch_kernels(x) else "portable (gather), slower: this torch has no MKL"
    load, cores = (os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0), os.cpu_count() or 1
    folder = cache_folder()
    rows: list[tuple[str, bool, bool, str]] = [
        ("sparse product equals its definition", close, True, kernel),
        (
            "pictures",
            importlib.util.find_spec("matplotlib") is not None,
            False,
            'pip install "onematrix[viz]"',
        ),
        ("digits", importlib.util.find_spec("sklearn") is not None, False, 'pip install "onematrix[data]"'),
        ("MNIST at hand", (folder / "mnist").is_dir(), False, f"{folder}; loaded on first use"),
        ("machine idle enough to time", load < cores / 2, False, f"load {load:.1f} on {cores} cores"),
    ]
    return [{"check": n, "passed": p, "needed": needed, "detail": d} for n, p, needed, d in rows]


def _print(facts: dict[str, object]) -> None:
    for name, value in facts.items():
        if name == "versions":
            value = ", ".join(f"{k} {v}" for k, v in value.items())  # type: ignore[attr-defined]
        if name != "checks":
            print(f"{name:<10} {value}")
    for check in facts["checks"]:  # type: ignore[attr-defined]
        mark = "ok  " if check["passed"] else "FAIL" if check["needed"] else "no  "
        print(f"{mark} {check['check']}: {check['detail']}")
