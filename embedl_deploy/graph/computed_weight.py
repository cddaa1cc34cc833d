# pyright: reportPrivateUsage=false
# torch keeps the tables of a module private; its own parametrize reaches for them, too.
"""Layers whose weight or bias is computed from other parameters in every call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

COMPUTATIONS = {"weight": "weight_computation", "bias": "bias_computation"}
"""Names of the children that compute a weight and a bias."""


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

    factors: Tensor | None
    """What the tensor is multiplied by, ``None`` for nothing; saved in the ``state_dict``."""

    def __init__(self, tensors: Sequence[Tensor], steps: tuple[Step, ...]) -> None:
        super().__init__()
        self.names = tuple(f"input_{number}" for number in range(len(tensors)))
        self.steps = steps
        for name, tensor in zip(self.names, tensors, strict=True):
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor, persistent=False)
        self.register_buffer("factors", None)

    def forward(self) -> Tensor:
        """Returns the tensor."""
        values: list[object] = [getattr(self, name) for name in self.names]

        def value(ref: Ref) -> object:
            return values[ref.position]

        for step in self.steps:
            args, kwargs = tree_map_only(Ref, value, (step.args, step.kwargs))
            values.append(step.target(*args, **kwargs))
        result = cast("Tensor", values[-1])
        return result if self.factors is None else (result * self.factors).to(result.dtype)

    def scale(self, factors: Tensor) -> None:
        """Multiplies the tensor by ``factors`` from now on; what it is made of stays as it is.

        Args:
            factors: Of a shape that broadcasts to that of the tensor. Those of several calls
                multiply.
        """
        factors = factors.detach().float()
        self.factors = factors.clone() if self.factors is None else self.factors * factors


class _Computed:
    """Gives a layer a weight, a bias or both that are computed when they are read."""

    @property
    def weight(self) -> Tensor:
        """The weight: normalised, standardised, or a part of a larger one."""
        weight = _read(self, "weight")
        assert weight is not None
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The bias, if there is one."""
        return _read(self, "bias")


def _read(layer: object, slot: str) -> Tensor | None:
    module = cast("nn.Module", layer)
    computation = computation_of(module, slot)
    return module._parameters[slot] if computation is None else computation()


def computation_of(layer: nn.Module, slot: str) -> Computation | None:
    """Returns what computes the weight or the bias of ``layer``, ``None`` if it is stored.

    Args:
        layer: Any module.
        slot: ``"weight"`` or ``"bias"``.
    """
    name = COMPUTATIONS.get(slot, "")
    found = layer._modules.get(name) if isinstance(layer, _Computed) else None
    return found if isinstance(found, Computation) else None


class ComputedConv1d(_Computed, nn.Conv1d):  # pyright: ignore[reportIncompatibleVariableOverride]  # read only
    """``nn.Conv1d`` with computed parameters."""


class ComputedConv2d(_Computed, nn.Conv2d):  # pyright: ignore[reportIncompatibleVariableOverride]  # read only
    """``nn.Conv2d`` with computed parameters."""


class ComputedConv3d(_Computed, nn.Conv3d):  # pyright: ignore[reportIncompatibleVariableOverride]  # read only
    """``nn.Conv3d`` with computed parameters."""


class ComputedConvTranspose1d(_Computed, nn.ConvTranspose1d):  # pyright: ignore[reportIncompatibleVariableOverride]  # read only
    """``nn.ConvTranspose1d`` with computed parameters."""


class ComputedConvTranspose2d(_Computed, nn.ConvTranspose2d):  # pyright: ignore[reportIncompatibleVariableOverride]  # read only
    """``nn.ConvTranspose2d`` with computed parameters."""


class ComputedConvTranspose3d(_Computed, nn.ConvTranspose3d):  # pyright: ignore[reportIncompatibleVariableOverride]  # read only
    """``nn.ConvTranspose3d`` with computed parameters."""


class ComputedLinear(_Computed, nn.Linear):  # pyright: ignore[reportIncompatibleVariableOverride]  # read only
    """``nn.Linear`` with computed parameters."""


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: ComputedConv1d,
    nn.Conv2d: ComputedConv2d,
    nn.Conv3d: ComputedConv3d,
    nn.ConvTranspose1d: ComputedConvTranspose1d,
    nn.ConvTranspose2d: ComputedConvTranspose2d,
    nn.ConvTranspose3d: ComputedConvTranspose3d,
    nn.Linear: ComputedLinear,
}


def compute_parameters(layer: nn.Module, computations: Mapping[str, Computation]) -> None:
    """Makes ``layer`` compute its weight or its bias; its own ones go."""
    layer.__class__ = _CLASSES[type(layer)]
    for slot, computation in computations.items():
        del layer._parameters[slot]
        layer.add_module(COMPUTATIONS[slot], computation)
