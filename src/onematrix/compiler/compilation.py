"""om.compile: a program, or a module that holds one, as a flat torch module."""

from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from onematrix.compiler.choice import (
    choose,
    choose_source,
    program_key,
    remember,
    remembered,
)
from onematrix.compiler.form import QUESTIONS, Form
from onematrix.compiler.module import Compiled
from onematrix.compiler.native import Native, agrees
from onematrix.compiler.pipeline import Trace, lower
from onematrix.compiler.proof import prove as prove_equal
from onematrix.converters.conversion import convert
from onematrix.errors import CompileError
from onematrix.programs.iterated import Iterated
from onematrix.programs.program import Program
from onematrix.records.choices import choices_folder


def compile(
    program: Program | nn.Module,
    *inputs: Tensor,
    prove: bool = True,
    measure: bool = True,
    explain: bool = False,
    implicit: bool = False,
    never_empty: bool = False,
) -> Compiled:
    """The program as a flat, differentiable nn.Module: emit ∘ lower, with the same Parameter objects.

    program: an om.Program, a module that holds one (om.Iterated), or any module `om.convert` can read, whose
    Parameter objects are shared; a compiled module is returned as it is.
    inputs: example inputs; with them merges and kernels are chosen by measured time (measure=True), and what
    was chosen is remembered per machine under $ONEMATRIX_CACHE. Without them, or with measure=False, the choice
    depends on the program alone. prove=True compares outputs and gradients with the interpreter on small and
    edge inputs and raises CompileError on any difference. explain=True prints what each pass did, the cost
    before and after, and what was measured. implicit=True: loops until they stand still give the gradient of the
    fixed point (one more evaluation and a solve) instead of that through all their rounds.
    never_empty=True: you know that no row of attention is masked entirely; there softmax gives nan, torch's
    kernel 0. It is then used under masks only a call knows, too.
    Raises CompileError, and what the program raises for inputs that do not fit.

    >>> import torch, onematrix as om
    >>> from onematrix.networks import mlp
    >>> net = om.compile(mlp([4, 8, 2], generator=torch.Generator().manual_seed(0)))
    >>> net(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    """
    if isinstance(program, Compiled):
        return program
    source = program if isinstance(program, nn.Module) and not isinstance(program, Iterated) else None
    program = _program_of(program, inputs)
    _check_devices(program)
    trace, notes = Trace(), list[str]()
    lowered = lower(program, trace)
    plain = Form(implicit=implicit, never_empty=never_empty)
    compiled = Compiled(program, lowered, plain)
    if inputs:
        compiled(*inputs)  # names what does not fit before anything is measured
    if inputs and measure:
        compiled = _measured(program, compiled, inputs, source, notes)
    if prove:
        # Equal to the rounds only where they have converged, and to softmax only where a key is left.
        exact_form = replace(compiled.form, implicit=False, never_empty=False)
        prove_equal(program, lowered, lambda exact, low: Compiled(exact, low, exact_form))
    if explain:
        print(explanation(program, compiled, trace, notes))
    return compiled


def _measured(
    program: Program,
    plain: Compiled,
    inputs: tuple[Tensor, ...],
    source: nn.Module | None,
    notes: list[str],
) -> Compiled:
    """The fastest form for these inputs, measured or remembered; the source module is one of them."""
    native = None if plain.form.implicit else _candidate(plain, inputs, source)

    def build(form: Form) -> Compiled:
        return plain if form == plain.form else plain.in_form(form, native if form.native else None)

    text = f"{plain.lowered.text()}{plain.form}{[] if native is None else _kinds(native.module)}"
    key = program_key(program, inputs, text)
    found = remembered(choices_folder(), key, plain.form)
    if isinstance(found, Form):
        notes.append("forms: remembered")
        return build(found)
    if isinstance(found, str):
        notes.append(found)
    questions = [name for name in QUESTIONS if _differs(plain, name)]
    form, trials = choose(plain.form, build, questions, inputs)
    if native is not None:
        form, more = choose_source(form, build, inputs)
        trials += more
    notes += [str(trial) for trial in trials]
    notes += filter(None, [remember(choices_folder(), key, form)])
    return build(form)


