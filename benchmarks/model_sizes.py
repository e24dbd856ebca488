"""Size: what converting, counting and drawing large models costs in seconds and memory, against its targets.

python benchmarks/model_sizes.py          (needs transformers; each model in a process of its own, one thread)

GPT-2 small: 12 layers, 124 M random weights: converted in ≤ 15 s and ≤ 20 MB above the model. A Llama of the shape
of 70 B numbers, on the meta device: converted, counted and drawn in ≤ 60 s, the whole process under 2 GB. Seconds are
of the processor, so that the load of others does not count: those of the clock where nothing else runs.
"""

import argparse
import gc
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import onematrix as om
from measure import require_close
from onematrix.records.machine import describe_machine
from onematrix.structures.tree import stored_numbers

HEAD = "model              what                              measured     target"
TOKENS = 16


def main(models: list[str]) -> None:
    """Measure each model in a process of its own; print its rows."""
    torch.set_num_threads(1)
    machine = describe_machine()
    print(
        f"{machine['processor']}, 1 thread, load {machine['load']}, torch {torch.__version__}\n{HEAD}",
        flush=True,
    )
    for name in models:
        line = [sys.executable, __file__, "--here", name]
        if subprocess.run(line, check=False).returncode:
            raise SystemExit(f"{name}: not measured")


def measure_gpt2(layers: int = 12, **sizes: int) -> bool:
    """Seconds and memory of one conversion, the code of torch.export already in memory; whether all is met."""
    transformers = _library()
    _convert(_gpt2(transformers, 1, n_embd=16, n_head=2, vocab_size=50))  # brings the code into memory
    model = _gpt2(transformers, layers, **sizes)
    gc.collect()
    before, peak = _resident(), _peak_meter()
    started = time.process_time()
    program = _convert(model)
    seconds, above = time.process_time() - started, peak() - before
    _check(program, model)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    name = f"GPT-2 {millions:.0f} M"
    return _row(name, "convert", seconds, 15, "s") & _row(name, "peak above the model", above, 20, "MB")


def measure_llama(layers: int = 80) -> bool:
    """Seconds to convert, count and draw, and the peak of the process from its start; whether all is met."""
    transformers = _library()
    sizes = {
        "hidden_size": 8192, "num_hidden_layers": layers, "num_attention_heads": 64, "num_key_value_heads": 8,
        "intermediate_size": 28672, "vocab_size": 128256, "use_cache": False,
    }  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    started = time.process_time()
    program = _convert(model)
    converted = time.process_time()
    counts = program.counts(time=TOKENS)
    counted = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        om.draw(program, Path(folder) / "llama.svg")
    drawn = time.process_time()
    _check(program, model)
    name = f"Llama {counts.stored_numbers / 1e9:.0f} B meta"
    for what, seconds in (
        ("convert", converted - started),
        ("count", counted - converted),
        ("draw", drawn - counted),
    ):
        print(f"{name:<18} {what:<32} {seconds:>8.1f} s", flush=True)
    top = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    met = _row(name, "convert, count and draw", drawn - started, 60, "s")
    return met & _row(name, "peak of the process", top, 2000, "MB")


def _library() -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers


def _gpt2(transformers: Any, layers: int, **sizes: int) -> Any:
    config = transformers.GPT2Config(n_layer=layers, use_cache=False, **sizes)
    return transformers.GPT2LMHeadModel(config).eval()


def _convert(model: Any) -> om.Program:
    device = next(model.parameters()).device
    return om.convert(model, input_ids=torch.zeros(2, TOKENS, dtype=torch.long, device=device))


def _check(program: om.Program, model: Any) -> None:
    """Stop where the program is not the model: a parameter copied or lost, an opaque row, another output."""
    held, named = {id(t) for t in program.parameters.values()}, {id(p) for p in model.parameters()}
    if not named <= held or program.opaque():
        raise SystemExit(
            f"{len(named - held)} parameters are copied or lost, opaque: {list(program.opaque())}"
        )
    if stored_numbers(*program.structures) - sum(p.numel() for p in model.parameters()) > 1000:
        raise SystemExit("the program stores more numbers than the model")
    if next(model.parameters()).device.type != "meta":
        ids = torch.arange(2 * TOKENS).reshape(2, TOKENS) % model.config.vocab_size
        with torch.no_grad():
            require_close("outputs", om.interpret(program, ids), model(input_ids=ids).logits, 1e-5)


def _row(name: str, what: str, measured: float, target: float, unit: str) -> bool:
    met = measured <= target
    said = "met" if met else "not met"
    print(f"{name:<18} {what:<32} {measured:>8.1f} {unit:<3} ≤ {target} {unit} {said}", flush=True)
    return met


def _resident() -> float:
    """Megabytes (2^20 bytes) the process holds in memory now."""
    return _status("VmRSS")


def _status(word: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux: the peak is all there is
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(word))


def _peak_meter() -> Callable[[], float]:
    """Forget the peak so far; gives the megabytes held at most since."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        pass  # the peak of the whole process is an upper bound
    return lambda: _status("VmHWM")


MODELS = {"gpt2": measure_gpt2, "llama": measure_llama}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="of gpt2, llama; all when none is given")
    parser.add_argument("--here", choices=MODELS, help="measure in this process")
    given = parser.parse_args()
    if given.here:
        torch.set_num_threads(1)
        MODELS[given.here]()
    else:
        main(given.models or list(MODELS))
