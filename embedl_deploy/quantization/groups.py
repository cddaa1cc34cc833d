"""Groups of neighbouring weights of one output, each with a scale of its own."""

import torch
from torch import Tensor


def in_groups(weight: Tensor, axis: int, size: int) -> Tensor:
    """Returns ``weight`` with one group per row, shape (outputs · groups per output, size).

    The weights of one output are laid out in a row, input features first, and cut every ``size``.

    Args:
        weight: At least two-dimensional.
        axis: Counts outputs.
        size: Divides the weights of one output.
    """
    return weight.movedim(axis, 0).reshape(-1, size)


def out_of_groups(groups: Tensor, axis: int, shape: torch.Size) -> Tensor:
    """Returns what ``in_groups`` laid out in the shape of the weight again."""
    others = [count for place, count in enumerate(shape) if place != axis]
    return groups.reshape(shape[axis], *others).movedim(0, axis)


def scale_of_each(scale: Tensor, axis: int, shape: torch.Size, size: int) -> Tensor:
    """Returns the scale of each weight, of shape ``shape``.

    Args:
        scale: One per group, shape (outputs, groups per output).
        axis: Counts outputs.
        shape: Of the weight.
        size: Weights per group.
    """
    return out_of_groups(scale.reshape(-1, 1).expand(-1, size), axis, shape)
