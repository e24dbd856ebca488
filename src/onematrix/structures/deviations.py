"""How large the random cores of a product are drawn: kept variance, and one rate of learning for all.

A core that sums over f inputs needs 1/f of a rate for the same movement of the output (`learning_rates` in
`family_product`), and one that is c times as large needs c times the rate of Adam. Cores of deviation κ √f
therefore all need the same; κ is what the variance of the product leaves: Π κ √f = Π 1/√f.
"""

import math
from collections.abc import Sequence


def core_deviations(inputs: Sequence[int]) -> list[float]:
    """Standard deviations κ √f_t of k cores that sum over f_t inputs, κ = Π f_t^(−1/k).

    The product keeps the variance, as with deviations 1/√f_t. k = 1 gives 1/√f.

    >>> [round(size, 6) for size in core_deviations([4, 16])]
    [0.25, 0.5]
    """
    kappa = math.exp(-math.fsum(map(math.log, inputs)) / len(inputs))
    return [kappa * math.sqrt(count) for count in inputs]
