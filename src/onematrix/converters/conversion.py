"""convert: any torch module as a program that computes the same."""

import operator as python_operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import onematrix.converters.families  # noqa: F401 - fills the table of operators
from onematrix.converters.builder import Builder, Unsupported
from onematrix.converters.elementwise import activate
from onematrix.converters.exporting import Free, export_graph, module_path, source_line, usual_free
from onematrix.converters.layout import ordered
from onematrix.converters.opaque_rows import SizeText, write_opaque
from onematrix.converters.operators import find
from onematrix.converters.result import Result
from onematrix.converters.sizes import BATCH_NAME, show, symbol
from onematrix.converters.values import BATCH, Value
from onematrix.errors import ConversionError, OneMatrixError
from onematrix.programs.flow import parts_read, written
from onematrix.programs.part import ONE, Part
from onematrix.programs.program import Program
from onematrix.programs.schedule import Node, Seq
from onematrix.structures.sizes import Size

SILENT = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "_assert_async")


def convert(
    module: nn.Module, *example_inputs: Tensor, free: Free | None = None, **named_inputs: Tensor
) -> Program:
    """The program that computes what the module computes, over the same parameter objects.

    example_inputs, named_inputs: one tensor per input, (batch, …); their shapes count, not their numbers. The
    batch stays free, and so does the sequence of (batch, time) integers and (batch, time, features) numbers, named
    "time", "time_2", …; free={input: {dimension: name}} says which instead, free={} none. Parts carry the paths
    of the modules; `program.source_names` gives the parameters' names; what no row says is `program.opaque()`.
    An output is (batch, …) whatever place the module gives the batch, also one that is the same for all samples.
    Raises ConversionError naming module path,
    operator, source line and remedy.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> convert(net, torch.zeros(2, 4)).counts().multiply_adds
    58
    """
    if not isinstance(module, nn.Module):
        raise ConversionError(
            f"convert: a torch module was needed, got {type(module).__name__}; wrap a function in an nn.Module"
        )
    exported = export_graph(module, example_inputs, named_inputs, free)
    try:
        return _Converter(module, exported, free).program()
    except ConversionError:
        raise
    except OneMatrixError as error:
        raise ConversionError(f"convert({type(module).__name__}): {error}", **error.facts) from error


