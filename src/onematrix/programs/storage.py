"""om.save and om.load: a program or one of its modules as a folder, without pickle.

onematrix.json: format, kind, the program's text; config.json: what the folder holds, for people;
model.safetensors: the tensors by name. No code and no name in a file is ever run or imported.
"""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from onematrix.errors import FormatError, OneMatrixError
from onematrix.programs.block_matrix import BlockMatrix
from onematrix.programs.iterated import Iterated
from onematrix.programs.linear import Linear
from onematrix.programs.parse import parse
from onematrix.programs.part import ONE
from onematrix.programs.program import Program
from onematrix.programs.schedule import Step
from onematrix.records.files import make_folder, read_json, replacing, write_json
from onematrix.structures.dense import Dense

FORMAT = 1


def save(what: Program | nn.Module, folder: str | Path) -> Path:
    """Write a Program, om.Iterated or om.Linear to a folder; each file atomically.

    Raises OneMatrixError for other modules and for folders that cannot be written.
    """
    kind, program = _as_program(what)
    folder = make_folder(folder)
    with replacing(folder / "model.safetensors") as temporary:
        save_file({n: t.detach().cpu().contiguous() for n, t in program.parameters.items()}, temporary)
    write_json(folder / "onematrix.json", {"format": FORMAT, "kind": kind, "program": program.text()})
    config = {
        "library": "onematrix",
        "kind": kind,
        "inputs": program.inputs,
        "outputs": program.outputs,
        "parts": {n: list(p.shape) for n, p in program.parts.items()},
        "stored_numbers": sum(t.numel() for t in program.parameters.values() if t.is_floating_point()),
    }
    write_json(folder / "config.json", config)
    return folder


def load(folder: str | Path, into: nn.Module | None = None) -> Program | nn.Module:
    """What `save` wrote: a Program, om.Iterated or om.Linear; or `into` with its tensors filled by name.

    Raises FormatError when a file is missing, damaged, or of another format.
    """
    folder = Path(folder)
    for name in ("onematrix.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FormatError(f"{folder}: there is no {name}; a folder written by om.save was needed")
    try:
        tensors = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise FormatError(
            f"{folder / 'model.safetensors'}: damaged ({error}); save the model again"
        ) from error
    if into is not None:
        return _fill(into, tensors)
    header = read_json(folder / "onematrix.json")
    if header.get("format") != FORMAT:
        raise FormatError(f"{folder}: format {header.get('format')!r}, this version reads format {FORMAT}")
    program = parse(str(header.get("program")), tensors)
    kind = header.get("kind")
    if kind == "iterated":
        return Iterated(program)
    return _as_linear(program) if kind == "linear" else program


def _as_program(what: Program | nn.Module) -> tuple[str, Program]:
    if isinstance(what, Program):
        return "program", what
    if isinstance(what, Iterated):
        return "iterated", what.program
    if isinstance(what, Linear):
        return "linear", linear_program(what)
    raise OneMatrixError(
        f"save: a Program, om.Iterated or om.Linear was needed, got {type(what).__name__}; "
        "safetensors.torch.save_model writes any torch module"
    )


def linear_program(layer: Linear) -> Program:
    """y = A x + b as a program of one step."""
    structure = layer.structure
    m, n = structure.fixed_shape
    blocks = {("y", "x"): structure}
    if layer.bias is not None:
        blocks["y", ONE] = Dense(layer.bias.reshape(m, 1))
    return Program(Step(BlockMatrix(blocks, {"x": n, "y": m})), ["x"], ["y"])


def _as_linear(program: Program) -> Linear:
    blocks = {column: block.structure for _, column, block in program.blocks()}
    bias = blocks.get(ONE)
    return Linear(blocks["x"], bias.weight.reshape(-1) if isinstance(bias, Dense) else None)


def _fill(module: nn.Module, tensors: dict) -> nn.Module:  # type: ignore[type-arg]
    needed = dict(module.state_dict())
    if missing := sorted(set(needed) ^ set(tensors)):
        raise FormatError(f"load(into={type(module).__name__}): names differ at {', '.join(missing[:5])}")
    for name, tensor in needed.items():
        if tensor.shape != tensors[name].shape:
            raise FormatError(
                f"load: {name} is {tuple(tensor.shape)} in the module, {tuple(tensors[name].shape)} in the file"
            )
    module.load_state_dict(tensors)
    return module
