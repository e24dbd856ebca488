"""Loops whose state is elementwise, and what of their ticks one elementwise kernel computes beside it."""

from onematrix.compiler.graph import Given, Result, Term, Value
from onematrix.compiler.lifting import Body
from onematrix.compiler.places import is_constant, is_one
from onematrix.kernels.elementwise_code import ACTIVATIONS, JOINS
from onematrix.programs.joins import Join
from onematrix.structures.base import Structure
from onematrix.structures.diagonal import Diagonal
from onematrix.structures.identity import Identity, Scaled


def kept_elementwise(body: Body, needed: set[int]) -> set[int]:
    """Ids of the rows that change with the state and are elementwise; empty where the state itself is not.

    needed: ids of the values the carried parts need.
    """
    header, carries = body.region.header, body.region.carries
    shapes = {c.param.part.shape for c in carries}
    shape = next(iter(shapes), ())
    if header.ticks is not None or len(shapes) != 1 or len(shape) != 1 or not isinstance(shape[0], int):
        return set()
    found = set[int]()
    for value in body.values:  # operands first
        if id(value) in body.varying and _is_elementwise(value, shape, body, found):
            found.add(id(value))
    needed_rows = {id(v) for v in body.values if id(v) in needed and id(v) in body.varying}
    return found if needed_rows <= found else set()


def _is_elementwise(value: Value, shape: tuple[object, ...], body: Body, found: set[int]) -> bool:
    if value.part.shape != shape or value.part.kind != "real" or value.part.dtype is not None:
        return False
    if isinstance(value, Given):
        return value.role == "carried"
    if isinstance(value, Result) or value.activation.name not in ACTIVATIONS:
        return False
    joins = value.join is None or (isinstance(value.join, Join) and value.join.name in JOINS)
    return joins and all(_is_read(term, shape, body, found) for terms in value.sums for term in terms)


def _is_read(term: Term, shape: tuple[object, ...], body: Body, found: set[int]) -> bool:
    """Whether a tick reads the term number by number: a constant, a fed value or a row of this tick."""
    value = term.value
    if is_one(value) or is_constant(value):
        return True
    fed = isinstance(value, Given) and value.role == "peeled" and value.scope is body.region.scope
    if not (id(value) in found or fed) or value.part.shape != shape:
        return False
    return term.block is None or _is_diagonal(term.block.structure)


def _is_diagonal(a: Structure) -> bool:
    return _is_diagonal(a.inner) if isinstance(a, Scaled) else isinstance(a, Diagonal | Identity)
