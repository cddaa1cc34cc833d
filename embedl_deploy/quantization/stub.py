"""The quantizer of one activation tensor: a node of the graph."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from embedl_deploy.errors import CalibrationError
from embedl_deploy.quantization.config import TensorQuantConfig
from embedl_deploy.quantization.fake_quantize import fake_quantize
from embedl_deploy.quantization.grid import QuantGrid
from embedl_deploy.quantization.observers import Observer, make_observer
from embedl_deploy.quantization.scales import scale_and_zero_point


class QuantStub(nn.Module):
    """Passes a tensor through, watches it, or rounds it to its codes and back.

    The two flags are plain attributes that no forward changes, so that ``torch.export`` sees
    straight-line code. One stub stands for one tensor, whoever reads it.
    """

    config: TensorQuantConfig
    grid: QuantGrid
    site: str
    """What the reader of a message knows the tensor by."""

    scale: Tensor
    zero_point: Tensor

    # Class attributes until they are set: a graph has thousands of stubs, and each attribute that
    # is set on a module costs more than the stub's own code.
    observing: bool = False
    quantizing: bool = False
    observer: Observer | None = None

    def __init__(
        self, config: TensorQuantConfig, dtype: torch.dtype | None = None, site: str = ""
    ) -> None:
        super().__init__()
        # Past ``nn.Module.__setattr__`` and ``register_buffer``, which look each name up in all of
        # the module's tables.
        self.__dict__.update(config=config, grid=QuantGrid.of(config, dtype), site=site)
        middle = torch.full((), self.grid.middle, dtype=torch.int32)
        self._buffers.update(scale=torch.ones(()), zero_point=middle)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x``, rounded if the stub is quantizing."""
        if self.observing:
            self._observe(x)
        if not self.quantizing:
            return x
        return fake_quantize(x, self.scale, self.zero_point, self.grid)

    def start_observing(self) -> None:
        """Watches from now on and lets values pass unrounded; goes on from an earlier start."""
        self.observer = self.observer or make_observer(self.config, self.grid)
        self.observing, self.quantizing = True, False

    def finish_observing(self) -> None:
        """Sets the scale from what was seen, and rounds from now on.

        Raises:
            CalibrationError: The tensor was never seen.
        """
        assert self.observer is not None, "start_observing comes first"
        try:
            low, high = self.observer.range()
        except CalibrationError as error:
            raise CalibrationError(f"{self.site}: {error}") from error
        scale, zero_point = scale_and_zero_point(low, high, self.grid)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)
        self.observer = None
        self.observing, self.quantizing = False, True

    def _observe(self, x: Tensor) -> None:
        assert self.observer is not None, "start_observing comes first"
        try:
            self.observer.observe(x)
        except CalibrationError as error:
            raise CalibrationError(
                f"{self.site}, calibration batch {self.observer.batches}: {error}"
            ) from error

    def extra_repr(self) -> str:
        """Says the format, and the scale once there is one."""
        if not self.quantizing:
            return f"{self.config}, {'observing' if self.observing else 'passing through'}"
        zero_point = "" if self.grid.symmetric else f", zero_point={int(self.zero_point)}"
        return f"{self.config}, scale={float(self.scale):.4g}{zero_point}"


def static_stubs_of(model: nn.Module) -> list[tuple[str, QuantStub]]:
    """Returns those of ``stubs_of`` that need data for their scale."""
    return [(name, stub) for name, stub in stubs_of(model) if stub.config.dynamic is None]


def stubs_of(model: nn.Module) -> Iterator[tuple[str, QuantStub]]:
    """Yields each stub of a model once, with its name, in registration order."""
    named = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    for name, module in named:
        if isinstance(module, QuantStub):
            yield name, module
