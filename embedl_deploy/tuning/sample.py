"""One recorded call: its arguments, copied."""

from collections.abc import Callable, Mapping
from copy import Error, deepcopy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from embedl_deploy.tracing.structures import pack, unpack


@dataclass(frozen=True)
class Sample:
    """The arguments of one call; defaults are left out."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Sample":
        """Returns a sample with containers of its own, whose tensors are ``change`` of these.

        What else is in it is copied where it can be: an empty cache is filled by the call.
        """
        packed, template = pack((self.args, dict(self.kwargs)))
        leaves, spec = pytree.tree_flatten(packed)
        changed = [change(leaf) if isinstance(leaf, Tensor) else _copied(leaf) for leaf in leaves]
        args, kwargs = cast(
            "tuple[tuple[object, ...], dict[str, object]]",
            unpack(pytree.tree_unflatten(changed, spec), template),
        )
        return Sample(args, kwargs)

    def copied(self, device: torch.device | str = "cpu") -> "Sample":
        """Returns a copy that shares nothing, on ``device``."""
        return self.mapped(lambda tensor: tensor.detach().to(device, copy=True))

    def leaves(self) -> list[object]:
        """Returns tensors and Python values from the left, classes taken apart."""
        return leaves_of((self.args, dict(self.kwargs)))


def _copied(value: object) -> object:
    if isinstance(value, nn.Module):
        return value
    try:
        return deepcopy(value)
    except (TypeError, ValueError, RuntimeError, AttributeError, Error):
        return value  # a lock, a file, a tensor inside autograd


def leaves_of(value: object) -> list[object]:
    """Returns what a nested value holds, classes that pytree does not know taken apart."""
    return cast("list[object]", pytree.tree_leaves(pack(value)[0]))


def call(forward: Callable[..., object], sample: Sample) -> object:
    """Runs ``forward`` on a sample, without gradients."""
    with torch.no_grad():
        return forward(*sample.args, **sample.kwargs)
