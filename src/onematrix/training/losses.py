"""Losses by name. Classes are the last dimension of the outputs; a loss is a mean, so batches compare."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from onematrix.errors import DTypeError, ShapeError, TrainingError

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    """Mean of −log softmax(outputs)[target]; outputs (…, C) without softmax, target (…) of integers.

    Raises ShapeError, DTypeError, and TrainingError for a class outside 0 … C − 1.

    >>> cross_entropy(torch.zeros(1, 10), torch.tensor([3]))
    tensor(2.3026)
    """
    check_classes("cross_entropy", outputs, target)
    return functional.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), target.reshape(-1).long())


def mse(outputs: Tensor, target: Tensor) -> Tensor:
    """Mean over all numbers of (outputs − target)²; integer targets (…) stand for one-hot rows (…, C).

    Real targets need the shape of the outputs. Raises as `cross_entropy`.

    >>> mse(torch.full((1, 10), 0.1), torch.tensor([3]))
    tensor(0.0900)
    """
    if not target.is_floating_point():
        check_classes("mse", outputs, target)
        target = functional.one_hot(target.long(), outputs.shape[-1]).to(outputs.dtype)
    if outputs.shape != target.shape:
        raise ShapeError(
            f"mse: real targets need the shape of the outputs {tuple(outputs.shape)}, "
            f"got {tuple(target.shape)}",
            needed=tuple(outputs.shape),
            got=tuple(target.shape),
        )
    return functional.mse_loss(outputs, target)


def softmax_mse(outputs: Tensor, target: Tensor) -> Tensor:
    """`mse` of softmax(outputs) over the last dimension.

    >>> softmax_mse(torch.zeros(1, 10), torch.tensor([3]))
    tensor(0.0900)
    """
    return mse(outputs.softmax(-1), target)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse, "softmax_mse": softmax_mse}


def find_loss(loss: str | Loss) -> Loss:
    """The loss of that name, or the callable itself. Raises TrainingError listing the known names."""
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise TrainingError(
            f"loss: one of {', '.join(LOSSES)} or a callable (outputs, target) -> scalar was needed, "
            f"got {loss!r}",
            got=loss,
            known=list(LOSSES),
        )
    return LOSSES[loss]


def has_classes(outputs: object, target: object) -> bool:
    """Whether the target holds one class for each row of the outputs."""
    if not isinstance(outputs, Tensor) or not isinstance(target, Tensor):
        return False
    return is_integer(target) and outputs.ndim > 0 and outputs.shape[:-1] == target.shape


def count_correct(outputs: Tensor, target: Tensor) -> int:
    """How many rows of the outputs (…, C) are largest at their target; the first of equal ones counts."""
    return int((outputs.argmax(-1) == target).sum())


def is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def check_classes(name: str, outputs: Tensor, target: Tensor) -> None:
    """Raise unless outputs (…, C) and integer target (…) fit and every class lies in 0 … C − 1."""
    if not isinstance(outputs, Tensor):
        raise TrainingError(
            f"{name}: the module must give one tensor, got {type(outputs).__name__}; "
            "pass a callable loss(outputs, target) that takes it apart",
            got=type(outputs).__name__,
        )
    if not is_integer(target):
        raise DTypeError(f"{name}: integer target classes were needed, got {target.dtype}", got=target.dtype)
    if outputs.shape[:-1] != target.shape:
        raise ShapeError(
            f"{name}: outputs (…, classes) and target (…) must agree, "
            f"got {tuple(outputs.shape)} and {tuple(target.shape)}",
            outputs=tuple(outputs.shape),
            target=tuple(target.shape),
        )
    outside = (target < 0) | (target >= outputs.shape[-1])
    if outside.any():
        classes, got = outputs.shape[-1], int(target[outside][0])
        raise TrainingError(
            f"{name}: target class {got} lies outside 0 … {classes - 1} (the module has {classes} outputs)",
            got=got,
            classes=classes,
        )
