"""onematrix train: train a network on a task and keep it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from onematrix.cli.options import Device, Json, Out, Seed, Threads, check_device, set_threads
from onematrix.errors import OneMatrixError


def train_model(
    model: Annotated[
        str,
        typer.Argument(
            help="A structure for the iterated network, package.module:callable, or a saved folder."
        ),
    ] = "low_rank",
    task: Annotated[
        str, typer.Option(help="anomaly (which of ten images is odd) or classify (which digit).")
    ] = "anomaly",
    data: Annotated[str, typer.Option(help="Source of images: digits or mnist.")] = "digits",
    budget: Annotated[float, typer.Option(help="E of the iterated network's blocks, in (0, 1].")] = 0.2,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps (default 600).")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train this long instead.")] = None,
    loss: Annotated[str, typer.Option(help="cross_entropy, mse or softmax_mse.")] = "cross_entropy",
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-3,
    batch: Annotated[int, typer.Option(min=1, help="Samples per step.")] = 100,
    resume: Annotated[bool, typer.Option(help="Go on from the folder's checkpoint.")] = True,
    out: Out = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Train a network; checkpoints resume exactly after a kill, the result is a folder `view` and om.load read.

    Example: onematrix train low_rank --budget 0.1 --steps 300 --out runs/low-rank
    """
    from onematrix.programs.storage import save
    from onematrix.records.files import write_json
    from onematrix.training import Recipe, Seconds, Steps, train

    if task not in ("anomaly", "classify"):
        raise typer.BadParameter(f"--task {task!r}: anomaly or classify was needed")
    if steps is not None and minutes is not None:
        raise typer.BadParameter("give --steps or --minutes, not both")
    set_threads(threads)
    train_set, test_set, pixels = _load(task, data, seed)
    net = _network(model, pixels, budget, seed).to(check_device(device))
    folder = out or Path("runs") / model.replace(":", "-").replace("/", "-")
    history = train(
        net,
        train_set,
        Recipe(loss=loss, learning_rate=learning_rate, batch=batch, seed=seed),
        budget=Seconds(60 * minutes) if minutes is not None else Steps(steps or 600),
        folder=folder,
        resume=resume,
        evaluate=test_set,
        progress=False if as_json else None,
        label=model,
    )
    result = {
        "steps": history.steps,
        "seconds": history.seconds,
        "interrupted": history.interrupted,
        "resumed_from": history.resumed_from,
        "evaluation": history.evaluation,
        "folder": str(folder),
    }
    _keep(net, folder, save)
    write_json(folder / "result.json", result)
    _print(result, as_json)
    if history.interrupted:
        raise typer.Exit(130)


def _load(task: str, data: str, seed: int) -> tuple[Any, Any, int]:
    from onematrix.datasets.splits import load_source, random_anomaly_splits
    from onematrix.training import Examples

    if task == "anomaly":
        size = 20 if data == "digits" else 50
        train_set, test_set = random_anomaly_splits(source=data, size=size, seed=seed)
        return train_set.cached(), test_set.cached(), size * size
    pair = [Examples(images.pixels.flatten(1).float() / 255, images.labels) for images in load_source(data)]
    return pair[0], pair[1], pair[0].batch([0])[0].shape[1]


def _network(model: str, pixels: int, budget: float, seed: int) -> Any:
    from torch import nn

    from onematrix.cli.model import find_model
    from onematrix.experiments.anomaly import Variant
    from onematrix.programs.iterated import Iterated
    from onematrix.programs.program import Program
    from onematrix.structures import STRUCTURES

    if model in STRUCTURES:
        return Iterated(Variant(model, budget, seed=seed).build(pixels))
    found = find_model(model)
    if isinstance(found, Program):
        found = Iterated(found)
    if not isinstance(found, nn.Module):
        raise OneMatrixError(f"{model} is {type(found).__name__}; a program or a torch module was needed")
    return found


def _keep(net: Any, folder: Path, save: Any) -> None:
    from onematrix.programs.iterated import Iterated
    from onematrix.programs.linear import Linear

    if isinstance(net, Iterated | Linear):
        save(net, folder)


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2))
        return
    numbers = ", ".join(f"{k} {v:.4g}" for k, v in result["evaluation"].items())
    print(
        f"{result['steps']} steps in {result['seconds']:.1f} s; test {numbers or 'not evaluated'}; {result['folder']}"
    )
