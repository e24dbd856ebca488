"""The portable dense recurrence: torch operations tick by tick, of any derivative, traceable."""

import torch
from torch import Tensor

from onematrix.kernels.dense_plan import Activations, DensePlan
from onematrix.kernels.product_sum import add_product
from onematrix.programs.activations import RULES


def run_dense_by_torch(
    inputs: Tensor, weight: Tensor, init: Tensor, plan: DensePlan, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All states (ticks, B, n) and the final one, differentiable by autograd."""
    zero = inputs.new_zeros(1, inputs.shape[2])
    fed = plan.at_every_tick(inputs.unbind(0), zero)
    masks = None if valid is None else _masks(valid, plan)
    state, turned, states = init, weight.t(), {}
    for t in plan.order:
        if masks is None and plan.zero and t == plan.order[0]:
            state = states[t] = _activate(fed[t].expand_as(init), plan.activations)
        elif masks is None:
            state = states[t] = _activate(add_product(fed[t], state, turned), plan.activations)
        else:
            states[t], state = _chosen_tick(fed[t], state, turned, masks[t], plan.activations)
    final = init.clone() if state is init else state
    final = final if plan.read is None else final[:, slice(*plan.read)]
    if plan.last_only or not states:
        return init.new_empty(0, *init.shape), final
    return torch.stack([states[t] for t in range(plan.ticks)]), final


def _masks(valid: Tensor, plan: DensePlan) -> list[Tensor]:
    """Of every tick, (B, 1)."""
    return plan.at_every_tick(valid.unsqueeze(-1).unbind(0), valid.new_zeros(valid.shape[1], 1))


def _chosen_tick(
    fed: Tensor, state: Tensor, turned: Tensor, mask: Tensor, activations: Activations
) -> tuple[Tensor, Tensor]:
    """Output and state where only the chosen samples step.

    What enters is chosen too, so that an infinite value or derivative of the others ends in a selection
    and not in a product with 0.
    """
    a, s = torch.where(mask, fed, 0.0), torch.where(mask, state, 0.0)
    new = _activate(add_product(a, s, turned), activations)
    return torch.where(mask, new, 0.0), torch.where(mask, new, state)


def _activate(total: Tensor, activations: Activations) -> Tensor:
    if len(activations) == 1:
        return RULES[activations[0][1]].function(total)
    slices = torch.split(total, [width for width, _ in activations], -1)
    return torch.cat([RULES[name].function(v) for (_, name), v in zip(activations, slices, strict=True)], -1)
