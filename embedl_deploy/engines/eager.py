"""The engine that runs a graph as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.fx import Node

from embedl_deploy.engines.config import EngineConfig
from embedl_deploy.engines.engine import Engine, Sample
from embedl_deploy.engines.placing import put_on, require_on
from embedl_deploy.rewriting.refusal import Refusal


@dataclass(frozen=True)
class EagerEngineConfig(EngineConfig):
    """Nothing to configure."""


class EagerEngine(Engine):
    """Takes every node and runs it with PyTorch, operation by operation, without gradients."""

    config_class = EagerEngineConfig

    def supports(self, node: Node) -> Refusal | None:
        del node
        return None

    def _build(
        self,
        module: nn.Module,
        graph_spec: object | None,
        data: Sequence[Sample],
        device: torch.device,
        cache_dir: Path | None,
    ) -> None:
        del graph_spec, data, cache_dir
        require_on(module, device)
        self._module = module

    def _infer(self, *args: object, **kwargs: object) -> object:
        with torch.no_grad():
            return self._module(*args, **kwargs)

    def _activate(self) -> None:
        self._module = put_on(self._module, self._device or torch.device("cpu"))

    def _deactivate(self) -> None:
        """The module belongs to whoever gave it."""

    def _saved(self) -> dict[str, object]:
        return {}

    def _load(self, module: nn.Module | None, state: Mapping[str, object]) -> None:
        del state
        if module is None:
            raise ValueError("EagerEngine runs the module itself: give it to from_dict()")
        self._module = module
