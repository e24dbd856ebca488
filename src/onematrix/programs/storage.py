"""om.save and om.load: a program or one of its modules as a folder, without pickle.

onematrix.json: format, kind, the program's text; config.json: what the folder holds, for people;
model.safetensors: the tensors by name. No code and no name in a file is ever run or imported.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

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
KINDS = ("program", "iterated", "linear")


def save(what: Program | nn.Module, folder: str | Path) -> Path:
    """Write a Program, om.Iterated or om.Linear to a folder; each file atomically.

    Raises OneMatrixError for other modules and for folders that cannot be written.
    """
    kind, program = _as_program(what)
    if opaque := program.opaque():
        name, function = next(iter(opaque.items()))
        raise FormatError(
            f"save: {len(opaque)} rows are functions no file can hold, first {name!r}: {function.name} "
            f"({function.reason}); save the source module instead",
            rows=list(opaque),
        )
    folder = make_folder(folder)
    with replacing(folder / "model.safetensors") as temporary:
        # safetensors refuses tensors that share memory, as two views of one weight do
        save_file({n: t.detach().cpu().clone() for n, t in program.parameters.items()}, temporary)
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
    text, kind = header.get("program"), header.get("kind")
    if not isinstance(text, str) or kind not in KINDS:
        raise FormatError(
            f"{folder / 'onematrix.json'}: a program's text and a kind of {', '.join(KINDS)} were needed, "
            f"got {type(text).__name__} and kind {kind!r}"
        )
    try:
        program = parse(text, tensors)
    except FormatError as error:
        raise FormatError(f"{folder / 'onematrix.json'}: {error}", **error.facts) from error
    if kind == "iterated":
        return Iterated(program)
    return _as_linear(program, folder) if kind == "linear" else program


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


def _as_linear(program: Program, folder: Path) -> Linear:
    blocks = {column: block.structure for _, column, block in program.blocks()}
    bias = blocks.pop(ONE, None)
    if list(blocks) != ["x"] or not isinstance(bias, Dense | None):
        raise FormatError(f"{folder}: kind 'linear' needs y = A x or y = A x + b, got {program!r}")
    return Linear(blocks["x"], None if bias is None else bias.weight.reshape(-1))


def _fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The module with its parameters and buffers overwritten by the tensors of the same names."""
    who, needed = f"load(into={type(module).__name__})", dict(module.state_dict())
    if missing := sorted(set(needed) ^ set(tensors)):
        raise FormatError(f"{who}: names differ at {', '.join(missing[:5])}")
    for name, tensor in needed.items():
        ours, theirs = _kind(tensor), _kind(tensors[name])
        if ours != theirs:
            raise FormatError(f"{who}: {name} is {ours} in the module, {theirs} in the file")
    module.load_state_dict(tensors)
    return module


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
