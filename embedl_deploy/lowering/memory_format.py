"""The memory layouts that engines are built for."""

import torch
from torch import Tensor


def format_of(value: object) -> torch.memory_format | None:
    """Returns the memory layout that an engine gets an example in; None for no tensor."""
    if not isinstance(value, Tensor) or not value.dim():
        return None
    if value.is_contiguous():
        return torch.contiguous_format
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    if value.dim() == 5 and value.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return torch.contiguous_format


def in_format(value: object) -> object:
    """Returns an example in the memory layout that ``format_of`` names."""
    layout = format_of(value)
    if layout is None or not isinstance(value, Tensor):
        return value
    return value.contiguous(memory_format=layout)
