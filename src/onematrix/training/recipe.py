"""The settings that decide the numbers of a run: two runs with equal recipes, data and module are equal."""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from onematrix.errors import TrainingError
from onematrix.training.losses import Loss, find_loss

OptimizerMaker = Callable[..., torch.optim.Optimizer]

OPTIMIZERS: dict[str, OptimizerMaker] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9),
    "rmsprop": torch.optim.RMSprop,
}


@dataclass(frozen=True)
class Recipe:
    """Loss, optimiser, examples per step, learning rate, bound on the gradient's norm (None: no bound), seed.

    `loss`: a name of LOSSES or a callable (outputs, target) → scalar, a mean over the batch.
    `optimizer`: a name of OPTIMIZERS or a callable (parameters, lr=…) → torch optimiser; for instance
    `functools.partial(torch.optim.AdamW, weight_decay=0.1)`.
    Raises TrainingError for a value out of its range.

    >>> Recipe(loss="mse", batch=32).learning_rate
    0.001
    """

    loss: str | Loss = "cross_entropy"
    optimizer: str | OptimizerMaker = "adam"
    batch: int = 100
    learning_rate: float = 1e-3
    clip: float | None = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        find_loss(self.loss)
        find_optimizer(self.optimizer)
        check_integer("batch", self.batch, 1)
        check_integer("seed", self.seed, 0)
        check_positive("learning_rate", self.learning_rate, "a finite number > 0")
        if self.clip is not None:
            check_positive("clip", self.clip, "a finite number > 0 or None")


def check_integer(name: str, value: object, least: int) -> None:
    """Raise TrainingError unless least ≤ value < 2⁶³ is an integer."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise TrainingError(f"Recipe: {name} must be an integer >= {least}, got {value!r}", got=value)


def check_positive(name: str, value: object, needed: str) -> None:
    """Raise TrainingError unless the value is a finite number > 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise TrainingError(f"Recipe: {name} must be {needed}, got {value!r}", got=value)


def find_optimizer(optimizer: str | OptimizerMaker) -> OptimizerMaker:
    """The maker of that name, or the callable itself. Raises TrainingError listing the known names."""
    if callable(optimizer):
        return optimizer
    if optimizer not in OPTIMIZERS:
        raise TrainingError(
            f"optimizer: one of {', '.join(OPTIMIZERS)} or a callable (parameters, lr=…) was needed, "
            f"got {optimizer!r}",
            got=optimizer,
            known=list(OPTIMIZERS),
        )
    return OPTIMIZERS[optimizer]


def make_optimizer(recipe: Recipe, module: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimiser over the module's trainable parameters, each once.

    Raises TrainingError when there are none, or when the optimiser needs a closure.
    """
    if any(nn.parameter.is_lazy(parameter) for parameter in module.parameters()):
        raise TrainingError(f"{type(module).__name__} has lazy parameters; run it once before training it")
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        count = len(list(module.parameters()))
        raise TrainingError(
            f"{type(module).__name__}: a trainable parameter was needed, got {count} parameters, 0 of them "
            "with requires_grad; call module.requires_grad_(True)",
            got=0,
        )
    optimizer = find_optimizer(recipe.optimizer)(parameters, lr=recipe.learning_rate)
    if not isinstance(optimizer, torch.optim.Optimizer):
        got = type(optimizer).__name__
        raise TrainingError(
            f"optimizer: the callable must return a torch.optim.Optimizer, got {got}", got=got
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        got = type(optimizer).__name__
        raise TrainingError(
            f"optimizer: {got} needs a closure per step; use one of {', '.join(OPTIMIZERS)}", got=got
        )
    return optimizer


def describe_settings(recipe: Recipe, optimizer: torch.optim.Optimizer, data: str) -> dict[str, object]:
    """The settings a resumed run must share, as JSON values; those of the optimiser's groups included."""
    settings: dict[str, object] = {
        "data": data,
        "loss": name_of(recipe.loss),
        "optimizer": type(optimizer).__name__,
        "batch": recipe.batch,
        "learning_rate": recipe.learning_rate,
        "clip": recipe.clip,
        "seed": recipe.seed,
    }
    groups = optimizer.param_groups
    for position, group in enumerate(groups):
        prefix = "optimizer" if len(groups) == 1 else f"optimizer group {position}"
        kept = group.keys() - {"params", "param_names"}
        described = {key: describe(group[key]) for key in group if key in kept}
        if described["lr"] == recipe.learning_rate:
            del described["lr"]  # said above
        settings.update({f"{prefix} {key}": value for key, value in described.items()})
    return settings


def describe(value: object) -> object:
    """The value itself where JSON has it, else its name or text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return name_of(value) if callable(value) else str(value)


def name_of(choice: str | Callable[..., object]) -> str:
    """The name of a choice: itself, or where the callable was defined (with the values a partial binds)."""
    if isinstance(choice, str):
        return choice
    if isinstance(choice, functools.partial):
        return f"{name_of(choice.func)}{choice.args}{sorted(choice.keywords.items())}"
    kind = choice if hasattr(choice, "__qualname__") else type(choice)
    return f"{kind.__module__}.{kind.__qualname__}"
