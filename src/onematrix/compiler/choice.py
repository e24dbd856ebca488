"""The choice of merges and kernels: by measured time of the whole function, remembered per machine.

A form of the code is a set of yes-or-no questions; each is answered by timing both answers on the example
inputs, forward and, where anything takes gradients, forward and backward. Without inputs, or with measure=False,
the defaults stand, which depend on nothing but the program.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from onematrix.compiler.form import MEASURED, Form
from onematrix.errors import OneMatrixError
from onematrix.programs.program import Program
from onematrix.records.choices import choice_key
from onematrix.records.files import read_json, write_json
from onematrix.records.timing import clock

PAIRS = 7
GAIN = 0.97  # the other answer has to take less than so much of the time
VERSION = 3


Build = Callable[[Form], torch.nn.Module]


@dataclass(frozen=True)
class Trial:
    """One answer tried: the form, its seconds and those of the form it was compared with."""

    question: str
    form: Form
    seconds: float
    before: float

    def __str__(self) -> str:
        took = f"{self.seconds * 1e3:.3f} ms, {self.before * 1e3:.3f} ms as it was"
        kept = "taken" if self.seconds < GAIN * self.before else "refused"
        return f"{self.question} = {getattr(self.form, self.question)}: {took}: {kept}"


def choose(
    form: Form, build: Build, questions: Sequence[str], inputs: Sequence[Tensor]
) -> tuple[Form, list[Trial]]:
    """The fastest form found from one by answering one question after the other, and what was tried."""
    trials = list[Trial]()
    for question in questions:
        form = _answered(form, question, build, inputs, trials)
    return form, trials


def choose_source(form: Form, build: Build, inputs: Sequence[Tensor]) -> tuple[Form, list[Trial]]:
    """The form, or the source module where it is faster."""
    trials = list[Trial]()
    return _answered(form, "native", build, inputs, trials), trials


def _answered(form: Form, question: str, build: Build, inputs: Sequence[Tensor], trials: list[Trial]) -> Form:
    """The form, or the one with the other answer where that is faster in two measurements, one after the other."""
    other = replace(form, **{question: not getattr(form, question)})
    as_it_is, changed = build(form), build(other)
    for _ in range(2):
        before, seconds = _compare(as_it_is, changed, inputs)
        trials.append(Trial(question, other, seconds, before))
        if seconds >= GAIN * before:
            return form
    return other


def _compare(one: torch.nn.Module, other: torch.nn.Module, inputs: Sequence[Tensor]) -> tuple[float, float]:
    """Median seconds of both, measured in turn."""
    times: list[list[float]] = [[], []]
    for module in (one, other):
        _run(module, inputs)
    for _ in range(PAIRS):
        for module, found in zip((one, other), times, strict=True):
            start = clock()
            _run(module, inputs)
            found.append(clock() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def _run(module: torch.nn.Module, inputs: Sequence[Tensor]) -> None:
    outputs = module(*inputs)
    found = outputs if isinstance(outputs, tuple) else (outputs,)
    free = [p for p in module.parameters() if p.requires_grad]
    loss = sum(o.sum() for o in found if o.requires_grad)
    if free and isinstance(loss, Tensor):
        torch.autograd.grad(loss, free, allow_unused=True)


# What was chosen before.


def program_key(program: Program, inputs: Sequence[Tensor], text: str) -> str:
    """A name for this program, these shapes and this machine: versions, threads, dtypes, autocast and all."""
    device = inputs[0].device.type
    autocast = device != "meta" and torch.is_autocast_enabled(device)
    facts = {
        "threads": torch.get_num_threads(),
        "inputs": [[list(x.shape), list(x.stride()), str(x.dtype), x.device.type] for x in inputs],
        "autocast": str(torch.get_autocast_dtype(device)) if autocast else None,
        "backward": torch.is_grad_enabled(),
        "gradients": [bool(t.requires_grad) for t in program.parameters.values()],
        "text": text,
        "version": VERSION,
    }
    return choice_key(facts)


def remembered(folder: Path, key: str, form: Form) -> Form | str | None:
    """The form with the answers chosen before; a note where the file is not what it should be; None where none is."""
    path = folder / f"{key}.json"
    if not path.exists():
        return None
    try:
        found = read_json(path)
        answers = found["form"] if isinstance(found, dict) else None
        if not isinstance(answers, dict) or found["key"] != key or set(answers) != set(MEASURED):
            raise ValueError("it belongs to something else")
        if not all(isinstance(v, bool) for v in answers.values()):
            raise ValueError("its answers are not yes or no")
        return replace(form, **answers)
    except (OneMatrixError, OSError, RecursionError, ValueError, KeyError, TypeError) as error:
        return f"remembered choice {path.name} ignored: {error}"


def remember(folder: Path, key: str, form: Form) -> str | None:
    """Keep the form for the next time; a note where the folder cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        answers = {name: getattr(form, name) for name in MEASURED}
        write_json(folder / f"{key}.json", {"key": key, "form": answers})
    except OSError as error:
        return f"choice not remembered: {folder}: {error.strerror}; name another folder in ONEMATRIX_CACHE"
    return None
