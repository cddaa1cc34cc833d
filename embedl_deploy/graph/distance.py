"""How far two values lie apart."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def relative_error(found: object, expected: object) -> float:
    """Returns the largest relative error over the tensors of two equal structures.

        error = ‖found - expected‖ / ‖expected‖        (2-norms, in float64, per tensor)

    Equal infinities and NaNs in both count as equal; one-sided ones give infinity, as do unequal
    structures, shapes or dtypes. Integer and boolean tensors are compared the same way.
    """
    pairs = tree_leaves(found), tree_leaves(expected)
    if len(pairs[0]) != len(pairs[1]):
        return float("inf")
    errors = [_leaf_error(a, b) for a, b in zip(*pairs, strict=True)]
    return max(errors, default=0.0)


def _leaf_error(found: object, expected: object) -> float:
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor):
        same = type(found) is type(expected) and bool(found == expected)
        return 0.0 if same else float("inf")
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    a, b = found.detach().to(torch.float64), expected.detach().to(torch.float64)
    odd = ~torch.isfinite(b) | ~torch.isfinite(a)
    if bool(odd.any()):
        if not torch.equal(a[odd].nan_to_num(0.5), b[odd].nan_to_num(0.5)):
            return float("inf")
        a, b = a[~odd], b[~odd]
    if a.numel() == 0:
        return 0.0
    gap, size = (float(torch.sqrt((vector * vector).sum())) for vector in (a - b, b))
    return gap / size if size > 0 else gap
