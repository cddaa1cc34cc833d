"""TensorRT. Its library is needed to build; without it every node is refused with that reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy.engines.config import EngineConfig
from embedl_deploy.engines.engine import Engine, Sample
from embedl_deploy.errors import BuildError, MissingDependencyError
from embedl_deploy.graph.nodes import value_of
from embedl_deploy.rewriting.refusal import Refusal


@dataclass(frozen=True)
class TensorRTEngineConfig(EngineConfig):
    """Nothing to configure yet: the engine does not build."""


class TensorRTEngine(Engine):
    """Names why a node cannot go to TensorRT, so that a graph goes to the next engine."""

    config_class = TensorRTEngineConfig
    device_types = ("cuda",)

    def supports(self, node: Node) -> Refusal | None:
        if find_spec("tensorrt") is None:
            return Refusal("TensorRT is not installed: pip install 'embedl-deploy[tensorrt]'", node)
        value = value_of(node)
        if isinstance(value, Tensor) and value.device.type != "cuda":
            return Refusal(f"TensorRT runs on CUDA devices, this tensor is on {value.device}", node)
        return Refusal("this version does not build TensorRT engines", node)

    def _build(
        self,
        module: nn.Module,
        graph_spec: object | None,
        data: Sequence[Sample],
        device: torch.device,
        cache_dir: Path | None,
    ) -> None:
        del module, graph_spec, data, device, cache_dir
        if find_spec("tensorrt") is None:
            raise MissingDependencyError(
                "TensorRTEngine needs tensorrt: pip install 'embedl-deploy[tensorrt]'"
            )
        raise BuildError("this version does not build TensorRT engines")

    def _infer(self, *args: object, **kwargs: object) -> object:
        raise NotImplementedError

    def _activate(self) -> None:
        raise NotImplementedError

    def _deactivate(self) -> None:
        raise NotImplementedError

    def _saved(self) -> dict[str, object]:
        raise NotImplementedError

    def _load(self, module: nn.Module | None, state: Mapping[str, object]) -> None:
        del module, state
        raise ValueError("this version does not load TensorRT engines")
