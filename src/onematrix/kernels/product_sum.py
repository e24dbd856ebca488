"""A product added to what is there already, as one call where that keeps the dtype of the sum."""

import torch
from torch import Tensor


def add_product(total: Tensor, x: Tensor, turned: Tensor, ratio: float = 1) -> Tensor:
    """total + ratio · x turned.

    total: (B, m) or what repeats to it. x: (B, n). turned: (n, m), a weight's transpose. Under autocast the product
    alone is of the narrow dtype and the sum of the wider of both: torch.addmm would round the total, which is a
    residual stream or the state of a recurrence. B m n multiply-adds.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     add_product(torch.ones(1, 1), torch.ones(1, 2), torch.ones(2, 1)).dtype
    torch.float32
    """
    if (
        torch._C._is_any_autocast_enabled()
    ):  # for whatever device: a tenth of a microsecond, as torch's own cells ask
        return torch.add(total, x @ turned, alpha=ratio)
    return torch.addmm(total, x, turned) if ratio == 1 else torch.addmm(total, x, turned, alpha=ratio)
