"""Every family of operators; importing them fills the table."""

from onematrix.converters import (
    arithmetic,
    attention,
    convolutions,
    elementwise,
    indexing,
    norms,
    pooling,
    products,
    rearrangements,
    recurrence,
    reductions,
)

FAMILIES = (
    arithmetic,
    attention,
    convolutions,
    elementwise,
    indexing,
    norms,
    pooling,
    products,
    rearrangements,
    recurrence,
    reductions,
)
