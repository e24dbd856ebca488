"""om.parameter_groups: the learning rate of every tensor of a model, from the sums its entries enter.

A dense layer of n inputs moves its output by about n · rate in one step of Adam. A core of a structure that
sums over f inputs moves it by f · rate, so it needs n ÷ f times the rate, divided by the number of cores, for
the layer to move as a dense one does (G. Yang et al., arXiv:2203.03466; S. Qiu et al., arXiv:2406.06248,
section 3.2). That is `learning_rate_scale`, stated for cores of deviation 1/√f. Only the product of the cores
is fixed by the matrix: where one is larger by c and another smaller, the same movement takes c times the rate
with Adam, whose steps do not depend on the gradient's size, and c² times with SGD.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from onematrix.errors import TrainingError
from onematrix.programs.ownership import Ownership, rebuild_all
from onematrix.structures.algebra import BlockDiagonal, Product, Sum, Transposed
from onematrix.structures.base import Structure
from onematrix.structures.tree import leaves

POWERS = {"adam": 1, "sgd": 2}  # of the size of a core in its rate
ALIKE = 1.05  # random cores differ from their deviation by so much; no rate is known that closely


def parameter_groups(
    model: nn.Module,
    lr: float,
    optimizer: Literal["adam", "sgd"] = "adam",
    weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Groups for a torch optimiser: every trainable parameter once, cores of structures at rates of their own.

    lr: the rate a dense layer would get; the first group is that of all tensors at this rate. optimizer: "adam"
    for Adam, AdamW and other optimisers of normalised steps, "sgd" for SGD with or without momentum.
    weight_decay: that of the groups that decay; None leaves it to the optimiser. Biases, norms and whatever
    `decays` exempts get 0. Rates that differ by less than 5 % are merged; a parameter of several layers has the
    smallest of its rates. A core at zero counts as one at its usual size.
    Raises TrainingError for a model without trainable parameters and for options out of range.

    >>> import torch, onematrix as om
    >>> g = torch.Generator().manual_seed(0)
    >>> layer = om.Linear(om.list_structures()["monarch"].random(256, 256, rank=1, generator=g), bias=True)
    >>> groups = parameter_groups(nn.Sequential(layer, nn.Linear(256, 10)), lr=1e-3)
    >>> [(len(group["params"]), group["lr"], group.get("weight_decay")) for group in groups]
    [(1, 0.001, None), (2, 0.001, 0.0), (2, 0.008, None)]
    >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)
    """
    _check_options(lr, optimizer, weight_decay)
    trainable = _trainable(model)
    scales, decaying = layer_rates(model, optimizer)
    rates: dict[tuple[float, bool], list[Tensor]] = {}
    for parameter in trainable:
        scale = scales.get(id(parameter), 1.0)
        decay = decaying.get(id(parameter), parameter.dim() > 1)
        rates.setdefault((scale, decay), []).append(parameter)
    order = sorted(rates, key=lambda key: (key[0] != 1.0, key[0], not key[1]))
    return [_group(rates[scale, decay], lr * scale, decay, weight_decay) for scale, decay in order]


def layer_rates(model: nn.Module, optimizer: str = "adam") -> tuple[dict[int, float], dict[int, bool]]:
    """By id of the parameter: the factor on the rate and whether it decays, for all tensors of structures."""
    scales: dict[int, float] = {}
    decaying: dict[int, bool] = {}
    for structure in structures_of(model):
        found = rate_scales(structure, optimizer)
        exempt = decay_flags(structure)
        for path, tensor in leaves(structure):
            key, scale = id(tensor), found.get(path, 1.0)
            scales[key] = min(scales.get(key, scale), scale)
            decaying[key] = decaying.get(key, True) and exempt.get(path, True)
    return _merge(scales), decaying


def structures_of(model: nn.Module) -> Iterator[Structure]:
    """The structures of every om.Linear and every module of a program, over their parameters as they are now."""
    for module in model.modules():
        ownership = getattr(module, "_ownership", None)
        if isinstance(ownership, Ownership):
            yield from rebuild_all(module, ownership)


def rate_scales(structure: Structure, optimizer: str = "adam") -> dict[str, float]:
    """Path → factor on the rate of a dense layer with as many inputs, for the cores as large as they are.

    In a product of k cores each may move the output by 1/k; the k terms of a sum likewise. A block of a
    block-diagonal matrix sees its own inputs only. Where no source has a rule, as for the transpose of a
    structure, the factors are those of the structure in reverse order.
    """
    if structure.learning_rate_scale():
        return _resized(structure, POWERS[optimizer])
    parts = [(prefix, part) for prefix, part in _parts(structure) if _paths(part)]
    found: dict[str, float] = {}
    for prefix, part in parts:
        scales = {**dict.fromkeys(_paths(part), 1.0), **rate_scales(part, optimizer)}
        values = reversed(scales.values()) if isinstance(structure, Transposed) else scales.values()
        share = _share(structure, part, len(parts))
        found |= {f"{prefix}{path}": share * scale for path, scale in zip(scales, values, strict=True)}
    return found


