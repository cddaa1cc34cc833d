"""An engine without a compiler: takes what it is told to and records what it was given."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy.engines.config import EngineConfig
from embedl_deploy.engines.engine import Engine, Sample
from embedl_deploy.errors import BuildError
from embedl_deploy.rewriting.refusal import Refusal


@dataclass(frozen=True)
class RecordingConfig(EngineConfig):
    """What a recording engine pretends to be."""

    label: str = "recording"
    """The name it goes by."""

    takes: list[str] | None = None
    """Parts of the names of the operations it takes; None: all."""

    build_error: str = ""
    """If not empty, every build fails with this message."""

    infer_error: str = ""
    """If not empty, calls with another first size than at build fail with this message."""

    factor: float = 1.0
    """What outputs are multiplied by: anything but 1 makes them wrong."""

    sleep_ms: float = 0.0
    """How much longer a call takes."""


@dataclass
class Recorded:
    """What an engine was given."""

    sample: Sample = ()
    calls: list[tuple[object, ...]] = field(default_factory=list[tuple[object, ...]])


class RecordingEngine(Engine):
    """Runs the graph as it is, for tests of what surrounds engines."""

    config_class = RecordingConfig
    config: RecordingConfig

    def __init__(self, config: EngineConfig | None = None) -> None:
        super().__init__(config)
        self.recorded = Recorded()

    @property
    def name(self) -> str:
        return self.config.label

    def supports(self, node: Node) -> Refusal | None:
        taken = self.config.takes
        operation = getattr(node.target, "__name__", str(node.target))
        if taken is None or any(part in operation for part in taken):
            return None
        return Refusal(f"{self.name} takes only {', '.join(taken)}", node)

    def _build(
        self,
        module: nn.Module,
        graph_spec: object | None,
        data: Sequence[Sample],
        device: torch.device,
        cache_dir: Path | None,
    ) -> None:
        del graph_spec, device, cache_dir
        if self.config.build_error:
            raise BuildError(self.config.build_error)
        self._module = module
        self.recorded.sample = data[0] if data else ()
        self._first_size = _first_size(self.recorded.sample)

    def _infer(self, *args: object, **kwargs: object) -> object:
        self.recorded.calls.append(args)
        if self.config.infer_error and _first_size(args) != self._first_size:
            raise RuntimeError(self.config.infer_error)
        if self.config.sleep_ms:
            time.sleep(self.config.sleep_ms / 1000)
        results: tuple[Tensor, ...] = self._module(*args, **kwargs)
        if self.config.factor == 1.0:
            return results
        return tuple(result * self.config.factor for result in results)

    def _activate(self) -> None:
        """Holds nothing to take."""

    def _deactivate(self) -> None:
        """Holds nothing to give back."""

    def _saved(self) -> dict[str, object]:
        return {"first_size": self._first_size}

    def _load(self, module: nn.Module | None, state: Mapping[str, object]) -> None:
        if module is None:
            raise ValueError("RecordingEngine runs the module itself: give it to from_dict()")
        first = state.get("first_size")
        self._module = module
        self._first_size = first if isinstance(first, int) else None


def _first_size(sample: Sequence[object]) -> int | None:
    first = sample[0] if sample else None
    return first.shape[0] if isinstance(first, Tensor) and first.dim() else None
