"""The first lines of a compiled function: its inputs, looked at, and what the code asks about them.

Inputs that are plainly what they should be cost a few comparisons; the module, which knows the program, is asked
about all others and says what does not fit.
"""

import re

from onematrix.compiler.code import size_text
from onematrix.compiler.rows import Rows
from onematrix.programs.part import Part
from onematrix.programs.program import Program


def entry_lines(program: Program, rows: Rows, sizes: dict[str, str], body: str) -> list[str]:
    """The lines of the inputs; sizes: the variable of each free size; body: the code that follows."""
    count = len(program.inputs)
    wrong = [f"len(inputs) != {count}", "given is not None"]
    lines = [f"({', '.join(f'in{p}' for p in range(count))},) = inputs"]
    tensors = " and ".join(f"isinstance(in{p}, Tensor)" for p in range(count))
    lines += [f"if not ({tensors}): module._check(inputs, given)"] if count else []
    missing = dict(sizes)
    for place, name in enumerate(program.inputs):
        if program.parts[name].stored_shape == (1,):  # one number per sample may come as (batch,)
            lines.append(f"in{place} = in{place}.unsqueeze(1) if in{place}.dim() == 1 else in{place}")
        wrong += _doubts(place, program.parts[name], sizes, missing, lines)
    lines += [f"n_{name} = module._size({name!r}, inputs, given)" for name in missing]
    weight = next((t for t in program.parameters.values() if t.is_floating_point()), None)
    floating = rows.tensor_text(weight) if weight is not None else None
    for place, name in enumerate(program.inputs):
        part = program.parts[name]
        if part.kind == "real" and part.dtype is None and floating:
            wrong.append(f"in{place}.dtype is not {floating}.dtype")
    lines.insert(0, f"if {wrong[0]}: module._check(inputs, given)")
    lines.append(f"if {' or '.join(wrong[1:])}: module._check(inputs, given)")
    dtype = f"{floating}.dtype" if floating else "module._dtype_of(inputs)"
    asked = {
        "batch": "in0.shape[0]",
        "device": "in0.device",
        "dtype": dtype,
        "plain": "not torch.is_grad_enabled()",
        "run": "module._run(inputs, given, seed, first)",
    }
    return lines + [f"{name} = {text}" for name, text in asked.items() if re.search(rf"\b{name}\b", body)]


def _doubts(
    place: int, part: Part, sizes: dict[str, str], missing: dict[str, str], lines: list[str]
) -> list[str]:
    """Conditions under which an input has to be looked at closely; named sizes are read on the way."""
    shape = part.stored_shape
    lines.append(f"shape{place} = in{place}.shape")
    found = [f"len(shape{place}) != {len(shape) + 1}"]
    if place:
        found.append(f"shape{place}[0] != shape0[0]")
    for axis, size in enumerate(shape, start=1):
        text = f"shape{place}[{axis}]"
        if isinstance(size, str) and size in missing and size.isidentifier():
            lines.append(f"{missing.pop(size)} = {text} if len(shape{place}) == {len(shape) + 1} else -1")
        else:
            found.append(f"{text} != {size_text(size, sizes)}")
    if part.kind == "index":
        found.append("True")  # its numbers are looked at
    elif part.dtype is not None:
        found.append(f"in{place}.dtype is not torch.{part.dtype}")
    return found