def _kinds(module: nn.Module) -> list[str]:
    """The classes of a module and of those in it: what runs, where two modules are one program."""
    return [f"{type(m).__module__}.{type(m).__qualname__}" for m in module.modules()]


def _candidate(plain: Compiled, inputs: tuple[Tensor, ...], source: nn.Module | None) -> Native | None:
    """The source module where it may run instead: same outputs, same gradients, no state."""
    native = None if source is None else plain.find_native(source)
    if native is None:
        return None
    with torch.no_grad():
        same = agrees(native.run(plain._bound(), inputs), plain(*inputs), inputs)
    return native if same else None


def _differs(plain: Compiled, question: str) -> bool:
    """Whether the answer changes the code at all."""
    return not plain.is_written_alike(replace(plain.form, **{question: False}))


def explanation(program: Program, compiled: Compiled, trace: Trace, notes: list[str]) -> str:
    """What each pass did, products, multiply-adds, bytes … before and after, and what was refused and measured."""
    sizes = dict.fromkeys(program.free_sizes(), 8)
    before, after = program.counts(**sizes).work, compiled.lowered.counts(**sizes).work
    fixed = ", ".join(f"{name} = {size}" for name, size in sizes.items())
    lines = [
        str(trace),
        "",
        f"{'':<16}{'before':>14}{'after':>14}" + (f"   per sample, {fixed}" if fixed else ""),
    ]
    for what in ("products", "multiply_adds", "activated", "joined"):
        lines.append(f"{what.replace('_', '-'):<16}{getattr(before, what):>14,}{getattr(after, what):>14,}")
    each = (program.dtype or torch.get_default_dtype()).itemsize
    bytes_before, bytes_after = (work.moved * each for work in (before, after))
    lines.append(f"{'bytes moved':<16}{bytes_before:>14,}{bytes_after:>14,}")
    found = [*compiled.notes, *notes]
    return "\n".join([*lines, *(["", *found] if found else [])])


def _program_of(value: object, inputs: tuple[Tensor, ...]) -> Program:
    if isinstance(value, Program):
        return value
    if isinstance(value, Iterated):
        _refuse_hooks(value)
        return value.program
    if isinstance(value, nn.Module):
        _refuse_hooks(value)
        if not inputs:
            raise CompileError(
                f"compile: {type(value).__name__} is converted by running it; give example inputs, as in "
                "om.compile(module, x)"
            )
        devices = {x.device.type for x in inputs if isinstance(x, Tensor) and not x.is_meta}
        with ExitStack() as plain:
            for device in devices:  # what autocast does to dtypes is no part of a program
                plain.enter_context(torch.autocast(device, enabled=False))
            return convert(value, *inputs)
    raise CompileError(f"compile: an om.Program or nn.Module was needed, got {type(value).__name__}")


DEVICES = ("cpu", "cuda", "meta")


def _check_devices(program: Program) -> None:
    """Raise CompileError where the numbers stand on several devices, or on one no code was tried on."""
    places: dict[torch.device, str] = {}
    for name, tensor in program.parameters.items():
        places.setdefault(tensor.device, name)
    if unknown := next((d for d in places if d.type not in DEVICES), None):
        raise CompileError(
            f"compile: {places[unknown]!r} is on {unknown}; supported are {', '.join(DEVICES)}: move the program "
            "there, or keep om.Iterated, which runs wherever torch does"
        )
    if len(places) > 1:
        shown = ", ".join(f"{name!r} on {device}" for device, name in places.items())
        raise CompileError(f"compile: one device was needed, got {shown}; move them with .to(device)")


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _refuse_hooks(module: nn.Module) -> None:
    """Raise CompileError where a hook would no longer run."""
    for kind in HOOKS:
        if getattr(nn.modules.module, f"_global{kind}"):
            raise CompileError(
                f"compile: there are{kind.replace('_', ' ')} of all modules, which a compiled program would not "
                "call for those it is made of; remove them, or compile before they are registered"
            )
    for name, inner in module.named_modules():
        for kind in HOOKS:
            if getattr(inner, kind, None):
                raise CompileError(
                    f"compile: {name or type(inner).__name__} has {kind.strip('_').replace('_', ' ')}, which a "
                    "compiled program would not call; remove them, or keep om.Iterated"
                )
