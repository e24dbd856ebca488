"""Everything a run's next number depends on, taken apart into named tensors and JSON values, and put back."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onematrix.errors import TrainingError

Tensors = dict[str, Tensor]
Numbers = dict[str, Any]
REMEDY = "name another folder, or pass resume=False to start over"


def device_of(module: nn.Module) -> torch.device:
    """Device of the first parameter or buffer; the CPU when there is none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextlib.contextmanager
def forked_generators(device: torch.device) -> Iterator[None]:
    """Give torch's global generators (CPU, and the device's if CUDA) back the state they have now."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def pack_generators(device: torch.device) -> Tensors:
    """States of torch's global generators, as byte tensors."""
    states = {"generator/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["generator/cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(tensors: Tensors, device: torch.device) -> None:
    """Set the generators; a state saved on another kind of device is left out."""
    torch.set_rng_state(tensors["generator/cpu"])
    if device.type == "cuda" and "generator/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["generator/cuda"], device)


def named_state(module: nn.Module) -> Tensors:
    """state_dict with the tensors themselves. Raises TrainingError for an entry that is no strided tensor."""
    state = module.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            got = str(value.layout) if isinstance(value, Tensor) else type(value).__name__
            raise TrainingError(
                f"{type(module).__name__}: state {name!r} must be a strided tensor to be saved, got {got}; "
                "hold it as strided tensors, or train without a folder",
                name=name,
                got=got,
            )
    return state


def find_ties(state: Tensors) -> dict[str, str]:
    """{second name of a tensor: its first name}."""
    first: dict[int, str] = {}
    return {name: first[id(t)] for name, t in state.items() if first.setdefault(id(t), name) != name}


def pack_module(module: nn.Module) -> tuple[Tensors, Numbers]:
    """Tensors of the module, each once, and the table of its ties."""
    state = named_state(module)
    ties = find_ties(state)
    return {f"module/{name}": t.detach() for name, t in state.items() if name not in ties}, dict(ties)


def module_differences(module: nn.Module, tensors: Tensors, ties: Numbers) -> list[str]:
    """Every difference of names, shapes, dtypes and ties between the module and saved tensors."""
    state = named_state(module)
    then = {name.removeprefix("module/"): t for name, t in tensors.items() if name.startswith("module/")}
    then.update({name: then[first] for name, first in ties.items()})
    found = mapping_differences(describe_tensors(then), describe_tensors(state))
    return found or mapping_differences(ties, find_ties(state), "tie of ")


def describe_tensors(tensors: Tensors) -> dict[str, str]:
    return {name: f"{tuple(t.shape)} {t.dtype}" for name, t in tensors.items()}


def mapping_differences(then: Mapping[str, object], now: Mapping[str, object], prefix: str = "") -> list[str]:
    """One line a key whose values differ: `key then, now value`."""
    keys = [*now, *(key for key in then if key not in now)]
    found = []
    for key in keys:
        old, new = (str(side[key]) if key in side else "absent" for side in (then, now))
        if old != new:
            found.append(f"{prefix}{key} {old}, now {new}")
    return found


def restore_module(module: nn.Module, tensors: Tensors) -> None:
    """Copy saved values into the module's own tensors, so ties and the optimiser's references survive."""
    with torch.no_grad():
        for name, tensor in named_state(module).items():
            if f"module/{name}" in tensors:  # a second name is written through its first
                tensor.copy_(tensors[f"module/{name}"])


def parameter_names(module: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in module.named_parameters()}


def split(who: str, prefix: str, mapping: Mapping[str, object]) -> tuple[Tensors, Numbers]:
    """Tensors of a mapping under `prefix/key`, and its numbers. Raises TrainingError for anything else."""
    tensors: Tensors = {}
    numbers: Numbers = {}
    for key, value in mapping.items():
        if isinstance(value, Tensor) and value.layout == torch.strided:
            tensors[f"{prefix}/{key}"] = value.detach()
        elif is_plain(value):
            numbers[key] = value
        else:
            raise TrainingError(
                f"{who}: state {key!r} must be a tensor or a number to be saved, got {type(value).__name__}; "
                "use another optimiser, or train without a folder",
                key=key,
                got=type(value).__name__,
            )
    return tensors, numbers


def is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(is_plain(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str))


def pack_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module) -> tuple[Tensors, Numbers]:
    """State by parameter name and the param groups. Raises TrainingError for what is no tensor or number."""
    who, names = f"optimizer {type(optimizer).__name__}", parameter_names(module)
    tensors: Tensors = {}
    state: dict[str, object] = {}
    for parameter, mapping in optimizer.state.items():
        if parameter not in names:
            got = f"{parameter!r}" if isinstance(parameter, str) else type(parameter).__name__
            raise TrainingError(
                f"{who}: state must belong to the module's parameters to be saved, got state of {got}; "
                "use another optimiser, or train without a folder",
                got=got,
            )
        name = names[parameter]
        found, numbers = split(who, f"optimizer/{name}", mapping)
        tensors.update(found)
        state[name] = {"tensors": [key for key in mapping if key not in numbers], "numbers": numbers}
    groups = []
    for position, group in enumerate(optimizer.param_groups):
        scalars = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        found, numbers = split(who, f"group/{position}", scalars)
        tensors.update(found)
        members = [names.get(parameter, "not in the module") for parameter in group["params"]]
        groups.append(
            {"parameters": members, "tensors": [k for k in scalars if k not in numbers], "numbers": numbers}
        )
    return tensors, {"state": state, "groups": groups}


def optimizer_differences(optimizer: torch.optim.Optimizer, module: nn.Module, numbers: Numbers) -> list[str]:
    """Every difference of the parameters each group holds."""
    names = parameter_names(module)
    then = {f"group {i}": group["parameters"] for i, group in enumerate(numbers["groups"])}
    groups = optimizer.param_groups
    now = {f"group {i}": [names.get(p) for p in group["params"]] for i, group in enumerate(groups)}
    return mapping_differences(then, now, "optimizer ")


def restore_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Tensors, numbers: Numbers
) -> None:
    """Put state and group values back, bit for bit (torch's own loading may cast the state's dtype)."""
    names = parameter_names(module)
    optimizer.state.clear()
    for position, (group, saved) in enumerate(zip(optimizer.param_groups, numbers["groups"], strict=True)):
        group.update(as_tuples(saved["numbers"]))
        group.update({key: tensors[f"group/{position}/{key}"] for key in saved["tensors"]})
        # Step counters live on the CPU unless the optimiser runs wholly on the device.
        on_device = bool(group.get("capturable") or group.get("fused"))
        for parameter in group["params"]:
            name = names[parameter]
            if name in numbers["state"]:
                entry = numbers["state"][name]
                values = {key: tensors[f"optimizer/{name}/{key}"] for key in entry["tensors"]}
                placed = {k: t.to(parameter.device) if t.ndim or on_device else t for k, t in values.items()}
                optimizer.state[parameter] = {**placed, **as_tuples(entry["numbers"])}


def as_tuples(numbers: Numbers) -> Numbers:
    """JSON lists back as the tuples they were."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in numbers.items()}
