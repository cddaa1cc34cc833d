"""What the candidates of the engine benchmark are compared with."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embedl_deploy.cli.baselines import first_tensor
from embedl_deploy.cli.model_sources import Inputs, LoadedModel
from embedl_deploy.graph.distance import relative_error

TEST_ROWS = 4


@dataclass(frozen=True)
class Reference:
    """Test inputs, and what the model computes for them in fp32."""

    inputs: tuple[Inputs, ...]
    outputs: tuple[Tensor, ...]

    @classmethod
    def of(cls, loaded: LoadedModel, batch: int) -> "Reference":
        """Computes the outputs once for all candidates, for at least ``TEST_ROWS`` rows."""
        inputs = tuple(loaded.random_inputs(max(1, TEST_ROWS // batch), seed=2))
        model: nn.Module = loaded.model
        with torch.no_grad():
            outputs = tuple(first_tensor(model(*args, **kwargs)) for args, kwargs in inputs)
        return cls(inputs, outputs)

    def error(self, call: Callable[..., object]) -> float:
        """Returns the mean relative error of a candidate."""
        with torch.no_grad():
            errors = [
                relative_error(first_tensor(call(*args, **kwargs)).to(expected.dtype), expected)
                for (args, kwargs), expected in zip(self.inputs, self.outputs, strict=True)
            ]
        return sum(errors) / len(errors)