def _share(whole: Structure, part: Structure, count: int) -> float:
    """The rate of a part of a structure ÷ the rate of the part alone; count: parts that store numbers."""
    if isinstance(whole, Product):
        return _width(whole) / _width(part) * _cores(part) / _cores(whole)
    if isinstance(whole, BlockDiagonal):
        return _width(whole) / _width(part)
    return 1 / count if isinstance(whole, Sum) else 1.0


def decay_flags(structure: Structure, prefix: str = "") -> dict[str, bool]:
    """Path → whether weight decay applies, for the structure and those inside it."""
    flags = {f"{prefix}{path}": decays for path, decays in structure.decays().items()}
    for inner, part in _parts(structure):
        flags = {**decay_flags(part, f"{prefix}{inner}"), **flags}
    return flags


def _resized(structure: Structure, power: int) -> dict[str, float]:
    """The structure's own factors, times the power of how much larger a core is than its share of the product."""
    scales, tensors = structure.learning_rate_scale(), dict(leaves(structure))
    if len(scales) < 2:
        return scales
    n = _width(structure)
    sizes = {path: _size(tensors[path], n / (len(scales) * scale)) for path, scale in scales.items()}
    mean = math.exp(sum(map(math.log, sizes.values())) / len(sizes))
    return {path: scale * (sizes[path] / mean) ** power for path, scale in scales.items()}


def _size(core: Tensor, inputs: float) -> float:
    """Root mean square in units of 1/√inputs; 1 for a core that is zero, not finite or without storage."""
    if core.device.type == "meta":
        return 1.0
    square = float(core.detach().double().square().mean()) * inputs
    return math.sqrt(square) if 0 < square < math.inf else 1.0


def _parts(structure: Structure) -> list[tuple[str, Structure]]:
    """(prefix, structure) of every structure in the fields."""
    found: list[tuple[str, Structure]] = []
    for name, value in vars(structure).items():
        if isinstance(value, Structure):
            found.append((f"{name}.", value))
        elif isinstance(value, tuple):
            found += [(f"{name}.{i}.", part) for i, part in enumerate(value)]
    return found


def _paths(structure: Structure) -> list[str]:
    return [path for path, tensor in leaves(structure) if tensor.is_floating_point()]


def _cores(structure: Structure) -> int:
    """How many factors a product through the structure has; 0 where nothing is stored."""
    if isinstance(structure, Product):
        return _cores(structure.left) + _cores(structure.right)
    return len(structure.learning_rate_scale()) or min(1, len(_paths(structure)))


def _width(structure: Structure) -> int:
    n = structure.shape[1]
    return n if isinstance(n, int) else 1


def _merge(scales: Mapping[int, float]) -> dict[int, float]:
    """The factors with those that differ by less than ALIKE made equal; 1 stays as it is."""
    merged, group = {key: 1.0 for key, scale in scales.items() if scale == 1.0}, list[int]()
    for key in sorted((key for key in scales if key not in merged), key=lambda key: scales[key]):
        if group and scales[key] > scales[group[0]] * ALIKE:
            merged |= dict.fromkeys(group, _mean([scales[k] for k in group]))
            group = []
        group.append(key)
    return merged | dict.fromkeys(group, _mean([scales[k] for k in group]))


def _mean(scales: Sequence[float]) -> float:
    """Geometric mean to three digits, which differences of rounding do not reach; 1 of none."""
    return float(f"{math.exp(sum(map(math.log, scales)) / max(len(scales), 1)):.3g}")


def _trainable(model: nn.Module) -> list[Tensor]:
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise TrainingError(f"{type(model).__name__} has lazy parameters; run it once before training it")
    found: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not found:
        count = len(list(model.parameters()))
        raise TrainingError(
            f"parameter_groups: {type(model).__name__} has {count} parameters, 0 of them with requires_grad; "
            "call model.requires_grad_(True)",
            got=0,
            frozen=count,
        )
    return found


def _check_options(lr: float, optimizer: str, weight_decay: float | None) -> None:
    if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr < math.inf:
        raise TrainingError(f"parameter_groups: lr must be a finite number > 0, got {lr!r}", got=lr)
    if optimizer not in POWERS:
        raise TrainingError(
            f'parameter_groups: optimizer must be "adam" or "sgd", got {optimizer!r}; other optimisers of '
            'normalised steps go with "adam"',
            got=optimizer,
        )
    if weight_decay is not None and not (
        isinstance(weight_decay, (int, float)) and 0 <= weight_decay < math.inf
    ):
        raise TrainingError(
            f"parameter_groups: weight_decay must be a finite number >= 0 or None, got {weight_decay!r}",
            got=weight_decay,
        )


def _group(
    parameters: Sequence[Tensor], rate: float, decays: bool, weight_decay: float | None
) -> dict[str, Any]:
    group: dict[str, Any] = {"params": list(parameters), "lr": rate}
    if not decays:
        group["weight_decay"] = 0.0
    elif weight_decay is not None:
        group["weight_decay"] = weight_decay
    return group