class _Converter:
    def __init__(self, module: nn.Module, exported: torch.export.ExportedProgram, free: Free | None) -> None:
        self.exported = exported
        self.names: dict[Any, Any] = {}  # symbol of torch → expression of named sizes
        self.values: dict[torch.fx.Node, Any] = {}
        parameters = dict(module.named_parameters(remove_duplicate=False))
        buffers = dict(module.named_buffers(remove_duplicate=False))
        self.held: dict[str, Tensor] = {**exported.constants, **buffers, **parameters}
        self.first = {id(t): n for n, t in [*module.named_buffers(), *module.named_parameters()]}  # of ties
        self.builder = Builder(_dtype(parameters.values(), exported))
        self.free = free
        signature = exported.graph_signature  # its tables are made anew whenever they are read
        self.user_inputs = frozenset(signature.user_inputs)
        self.source_of: dict[str, str] = {
            **signature.inputs_to_lifted_tensor_constants,
            **signature.inputs_to_buffers,
            **signature.inputs_to_parameters,
        }

    def program(self) -> Program:
        inputs: list[str] = []
        outputs: list[str] = []
        self._name_sizes()
        for node in self.exported.graph.nodes:
            b = self.builder
            path = module_path(node)
            b.stem = path or node.name
            b.where = f"{path or 'the module'}: {node.target} ({source_line(node)})"
            try:
                if node.op == "placeholder":
                    self.values[node] = self._placeholder(node, inputs)
                elif node.op == "call_function":
                    self.values[node] = self._call(node)
                elif node.op == "output":
                    outputs = self._outputs(node)
            except ConversionError as error:
                if b.where in str(error):
                    raise
                raise ConversionError(f"{b.where}: {error}", **error.facts) from error
            except OneMatrixError as error:
                raise ConversionError(f"{b.where}: {error}", **error.facts) from error
            except AssertionError as error:
                raise ConversionError(f"{b.where}: {error}") from error
        return self._finish(inputs, outputs)

    def _finish(self, inputs: list[str], outputs: list[str]) -> Program:
        b = self.builder
        nodes = alive(b.nodes, outputs)
        used = {name for node in nodes for name in parts_read(node) | written(node)}
        b.parts = {n: p for n, p in b.parts.items() if n in used or n in (*inputs, *outputs) or n == ONE}
        program = Program(nodes[0] if len(nodes) == 1 else Seq(*nodes), inputs, outputs, b.parts)
        sources = {id(t): name for t, name in b.sources.values()}
        program.source_names = {n: sources[id(t)] for n, t in program.parameters.items() if id(t) in sources}
        return program

    # Sizes.

    def _name_sizes(self) -> None:
        """Dimension 0 of every input is the batch; other free dimensions get names."""
        taken: set[str] = {BATCH_NAME}
        for node in self.exported.graph.nodes:
            spec = self._input_name(node)
            if spec is None:
                continue
            value = node.meta["val"]
            given = usual_free(value) if self.free is None else self.free.get(spec, {})
            for place, size in enumerate(value.shape):
                if isinstance(size, int):
                    continue
                symbols = size.node.expr.free_symbols
                for s in symbols - self.names.keys():
                    wanted = BATCH_NAME if place == 0 else given.get(place, "time")
                    self.names[s] = symbol(wanted if place == 0 else _unused(wanted, taken))
            if isinstance(value.shape[0] if value.dim() else 1, int):
                raise ConversionError(
                    f"input {spec!r}: the graph fixes its batch at {value.shape[0]}; "
                    "the code must not depend on the number of samples"
                )

    def _input_name(self, node: torch.fx.Node) -> str | None:
        """The name of a user's input; None for other nodes."""
        user = node.op == "placeholder" and node.name in self.user_inputs
        return node.name if user else None

    def size(self, value: Any) -> Size:
        """An integer of the graph as a size."""
        if isinstance(value, int):
            return value
        expression = value.node.expr if hasattr(value, "node") else value
        if unknown := expression.free_symbols - self.names.keys():
            raise ConversionError(
                f"{self.builder.where}: the size {unknown} depends on the numbers of the data"
            )
        return show(expression.subs(self.names))

    # Nodes.

    def _placeholder(self, node: torch.fx.Node, inputs: list[str]) -> Any:
        if node.name in self.source_of:
            name = self.source_of[node.name]
            tensor = self.held[name]
            return self._parameter(tensor, self.first.get(id(tensor), name))
        value = node.meta["val"]
        b, sizes = self.builder, [self.size(s) for s in value.shape]
        name = b.new_name(node.name)
        text = None if value.dtype == b.dtype else str(value.dtype).removeprefix("torch.")
        b.parts[name] = Part(tuple(sizes[1:]) or (1,), "real", text)
        inputs.append(name)
        b.inputs.append(name)
        axes = tuple(s for s in sizes[1:] if s != 1)
        if axes != tuple(sizes[1:]) and len(sizes) > 1:
            b.stem = name
            name = b.row(axes, value.dtype, [b.take(name)])
        numbers = iter(range(len(axes)))
        dims = ((BATCH,), *(() if s == 1 else (next(numbers),) for s in sizes[1:]))
        return Value(name, axes, dims, value.dtype)

    def _parameter(self, tensor: Tensor, name: str) -> Value:
        """A parameter not yet written. Axes of size 1 are left out; its order stays."""
        axes = tuple(s for s in tensor.shape if s != 1)
        numbers = iter(range(len(axes)))
        dims = tuple(() if s == 1 else (next(numbers),) for s in tensor.shape)
        return Value(None, axes, dims, tensor.dtype, tensor=tensor, name=name)

    def _call(self, node: torch.fx.Node) -> Any:
        value = node.meta.get("val")
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._region(node)
        if node.target is python_operator.getitem:
            items = self.values[node.args[0]]
            return items[node.args[1]] if node.args[1] < len(items) else None
        if isinstance(value, int | torch.SymInt):
            return self.size(value)
        if isinstance(value, float | bool | torch.SymBool | torch.SymFloat):
            return None
        if str(node.target).removeprefix("aten.").split(".")[0] in SILENT:
            return None
        args, kwargs = self._argument(list(node.args)), self._argument(dict(node.kwargs))
        for t in _tensors(value):
            if t.dtype.is_complex:
                raise ConversionError(
                    f"{self.builder.where} gives complex numbers ({t.dtype}), which no part holds; "
                    "write it with real and imaginary parts, as torch.view_as_real does"
                )
        results = [Result(tuple(self.size(s) for s in t.shape), t.dtype) for t in _tensors(value)]
        return self._written(node, args, kwargs, results, isinstance(value, list | tuple))

    def _region(self, node: torch.fx.Node) -> list[Any]:
        """A part of the graph without gradients, or under another setting of autocast: its nodes, one by one."""
        inner = next(a for a in node.args if isinstance(a, torch.fx.Node) and a.op == "get_attr")
        graph = getattr(self.exported.graph_module, str(inner.target)).graph
        given = iter([self.values[a] for a in node.args[node.args.index(inner) + 1 :]])  # type: ignore[index]
        b, outputs = self.builder, []
        for each in graph.nodes:
            b.stem = module_path(each) or b.stem
            if each.op == "placeholder":
                self.values[each] = next(given)
            elif each.op == "call_function":
                self.values[each] = self._call(each)
            elif each.op == "output":
                outputs = [self.values[v] for v in each.args[0]]
        frozen = "grad_enabled" in str(node.target) and node.args[0] is False
        return [_frozen(b, v) if frozen else v for v in outputs]

    def _written(
        self, node: torch.fx.Node, args: Any, kwargs: Any, results: list[Result], several: bool
    ) -> Any:
        write, before = find(node.target), len(self.builder.nodes)
        reason = "no converter knows this operator"
        if write is not None and results:
            try:
                found = write(self.builder, results[0], *args, **kwargs)
                _check(self.builder.where, found, results)
                return found
            except Unsupported as error:
                reason = str(error)
                del self.builder.nodes[before:]
                self.builder.forget()
        outputs = [(r.sizes, r.dtype) for r in results]
        made = write_opaque(self.builder, node.target, _marked(args), _marked(kwargs), outputs, reason)
        return made if several else made[0]

    def _argument(self, x: Any) -> Any:
        if isinstance(x, torch.fx.Node):
            if (value := self.values[x]) is None:
                raise ConversionError(f"{self.builder.where} reads {x.name}, which no row of a program gives")
            return value
        if isinstance(x, torch.SymInt):
            return self.size(x)
        if isinstance(x, list | tuple):
            return [self._argument(v) for v in x]
        return {k: self._argument(v) for k, v in x.items()} if isinstance(x, dict) else x

    def _outputs(self, node: torch.fx.Node) -> list[str]:
        wanted = set(self.exported.graph_signature.user_outputs)
        names: list[str] = []
        (results,) = node.args
        assert isinstance(results, list | tuple), "a graph returns a tuple"
        for result in results:
            if isinstance(result, torch.fx.Node) and result.name in wanted:
                self.builder.stem = module_path(result) or "output"
                names.append(self._output(self.values[result], names))
        return names

    def _output(self, value: Value, names: Sequence[str]) -> str:
        """A part of the shape the module returns, without the batch."""
        b = self.builder
        shape: list[Size] = []
        for dim in value.dims:
            if BATCH in dim[1:]:
                raise ConversionError(f"{b.where}: the batch is inside a dimension of an output")
            if dim != (BATCH,):
                rest = tuple(a for a in dim if a != BATCH)
                shape.append(value.with_dims((rest,)).dimension(0))
        x = ordered(b, value)
        exact = b.parts[x.column].shape == (tuple(shape) or (1,))
        if exact and x.part not in names and b.nodes and x.column in b.written_parts():
            return x.column
        return b.row(tuple(shape), x.dtype, [b.take(x.column)], stem=b.stem if exact else f"{b.stem}.out")


