"""The fastest way to compute a structured product at a batch: measured once, remembered per machine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from onematrix.errors import OneMatrixError
from onematrix.kernels.structured_forms import FORMS, forms_of, multiply_own
from onematrix.kernels.structured_memory import product_key, recall, remember
from onematrix.records.choices import choices_folder
from onematrix.records.timing import seconds_per_call
from onematrix.structures.base import Structure
from onematrix.structures.dense import Dense
from onematrix.structures.tree import leaves, map_tensors

ROUNDS = 9
SAMPLE_SECONDS = 3e-3  # one timing repeats a call for about so long
GAIN = 0.97  # another form has to take less than so much of the time of the structure's own
HOPELESS = 3.0  # a form whose first calls take so many times the best is not timed further

Mode = Literal["forward", "gradients", "frozen"]
Multiply = Callable[[Structure, Tensor], Tensor]


@dataclass(frozen=True)
class Product:
    """The product chosen for a structure: call it with (structure, x). seconds: of every form timed."""

    form: str
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, a: Structure, x: Tensor) -> Tensor:
        """x Aᵀ for x: (..., n)."""
        return FORMS[self.form].multiply(a, x)


def fastest(a: Structure, batch: int, mode: Mode = "forward", folder: Path | None = None) -> Product:
    """The form that takes least time for `batch` vectors on this machine, at the threads torch has now.

    mode: "forward"; "gradients", forward and backward to the input and all numbers; "frozen", forward with the
    structure's own product or with the dense matrix written out beforehand. folder: where choices are kept (default:
    $ONEMATRIX_CACHE, else ~/.cache/onematrix/choices). Raises OneMatrixError for a batch below 1.

    >>> import torch, tempfile, pathlib
    >>> from onematrix.structures import STRUCTURES
    >>> a = STRUCTURES["low_rank"].random(8, 8, rank=1)
    >>> product = fastest(a, 4, folder=pathlib.Path(tempfile.mkdtemp()))
    >>> torch.allclose(product(a, torch.eye(8)), a.to_dense().mT)
    True
    """
    if batch < 1:
        raise OneMatrixError(f"fastest: batch must be at least 1, got {batch}", got=batch)
    folder = choices_folder() if folder is None else folder
    key = product_key(a, batch, mode)
    known = recall(folder, key)
    if known is not None and known[0] in forms_of(a):
        return Product(*known)
    product = measure(a, batch, mode)
    remember(folder, key, product.form, product.seconds)
    return product


def measure(a: Structure, batch: int, mode: Mode) -> Product:
    """Time every form in turn; the structure's own stands unless another is clearly faster."""
    calls = _calls(a, batch, mode)
    first = {name: min(seconds_per_call(call, 1) for _ in range(3)) for name, call in calls.items()}
    best = min(first.values())
    calls = {name: call for name, call in calls.items() if name == "own" or first[name] <= HOPELESS * best}
    repeats = {name: max(1, round(SAMPLE_SECONDS / max(first[name], 1e-7))) for name in calls}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS if len(calls) > 1 else 1):
        for name, call in calls.items():
            times[name].append(seconds_per_call(call, repeats[name]))
    seconds = {name: min(found) for name, found in times.items()}  # other jobs only ever add
    least = min(seconds, key=seconds.__getitem__)
    return Product(least if seconds[least] < GAIN * seconds["own"] else "own", seconds)


def _calls(a: Structure, batch: int, mode: Mode) -> dict[str, Callable[[], object]]:
    weight = a.any_weight()
    kind = torch.get_default_dtype() if weight is None else weight.dtype
    x = torch.ones(batch, a.fixed_shape[1], dtype=kind, device=None if weight is None else weight.device)
    own, forms = map_tensors(a, lambda t: t.detach()), forms_of(a)
    if mode == "gradients":
        free = map_tensors(own, lambda t: t.clone().requires_grad_() if t.is_floating_point() else t)
        inputs = [x.requires_grad_(), *{id(t): t for _, t in leaves(free) if t.requires_grad}.values()]
        return {name: _both(form.multiply, free, inputs) for name, form in forms.items()}
    if mode == "frozen":
        calls = {"own": _forward(multiply_own, own, x)}
        if "densified" in forms:
            calls["densified"] = _forward(multiply_own, Dense(own.to_dense(kind).contiguous()), x)
        return calls
    return {name: _forward(form.multiply, own, x) for name, form in forms.items()}


def _forward(multiply: Multiply, a: Structure, x: Tensor) -> Callable[[], object]:
    def call() -> Tensor:
        with torch.no_grad():
            return multiply(a, x)

    return call


def _both(multiply: Multiply, a: Structure, inputs: list[Tensor]) -> Callable[[], object]:
    def call() -> object:
        with torch.enable_grad():
            y = multiply(a, inputs[0])
        return torch.autograd.grad(y, inputs, torch.ones_like(y), allow_unused=True)

    return call


class Measured:
    """A product for a layer of its own: at each batch the form that was fastest there, measured at first sight.

    Batches are rounded up to a power of two. While torch.compile traces, under autocast and for no vector at
    all it is the structure's own. `om.Linear(a, product=Measured())`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.choices: dict[tuple[int, bool], str] = {}

    def __call__(self, a: Structure, x: Tensor) -> Tensor:
        """x Aᵀ for x: (..., n)."""
        if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
            return multiply_own(a, x)
        if not x.numel() or x.shape[-1] != a.shape[1]:
            return multiply_own(a, x)  # which also says what is wrong with a width
        key = (1 << (x.numel() // x.shape[-1] - 1).bit_length(), torch.is_grad_enabled())
        form = self.choices.get(key)
        if form is None:
            form = fastest(a, key[0], "gradients" if key[1] else "forward", self.folder).form
            self.choices[key] = form
        return FORMS[form].multiply(a, x)


def freeze(a: Structure, batch: int, folder: Path | None = None) -> Structure:
    """The same matrix for numbers that no longer change: `a`, or Dense where that multiplies faster.

    So never slower than dense at this batch on this machine. Shares the tensors of `a` where `a` is kept.
    """
    if fastest(a, batch, mode="frozen", folder=folder).form != "densified":
        return a
    return Dense(a.to_dense().detach().contiguous())
