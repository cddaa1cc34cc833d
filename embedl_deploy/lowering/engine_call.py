"""One subgraph inside a lowered model: the engine's call, and eager where it cannot."""

import warnings
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.engines.engine import Engine
from embedl_deploy.errors import EmbedlDeployError, LoweringError
from embedl_deploy.lowering.report import FallbackCounts

_ENGINE_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    EmbedlDeployError,
)
"""What an engine may raise for an input that it cannot take."""

Results = Sequence[Tensor]


class EngineCall(nn.Module):
    """Runs a subgraph by its engine, by its graph where the engine fails.

    Inputs arrive inside the graph's declared ranges, so the graph itself is always right.
    """

    infer: Callable[..., Results]

    def __init__(
        self,
        name: str,
        engine: Engine,
        reference: GraphModule,
        formats: Sequence[torch.memory_format | None],
        counts: FallbackCounts,
        *,
        fallback: bool = True,
    ) -> None:
        super().__init__()
        self.name = name
        self.engine = engine
        self.counts = counts
        self.fallback = fallback
        self.formats = [
            (position, memory_format)
            for position, memory_format in enumerate(formats)
            if memory_format is not None
        ]
        self.infer = cast("Callable[..., Results]", engine.infer)
        # Kept out of the module tree: its parameters belong to the whole graph.
        self.__dict__["reference"] = reference

    def forward(self, *args: object) -> Results:
        """Takes the piece's inputs, in the memory layouts or copied into them."""
        try:
            return self.infer(*self._laid_out(args))
        except _ENGINE_ERRORS as error:
            return self.fall_back(error, args)

    def direct(self, *args: object) -> Results:
        """Takes inputs that are in the right memory layouts already."""
        try:
            return self.infer(*args)
        except _ENGINE_ERRORS as error:
            return self.fall_back(error, args)

    def fall_back(self, error: Exception, args: Sequence[object]) -> Results:
        """Runs the graph and counts it, or raises if falling back is not wanted."""
        reason = (
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        )
        if not self.fallback:
            raise LoweringError(
                f"{type(self.engine).__name__} cannot run {self.name} on this input, and "
                f"fallback=False forbids to run it eager: {reason}"
            ) from error
        if self.counts.add(self.name, reason):
            warnings.warn(
                f"{self.name} ran eager because {type(self.engine).__name__} could not take the "
                f"input ({reason}); report.fallbacks counts how often",
                RuntimeWarning,
                stacklevel=2,
            )
        return self.__dict__["reference"](*args)

    def _laid_out(self, args: Sequence[object]) -> list[object]:
        values = list(args)
        for position, memory_format in self.formats:
            value = values[position]
            assert isinstance(value, Tensor)
            if not value.is_contiguous(memory_format=memory_format):
                values[position] = value.contiguous(memory_format=memory_format)
        return values

    def extra_repr(self) -> str:
        return f"{self.name}, engine={type(self.engine).__name__}"
