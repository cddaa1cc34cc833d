"""A small Hugging Face model: its classes, its settings, what to call it with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

Inputs = Callable[[], Mapping[str, object]]


@dataclass(frozen=True)
class Nested:
    """A configuration inside another."""

    config: str
    settings: Mapping[str, object]

    def build(self) -> object:
        """Returns the configuration."""
        import transformers

        return getattr(transformers, self.config)(**self.settings)


@dataclass(frozen=True)
class Family:
    """How to build one small model of a family, and what to call it with."""

    config: str
    model: str
    settings: Mapping[str, object]
    inputs: Inputs
    in_float64: bool = False
    """Compared in float64: the model chooses by top-k or argmax."""

    def build(self) -> nn.Module:
        """Returns the model with random weights, in eval mode."""
        import transformers

        settings = {
            name: value.build() if isinstance(value, Nested) else value
            for name, value in self.settings.items()
        }
        config = getattr(transformers, self.config)(**settings)
        torch.manual_seed(0)
        return getattr(transformers, self.model)(config).eval()
