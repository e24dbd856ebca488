"""What the code of a loop calls at its ticks."""

import torch

from onematrix.errors import ShapeError


def past_the_end(
    series: tuple[torch.Tensor, ...], ticks: int, value: torch.Tensor, place: int, after: str, name: str
) -> tuple[torch.Tensor, ...]:
    """The ticks of a series, those past its end zero or the last one."""
    more = ticks - len(series)
    if more <= 0:
        return series[:ticks]
    if after == "zero":
        return series + (value.new_zeros(*value.shape[:place], *value.shape[place + 1 :]),) * more
    if not series:
        raise ShapeError(f"nothing to hold: {name!r} has no tick and {ticks} are asked")
    return series + (series[-1],) * more


def hold(counts: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """The new value where the sample counts, else the old one."""
    mask = counts.reshape(counts.shape[0], *[1] * (new.dim() - 1))
    return torch.where(mask if mask.dtype == torch.bool else mask != 0, new, old)
