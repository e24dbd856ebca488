"""Whether tensors are plain values, so that a kernel may read their memory and save what it likes."""

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad

PLAIN = (Tensor, torch.nn.Parameter)


def is_ordinary(*tensors: Tensor) -> bool:
    """No tracing, no fake or distributed tensors, no transform, no forward-mode derivative under way.

    >>> is_ordinary(torch.ones(2)), torch.func.vmap(lambda x: x * is_ordinary(x))(torch.ones(2))
    (True, tensor([0., 0.]))
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if forward_ad._current_level >= 0:
        return False
    for t in tensors:
        if type(t) not in PLAIN or t.is_meta or is_legacy_batchedtensor(t):  # of grad(is_grads_batched=True)
            return False
    return True
