"""Measuring a module on data: no gradients, evaluation mode, nothing left changed."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from onematrix.errors import TrainingError
from onematrix.training.data import Data, check_data, draw_batch
from onematrix.training.losses import Loss, count_correct, find_loss, has_classes
from onematrix.training.state import device_of, forked_generators

Evaluation = Data | Callable[[nn.Module], float | Mapping[str, float]]


@contextlib.contextmanager
def kept_modes(module: nn.Module) -> Iterator[None]:
    """Give every sub-module back the training flag it has now."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def evaluate(
    module: nn.Module, data: Data, *, loss: str | Loss = "cross_entropy", batch: int = 500
) -> dict[str, float]:
    """{"loss": mean over the examples, "accuracy": share of rows whose largest output is their target}.

    "accuracy" is left out when the targets are no classes. Raises TrainingError for empty data or batch < 1.

    >>> from onematrix.training.data import Examples
    >>> evaluate(nn.Identity(), Examples(torch.eye(4), torch.tensor([0, 1, 2, 0])))["accuracy"]
    0.75
    """
    check_data("evaluate", data)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise TrainingError(f"evaluate: batch must be an integer >= 1, got {batch!r}", got=batch)
    measure, device = find_loss(loss), device_of(module)
    total, correct, judged = 0.0, 0, 0
    with kept_modes(module), torch.no_grad():
        module.eval()
        for indices in torch.arange(len(data)).split(batch):
            x, target = draw_batch(data, indices, device)
            outputs = module(*x)
            total += float(measure(outputs, target)) * len(indices)
            if has_classes(outputs, target):
                correct, judged = correct + count_correct(outputs, target), judged + target.numel()
    found = {"loss": total / len(data)}
    return {**found, "accuracy": correct / judged} if judged else found


def accuracy(module: nn.Module, data: Data, *, batch: int = 500) -> float:
    """Correct rows ÷ all rows (micro accuracy). Raises TrainingError when the targets are no classes."""
    found = evaluate(module, data, loss=no_loss, batch=batch)
    if "accuracy" not in found:
        raise TrainingError(
            "accuracy: outputs (…, classes) with integer targets (…) were needed; for other targets use "
            "evaluate(module, data, loss=…)"
        )
    return found["accuracy"]


def no_loss(outputs: object, target: torch.Tensor) -> torch.Tensor:
    return torch.zeros(())


def run_evaluation(evaluation: Evaluation | None, module: nn.Module, loss: str | Loss) -> dict[str, float]:
    """The numbers of an evaluation given to `train`; the random state of the run is not touched.

    Raises TrainingError when a callable gives something else than a number or a mapping of numbers.
    """
    if evaluation is None:
        return {}
    with kept_modes(module), torch.no_grad(), forked_generators(device_of(module)):
        module.eval()
        found = (
            evaluate(module, evaluation, loss=loss) if isinstance(evaluation, Data) else evaluation(module)
        )
    numbers = dict(found) if isinstance(found, Mapping) else {"value": found}
    try:
        return {str(name): float(number) for name, number in numbers.items()}
    except (TypeError, ValueError) as error:
        raise TrainingError(
            f"evaluate: a number or a mapping of names to numbers was needed, got {found!r}", got=found
        ) from error
