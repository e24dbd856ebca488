"""From a torch module to a graph of ATen operators, or an error that says what stands in the way."""

import inspect
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from onematrix.converters.kept_whole import kept_whole
from onematrix.converters.operators import find
from onematrix.errors import ConversionError

Free = Mapping[str, Mapping[int, str]]


def export_graph(
    module: nn.Module, inputs: Sequence[Tensor], named: Mapping[str, Tensor], free: Free | None
) -> torch.export.ExportedProgram:
    """The functional ATen graph; dimension 0 of every input free, and the further ones `free` names."""
    names = check_inputs(module, inputs, named)
    check_module(module)
    values = _batches([*inputs, *named.values()])
    if unknown := sorted(set(free or {}) - set(names)):
        raise ConversionError(
            f"convert: free names {unknown}, which are no inputs; inputs: {', '.join(names)}"
        )
    if free is None:
        free = {name: usual_free(x) for name, x in zip(names, values, strict=True)}
    try:
        return _export(module, values, names, len(inputs), free)
    except ConversionError:
        raise
    except Exception as error:
        if any(free.values()) and not _depends_on_data(error):
            try:
                return _export(module, values, names, len(inputs), {name: {} for name in names})
            except Exception:
                raise explained(module, error) from error
        raise explained(module, error) from error


def usual_free(x: Tensor) -> dict[int, str]:
    """The sequence dimension: the second of integers (batch, time), or of numbers (batch, time, features)."""
    sequence = (x.dim() == 2 and not x.is_floating_point()) or (x.dim() == 3 and x.is_floating_point())
    return {1: "time"} if sequence and x.shape[1] > 1 else {}


def _batches(values: Sequence[Tensor]) -> list[Tensor]:
    """Examples of two samples or more: an export with one would fix the batch at 1.

    Each is a tensor of its own: one given twice would become one input, read in both places.
    """
    seen: set[int] = set()
    made = []
    for x in values:
        own = x.clone() if id(x) in seen else x
        seen.add(id(x))
        made.append(own if x.shape[0] > 1 else torch.cat([x, x, x]))
    return made


def _export(
    module: nn.Module, values: Sequence[Tensor], names: Sequence[str], positional: int, free: Free
) -> torch.export.ExportedProgram:
    auto = torch.export.Dim.AUTO
    shapes = {n: {0: auto, **dict.fromkeys(free.get(n, {}), auto)} for n in names}
    signature = list(inspect.signature(module.forward).parameters.values())
    variadic = any(p.kind is p.VAR_POSITIONAL for p in signature)
    dynamic: Any = shapes
    if variadic:
        star = next(p.name for p in signature if p.kind is p.VAR_POSITIONAL)
        fixed = [p.name for p in signature if p.kind is p.POSITIONAL_OR_KEYWORD][:positional]
        rest = [shapes[n] for n in names[len(fixed) : positional]]
        dynamic = {n: shapes[n] for n in [*fixed, *names[positional:]]} | (
            {star: tuple(rest)} if rest else {}
        )
    args, kwargs = tuple(values[:positional]), dict(zip(names[positional:], values[positional:], strict=True))
    with kept_whole(module), _free_contractions():
        exported = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic, strict=False)
        check_mutations(exported)
        return _decomposed(exported)


@contextmanager
def _free_contractions() -> Iterator[None]:
    """Without the search for the best order of einsums of three and more: it fixes free sizes at the example's."""
    before = torch.backends.opt_einsum.enabled
    torch.backends.opt_einsum.enabled = False
    try:
        yield
    finally:
        torch.backends.opt_einsum.enabled = before