def alive(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """The nodes whose parts reach an output, in their order."""
    live, kept = set(outputs), []
    for node in reversed(nodes):
        if written(node) & live:
            kept.append(node)
            live |= parts_read(node)
    return kept[::-1]


def _frozen(b: Builder, value: Any) -> Any:
    """The value without its gradient; one that depends on nothing has none."""
    if not isinstance(value, Value) or value.part is None or not value.dtype.is_floating_point:
        return value
    return activate(b, value, "stop")


def _check(where: str, found: Any, results: Sequence[Result]) -> None:
    """Our own impossibility: a value of other sizes than the graph's."""
    values = found if isinstance(found, list | tuple) else [found]
    for value, result in zip(values, results, strict=False):
        if value is None:
            continue
        sizes = tuple(value.dimension(i) for i in range(value.rank))
        if any(isinstance(s, str) and isinstance(t, int) for s, t in zip(sizes, result.sizes, strict=False)):
            raise ConversionError(
                f"{where}: the code fixes a free size, {sizes} comes out as {result.sizes}; "
                "write x.shape[…] or −1 in place of the number"
            )
        if sizes != result.sizes or value.dtype != result.dtype:
            raise ConversionError(f"{where}: rows give {sizes} {value.dtype}, the graph {result}")


def _marked(x: Any) -> Any:
    """Arguments with texts that are sizes told from other texts."""
    if isinstance(x, str) and not isinstance(x, SizeText):
        return SizeText(x) if any(c.isalpha() for c in x) and _is_size(x) else x
    if isinstance(x, list | tuple):
        return type(x)(_marked(v) for v in x)
    return {k: _marked(v) for k, v in x.items()} if isinstance(x, dict) else x


def _is_size(text: str) -> bool:
    from onematrix.converters.sizes import _EXPRESSIONS

    return text in _EXPRESSIONS


def _tensors(value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in _tensors(v)] if isinstance(value, list | tuple) else []


def _dtype(parameters: Any, exported: torch.export.ExportedProgram) -> torch.dtype:
    """The dtype of the program's numbers: that of the first parameter, else of the first input."""
    for tensor in parameters:
        if tensor.is_floating_point():
            return tensor.dtype
    for node in exported.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, Tensor) and value.is_floating_point():
            return value.dtype
    return torch.get_default_dtype()


def _unused(name: str, taken: set[str]) -> str:
    number, candidate = 2, name
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    taken.add(candidate)
    return candidate
