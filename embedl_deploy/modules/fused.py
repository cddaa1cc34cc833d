"""What all fused modules share: parts by reference, and a slot for a weight quantizer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Fused(nn.Module):
    """Runs several modules, its parts, as the one thing that a target runs as one kernel.

    Parts are held by reference and are not children: they stay registered in the model under
    their own names, so ``state_dict`` keys, ties and parameter identity survive a fusion.
    """

    _part_names: tuple[str, ...] = ()

    def _hold(self, **parts: nn.Module | None) -> None:
        """Sets each part as a plain attribute, past ``nn.Module``'s registration of children."""
        for name, part in parts.items():
            object.__setattr__(self, name, part)
        present = tuple(name for name, part in parts.items() if part is not None)
        self._part_names = (*self._part_names, *present)
        self.training = self.parts[0].training

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The modules that this one runs, in order; present ones only."""
        return tuple(getattr(self, name) for name in self._part_names)


class WeightedFused(Fused):
    """A fused module around one weighted layer, whose weight can be quantized.

    Without ``weight_fake_quant`` it runs its parts in sequence, exactly as they ran before.
    With it, the weight that runs is the folded one, quantized: what the target will hold.
    """

    weight_fake_quant: Callable[[Tensor], Tensor] | None
    """Quantizes the folded weight, as a registered child module; ``None`` leaves it in float."""

    bias_correction: Tensor | None
    """Added to the bias where the weight is quantized, shape (out,); ``None`` for nothing."""

    def __init__(self) -> None:
        super().__init__()
        # Past ``nn.Module``'s own ways, which look each name up in all of its tables.
        self.__dict__["weight_fake_quant"] = None
        self._buffers["bias_correction"] = None

    @property
    def weighted(self) -> nn.Module:
        """The part that owns the weight."""
        raise NotImplementedError

    @property
    def weight_axis(self) -> int:
        """The axis of the folded weight that counts output channels."""
        return 0

    def folded_weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """Returns the weight and bias that will run, with a norm after the layer folded in."""
        raise NotImplementedError

    def quantized_bias(self, bias: Tensor | None) -> Tensor | None:
        """Returns the bias that runs with the quantized weight: ``bias`` plus its correction."""
        if self.bias_correction is None:
            return bias
        return self.bias_correction if bias is None else bias + self.bias_correction

    def layer_output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns what the weighted layer alone yields, before residual and activation."""
        raise NotImplementedError

    def run_parts(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Runs the parts in sequence."""
        raise NotImplementedError

    def run_folded(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        """Runs the module with ``weight`` and ``bias`` in place of its own folded ones."""
        raise NotImplementedError

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Runs the parts, or the folded and quantized weight where there is a quantizer."""
        if self.weight_fake_quant is None:
            return self.run_parts(x, residual)
        weight, bias = self.folded_weight_and_bias()
        return self.run_folded(
            x, self.weight_fake_quant(weight), self.quantized_bias(bias), residual
        )


def activate(activation: nn.Module | None, x: Tensor) -> Tensor:
    """Returns ``activation(x)``, or ``x`` where there is no activation."""
    if activation is None:
        return x
    y: Tensor = activation(x)
    return y


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype to fold parameters in: never narrower than float32."""
    return torch.promote_types(dtype, torch.float32)


def optional_parameter(module: nn.Module, name: str) -> Tensor | None:
    """Returns a parameter that the module may lack; torch's stubs call it always there."""
    found: object = getattr(module, name)
    return found if isinstance(found, Tensor) else None