def _decomposed(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The graph without writes in place, and with torch's own definition of operators no converter knows.

    Retracing costs as much as the export, so that it is done for the graphs that need it alone.
    """
    if any(map(_writes, exported.graph.nodes)):
        exported = exported.run_decompositions({})
    unknown = {n.target for n in exported.graph.nodes if _unknown(n)}
    if not unknown:
        return exported
    table = {op: rule for op, rule in torch.export.default_decompositions().items() if op in unknown}
    return exported.run_decompositions(table) if table else exported


def _writes(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _unknown(node: torch.fx.Node) -> bool:
    op = isinstance(node.target, torch._ops.OpOverload) and not str(node.target).startswith("aten.sym_")
    return op and find(node.target) is None and "assert" not in str(node.target)


def check_inputs(module: nn.Module, inputs: Sequence[Any], named: Mapping[str, Any]) -> list[str]:
    """Names of the inputs. Raises ConversionError for a wrong number, and for what is no plain tensor."""
    who, signature = type(module).__name__, inspect.signature(module.forward)
    try:
        bound = signature.bind(*inputs, **named)
    except TypeError as error:
        wanted = [n for n, p in signature.parameters.items() if p.kind not in (p.VAR_KEYWORD,)]
        raise ConversionError(
            f"convert({who}): the module takes {len(wanted)} inputs ({', '.join(wanted)}), "
            f"got {len(inputs) + len(named)}: {error}; give one example tensor per input",
            needed=len(wanted),
            got=len(inputs) + len(named),
        ) from error
    names = []
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{name}_{i}" for i in range(len(value))]
        else:
            names += list(value) if kind is inspect.Parameter.VAR_KEYWORD else [name]
    if not names:
        raise ConversionError(f"convert({who}): at least one example input was needed, got none")
    for name, value in zip(names, [*inputs, *named.values()], strict=True):
        _check_tensor(f"convert({who}): input {name!r}", value)
        if value.dim() == 0:
            raise ConversionError(
                f"convert({who}): input {name!r} has no dimension; dimension 0 is the batch, give (batch, …)"
            )
    return names


def _check_tensor(who: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ConversionError(
            f"{who} is {type(value).__name__}, a tensor was needed; set it inside a small wrapper module instead"
        )
    if value.is_nested:
        raise ConversionError(f"{who} is a nested tensor; pad it to one length and give a mask")
    if value.is_quantized or str(value.dtype).startswith(("torch.q", "torch.float8")):
        raise ConversionError(f"{who} is quantised ({value.dtype}); call .dequantize() first")
    if value.dtype.is_complex:
        raise ConversionError(f"{who} is complex ({value.dtype}); give torch.view_as_real of it")
    if value.layout != torch.strided:
        raise ConversionError(f"{who} has layout {value.layout}; call .to_dense() first")


def check_module(module: nn.Module) -> None:
    """Raise ConversionError for parameters and layers that have no form as a program."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        _check_tensor(f"{name or type(module).__name__}", tensor)
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.max_norm is not None:
            raise ConversionError(
                f"{path or 'the module'}: {type(layer).__name__}(max_norm={layer.max_norm}) rewrites its weight "
                f"whenever it is read ({_definition(type(layer))}); renormalise it once and set max_norm=None",
                max_norm=layer.max_norm,
            )


def _definition(cls: type) -> str:
    try:
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return cls.__qualname__


def check_mutations(exported: torch.export.ExportedProgram) -> None:
    """Raise ConversionError where the graph writes into an input."""
    inputs = set(exported.graph_signature.user_inputs)
    for node in exported.graph.nodes:
        name = str(node.target)
        in_place = node.op == "call_function" and name.split(".")[-2:-1] and name.split(".")[-2].endswith("_")
        if in_place and not name.split(".")[-2].startswith("_") and node.args:
            source = _origin(node.args[0])
            if source in inputs:
                raise ConversionError(
                    f"{module_path(node) or 'the module'}: {name} writes into input {source!r} "
                    f"({source_line(node)}); write x = x.{name.split('.')[-2].rstrip('_')}(…) instead"
                )


def _origin(node: Any) -> str | None:
    """Name of the input a node is a view of."""
    while isinstance(node, torch.fx.Node):
        if node.op == "placeholder":
            return node.name
        views = (
            "view",
            "transpose",
            "select",
            "slice",
            "unsqueeze",
            "squeeze",
            "permute",
            "expand",
            "alias",
            "t",
        )
        if str(node.target).removeprefix("aten.").split(".")[0] not in views:
            return None
        node = node.args[0]
    return None


def module_path(node: torch.fx.Node) -> str:
    """Dotted path of the innermost module a node comes from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    paths = [path for path, kind in stack if isinstance(path, str) and "_empty_nn_module_stack" not in path]
    return paths[-1].replace("@", "_") if paths else ""


def source_line(node: torch.fx.Node) -> str:
    """File, line and text of the code a node comes from."""
    trace = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    for i in range(len(trace) - 1, -1, -1):
        if trace[i].startswith("File "):
            return f"{trace[i]}: {trace[i + 1] if i + 1 < len(trace) else ''}"
    return "source unknown"


DATA = ("data-dependent", "GuardOnDataDependent", "unbacked")


def _depends_on_data(error: BaseException) -> bool:
    return any(word in f"{type(error).__name__} {error}" for word in DATA)


def explained(module: nn.Module, error: BaseException) -> ConversionError:
    """The failure of an export as an error that names module path, operator, source line and remedy."""
    path, line = _place(module, error)
    text = str(error)
    operator = next(
        (w for w in text.replace("(", " ").split() if w.startswith(("aten.", "torch.ops."))), "export"
    )
    remedy = "keep that part outside the converted module, or fix a free dimension with free={}"
    if _depends_on_data(error):
        operator = "aten.item" if operator == "export" else operator
        remedy = "the graph may not depend on the data: use torch.where, or make the choice outside"
    first = next((s.strip() for s in text.splitlines() if s.strip()), type(error).__name__)
    return ConversionError(
        f"{path or type(module).__name__}: {operator} at {line} cannot be converted: {first[:300]}; {remedy}"
    )


def _place(module: nn.Module, error: BaseException) -> tuple[str, str]:
    """Path of the innermost module and the last line outside torch in the traceback of an error."""
    paths = {id(m): name for name, m in module.named_modules()}
    path, line = "", "unknown source"
    frames = traceback.walk_tb(error.__traceback__)
    for frame, number in frames:
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_varnames else None
        inside = "/torch/" in code.co_filename.replace("\\", "/") or "onematrix" in code.co_filename
        if isinstance(owner, nn.Module) and id(owner) in paths and code.co_name == "forward":
            path = paths[id(owner)]
        if not inside:
            text = traceback.linecache.getline(code.co_filename, number).strip()  # type: ignore[attr-defined]
            line = f"{code.co_filename}:{number}: {text}"
    return path, line
