"""onematrix fit: which structure holds a matrix of a file best, at what error and what speed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onematrix.cli.options import Json, Threads, set_threads
from onematrix.errors import DataError, FormatError

if TYPE_CHECKING:
    from torch import Tensor

LISTED = 30  # names an error shows


def fit(
    file: Annotated[Path, typer.Argument(help="A .safetensors file.", show_default=False)],
    tensor: Annotated[
        str | None, typer.Option(help="Its matrix to fit; may be left out where there is one.")
    ] = None,
    budget: Annotated[float, typer.Option(help="E = stored numbers ÷ m n at most, in (0, 1].")] = 0.2,
    structure: Annotated[str | None, typer.Option(help="Only this structure; by default all.")] = None,
    seconds: Annotated[float, typer.Option(help="Time all fits share.")] = 30.0,
    batch: Annotated[int, typer.Option(help="Vectors per timed product.")] = 64,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder for the best fit as a layer, for om.load.", show_default=False
        ),
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Fit a matrix of a .safetensors file: error, stored numbers, work and measured time per structure.

    Half precision is fitted and kept in float32. --out keeps the structure of least error.

    Example: onematrix fit model.safetensors --tensor layers.0.weight --budget 0.2 --out layer-0
    """
    if out is not None and out.suffix == ".safetensors":
        raise typer.BadParameter(
            f"--out {out}: a folder is written (om.load reads it); name one without suffix"
        )
    matrix = read_matrix(file, tensor)
    set_threads(threads)
    from onematrix.learners.projection import compare_fits

    names = None if structure is None else [structure]
    table = compare_fits(
        matrix, budget, seconds=seconds, batch=batch, names=names, progress=False if as_json else None
    )
    saved = None if out is None else _save(table[0].fit.structure, out)
    if as_json:
        facts = {"file": str(file), "tensor": tensor, **table.facts(), "saved": saved and str(saved)}
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    print(table)
    if saved is not None:
        print(
            f"{table[0].name}, error {table[0].error:.4g}: saved in {saved}; om.load({str(saved)!r}) is a layer"
        )


def _save(structure: object, folder: Path) -> Path:
    from onematrix.programs.linear import Linear
    from onematrix.programs.storage import save

    return save(Linear(structure), folder)  # type: ignore[arg-type]


def read_matrix(file: Path, name: str | None) -> "Tensor":
    """The matrix of that name, in float32 where the file has half precision; the only one when not named.

    Raises DataError listing the matrices there are, FormatError for what is no such file.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise DataError(f"{file}: no such file; a .safetensors file was needed", path=str(file))
    try:
        with safe_open(file, framework="pt") as tensors:
            shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in sorted(tensors.keys())}
            matrix: Tensor = tensors.get_tensor(_choose(file, shapes, name))
    except SafetensorError as error:
        raise FormatError(f"{file}: not a .safetensors file, or damaged ({error})", path=str(file)) from error
    return matrix.float() if matrix.dtype.itemsize < 4 and matrix.is_floating_point() else matrix


def _choose(file: Path, shapes: dict[str, tuple[int, ...]], name: str | None) -> str:
    matrices = [key for key, shape in shapes.items() if len(shape) == 2]
    if name is None and len(matrices) == 1:
        return matrices[0]
    if name in matrices:
        return name
    shown = ", ".join(f"{key} {'×'.join(map(str, shapes[key]))}" for key in matrices[:LISTED])
    more = f" and {len(matrices) - LISTED} more" if len(matrices) > LISTED else ""
    there = f"matrices there are: {shown or 'none'}{more}"
    if name is None:
        raise DataError(f"{file}: name one with --tensor; {there}", path=str(file))
    if name in shapes:
        raise DataError(f"{file}: {name} has shape {shapes[name]}, a matrix was needed; {there}", name=name)
    raise DataError(f"{file}: no tensor is called {name!r}; {there}", name=name)
