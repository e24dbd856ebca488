"""Triton's interpreter made to run under NumPy ≥ 2.4: integers of arrays with one number, masks of dtype bool.

Imported by tests that run where TRITON_INTERPRET=1; without it nothing is changed.
"""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def repair() -> None:
    """Loop bounds and indices that are such arrays become integers."""
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch
    builder = interpreter.InterpreterBuilder
    for name, place in (("create_masked_load", 1), ("create_masked_store", 2)):
        setattr(builder, name, _masked(getattr(builder, name), place))


def _masked(write, place):
    """A masked load or store whose mask, its argument at `place`, is bool."""

    def run(self, *arguments):
        arguments[place].data = arguments[place].data.astype(bool)
        return write(self, *arguments)

    return run


if INTERPRETED:
    repair()
