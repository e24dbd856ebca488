"""om.compile: a program, or a module that holds one, as a flat torch module."""

from torch import Tensor, nn

from onematrix.compiler.module import Compiled
from onematrix.compiler.pipeline import Trace, lower
from onematrix.compiler.proof import prove as prove_equal
from onematrix.errors import CompileError
from onematrix.programs.iterated import Iterated
from onematrix.programs.program import Program


def compile(
    program: Program | Iterated | Compiled, *inputs: Tensor, prove: bool = True, explain: bool = False
) -> Compiled:
    """The program as a flat, differentiable nn.Module: emit ∘ lower, with the same Parameter objects.

    program: an om.Program, or a module that holds one (om.Iterated); a compiled module is returned as it is.
    inputs: example inputs, checked by one run. prove=True compares outputs and gradients with the interpreter
    on small and edge inputs and raises CompileError on any difference. explain=True prints what each pass did
    and the cost before and after.
    Raises CompileError, and what the program raises for inputs that do not fit.

    >>> import torch, onematrix as om
    >>> from onematrix.networks import mlp
    >>> net = om.compile(mlp([4, 8, 2], generator=torch.Generator().manual_seed(0)))
    >>> net(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    """
    if isinstance(program, Compiled):
        return program
    program = _program_of(program)
    trace = Trace()
    compiled = Compiled(program, lower(program, trace))
    if prove:
        prove_equal(program, lambda exact: Compiled(exact, lower(exact)))
    if inputs:
        compiled(*inputs)
    if explain:
        print(explanation(program, compiled, trace))
    return compiled


def explanation(program: Program, compiled: Compiled, trace: Trace) -> str:
    """What each pass did, and products, multiply-adds and joined numbers before and after."""
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
    return "\n".join(lines)


def _program_of(value: object) -> Program:
    if isinstance(value, Program):
        return value
    if isinstance(value, Iterated):
        return value.program
    if isinstance(value, nn.Module):
        raise CompileError(
            f"compile: an om.Program or om.Iterated was needed, got {type(value).__name__}; convert it first"
        )
    raise CompileError(f"compile: an om.Program was needed, got {type(value).__name__}")
