"""What a fit accepts: a real, finite, non-empty matrix, and a gram of its width."""

import torch
from torch import Tensor

from onematrix.errors import FitError


def check_matrix(who: str, dense: Tensor, gram: Tensor | None) -> None:
    """Raise FitError unless the matrix is real, finite and not empty, and the gram fits it."""
    if dense.dim() != 2 or 0 in dense.shape:
        raise FitError(f"{who}: a non-empty matrix was needed, got shape {tuple(dense.shape)}")
    if not dense.is_floating_point():
        raise FitError(f"{who}: a real matrix was needed, got {dense.dtype}; convert it with .float()")
    if dense.is_meta:
        raise FitError(f"{who}: a matrix with numbers was needed, got one on the meta device")
    if bad := int((~torch.isfinite(dense)).sum()):
        raise FitError(f"{who}: {bad} of {dense.numel()} entries are nan or infinite", bad=bad)
    if gram is not None:
        _check_gram(who, dense, gram)


def _check_gram(who: str, dense: Tensor, gram: Tensor) -> None:
    n = dense.shape[1]
    if gram.shape != (n, n):
        raise FitError(f"{who}: gram must be {n}×{n} (XᵀX of the inputs), got {tuple(gram.shape)}")
    if not gram.is_floating_point() or gram.device != dense.device:
        raise FitError(
            f"{who}: gram must be real and on {dense.device} as the matrix is, got {gram.dtype} on {gram.device}"
        )
    if bad := int((~torch.isfinite(gram)).sum()):
        raise FitError(f"{who}: {bad} of {gram.numel()} entries of gram are nan or infinite", bad=bad)
