"""A budget is an upper bound on the stored numbers of a fit, whatever sizes are asked for beside it."""

import pytest

from onematrix.errors import BudgetError
from onematrix.structures import STRUCTURES
from onematrix.structures.tree import stored_numbers
from structure_cases import normal

BESIDE = {  # sizes for 16×16 that store more than a tenth of it
    "blast": {"rank": 8, "blocks": (4, 4)},
    "block_sparse": {"blocks": 10, "tile": (4, 4)},
    "block_tensor_train": {"rank": 4},
    "canonical": {"modes": (4, 4), "rank": 3},
    "csr": {"nonzeros": 200},
    "low_rank": {"rank": 8},
    "masked": {"nonzeros": 200},
    "monarch": {"blocks": 4, "rank": 4},
    "tensor_train": {"rank": 8},
}


@pytest.mark.parametrize("name", BESIDE)
def test_sizes_asked_for_beside_a_budget_stay_within_it(name):
    target = normal(16, 16)
    numbers = stored_numbers(STRUCTURES[name].fit(target, seconds=1.0, **BESIDE[name]).structure)
    with pytest.raises(
        BudgetError, match=rf"{name} 16×16: .* store {numbers} numbers .*above budget 0.1;"
    ) as e:
        STRUCTURES[name].fit(target, 0.1, seconds=1.0, **BESIDE[name])
    assert (e.value.numbers, e.value.budget) == (numbers, 0.1)
    if numbers <= 256:
        assert STRUCTURES[name].fit(target, numbers / 256, seconds=1.0, **BESIDE[name]).error <= 1
