"""Convolutions whose weight is computed from other parameters in every call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

COMPUTATION = "weight_computation"
"""Name of the child that computes a weight."""


@dataclass(frozen=True)
class Ref:
    """A value of a computation, by its position among inputs and steps."""

    position: int


@dataclass(frozen=True)
class Step:
    """One call of a computation."""

    target: Callable[..., object]

    args: tuple[object, ...]
    """Literals, and a ``Ref`` for each value computed before."""

    kwargs: dict[str, object]


class Computation(nn.Module):
    """Computes one tensor from parameters and buffers; the last step is the result.

    Args:
        tensors: What the steps read, in order: parameters stay parameters.
        steps: The calls.
    """

    def __init__(self, tensors: Sequence[Tensor], steps: tuple[Step, ...]) -> None:
        super().__init__()
        self.names = tuple(f"input_{number}" for number in range(len(tensors)))
        self.steps = steps
        for name, tensor in zip(self.names, tensors, strict=True):
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor, persistent=False)

    def forward(self) -> Tensor:
        """Returns the tensor."""
        values: list[object] = [getattr(self, name) for name in self.names]

        def value(ref: Ref) -> object:
            return values[ref.position]

        for step in self.steps:
            args, kwargs = tree_map_only(Ref, value, (step.args, step.kwargs))
            values.append(step.target(*args, **kwargs))
        return cast("Tensor", values[-1])


class _ComputedWeight:
    """Gives a layer a weight that is computed when it is read."""

    @property
    def weight(self) -> Tensor:
        """The weight: weight normalisation, standardisation or another parametrisation."""
        computed: Tensor = cast("nn.Module", self).get_submodule(COMPUTATION)()
        return computed


class ComputedConv1d(_ComputedWeight, nn.Conv1d):  # pyright: ignore[reportIncompatibleVariableOverride]  # read only
    """``nn.Conv1d`` with a computed weight."""


class ComputedConv2d(_ComputedWeight, nn.Conv2d):  # pyright: ignore[reportIncompatibleVariableOverride]  # read only
    """``nn.Conv2d`` with a computed weight."""


class ComputedConv3d(_ComputedWeight, nn.Conv3d):  # pyright: ignore[reportIncompatibleVariableOverride]  # read only
    """``nn.Conv3d`` with a computed weight."""


class ComputedConvTranspose1d(_ComputedWeight, nn.ConvTranspose1d):  # pyright: ignore[reportIncompatibleVariableOverride]  # read only
    """``nn.ConvTranspose1d`` with a computed weight."""


class ComputedConvTranspose2d(_ComputedWeight, nn.ConvTranspose2d):  # pyright: ignore[reportIncompatibleVariableOverride]  # read only
    """``nn.ConvTranspose2d`` with a computed weight."""


class ComputedConvTranspose3d(_ComputedWeight, nn.ConvTranspose3d):  # pyright: ignore[reportIncompatibleVariableOverride]  # read only
    """``nn.ConvTranspose3d`` with a computed weight."""


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: ComputedConv1d,
    nn.Conv2d: ComputedConv2d,
    nn.Conv3d: ComputedConv3d,
    nn.ConvTranspose1d: ComputedConvTranspose1d,
    nn.ConvTranspose2d: ComputedConvTranspose2d,
    nn.ConvTranspose3d: ComputedConvTranspose3d,
}


def compute_weight(convolution: nn.Module, computation: Computation) -> None:
    """Makes ``convolution`` compute its weight; its own one goes."""
    del convolution._parameters["weight"]  # pyright: ignore[reportPrivateUsage]  # what torch's parametrize does
    convolution.__class__ = _CLASSES[type(convolution)]
    convolution.add_module(COMPUTATION, computation)
