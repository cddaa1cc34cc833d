"""What TensorRT is told: which route a module takes to it, and how engines are built."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from embedl_deploy.engines.config import EngineConfig

Route = Literal["onnx", "torch-tensorrt", "torch-tensorrt-jit"]

_OWN_SETTINGS = {
    "workspace_size": "workspace_bytes",
    "optimization_level": "optimization_level",
    "timing_cache_path": "timing_cache",
    "engine_cache_dir": "engine_cache",
    "cache_built_engines": "engine_cache",
    "reuse_cached_engines": "engine_cache",
    "immutable_weights": "refittable",
    "enable_autocast": "rest_dtype",
    "autocast_low_precision_type": "rest_dtype",
}
"""Settings of torch-tensorrt that a field of ours stands for."""


@dataclass(frozen=True)
class TensorRTEngineConfig(EngineConfig):
    """How TensorRT builds and runs a module."""

    route: Route = "onnx"
    """``onnx``: an ONNX file with explicit Q/DQ, strongly typed, through TensorRT's builder.
    ``torch-tensorrt``: torch-tensorrt ahead of time; ``torch-tensorrt-jit``: as a backend of
    ``torch.compile`` in the process that runs it.
    """

    rest_dtype: torch.dtype | None = None
    """What products that are not quantized run in: float16 or bfloat16; None: as they are."""

    workspace_bytes: int | None = None
    """Scratch memory that the builder may plan with; None: TensorRT's own limit."""

    optimization_level: int | None = None
    """0 to 5, higher builds longer; None: TensorRT's own, 3."""

    timing_cache: str | None = None
    """A file of kernel timings, read before a build; what it learned is merged in after it."""

    engine_cache: str | None = None
    """A folder of built engines, found again by content; None: nothing is kept."""

    refittable: bool = False
    """Whether engines take new weights: one in ``engine_cache`` that was built from the same graph
    is then given the new weights in place of a new build.
    """

    cuda_graphs: bool = False
    """Whether calls are replayed as CUDA graphs, one per shape; on the ``onnx`` route only."""

    settings: dict[str, object] | None = None
    """Further compilation settings of torch-tensorrt, passed on by name."""

    def __post_init__(self) -> None:
        if self.route not in get_args(Route):
            raise ValueError(
                f"route must be one of {', '.join(get_args(Route))}, got {self.route!r}"
            )
        if self.rest_dtype not in (None, torch.float16, torch.bfloat16):
            raise ValueError(f"rest_dtype must be float16 or bfloat16, got {self.rest_dtype}")
        level = self.optimization_level
        if level is not None and not 0 <= level <= 5:
            raise ValueError(f"optimization_level must be from 0 to 5, got {level}")
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            raise ValueError(f"workspace_bytes must be above 0, got {self.workspace_bytes}")
        self._check_route()

    def _check_route(self) -> None:
        if self.route == "onnx" and self.settings:
            raise ValueError(
                "settings are torch-tensorrt's: give route='torch-tensorrt', or the fields of "
                f"{type(self).__name__} for the builder; got {', '.join(self.settings)}"
            )
        if self.route != "onnx" and self.cuda_graphs:
            raise ValueError("cuda_graphs is for route='onnx', which runs the engine itself")
        for name in self.settings or {}:
            if name in _OWN_SETTINGS:
                raise ValueError(f"give {_OWN_SETTINGS[name]} in place of the setting {name}")

    def to_dict(self) -> dict[str, object]:
        values = super().to_dict()
        if self.settings is not None:
            values["settings"] = {
                name: str(value) if isinstance(value, torch.dtype) else value
                for name, value in self.settings.items()
            }
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "TensorRTEngineConfig":
        read = dict(values)
        settings = read.get("settings")
        if isinstance(settings, Mapping):
            named = cast("Mapping[str, object]", settings)
            read["settings"] = {name: _dtype_or(value) for name, value in named.items()}
        return super().from_dict(read)


def with_shared_timings(
    config: TensorRTEngineConfig, cache_dir: Path | None
) -> TensorRTEngineConfig:
    """Returns ``config`` with the timings kept in ``cache_dir``, if it says no place for them."""
    if cache_dir is None or config.timing_cache is not None:
        return config
    return replace(config, timing_cache=str(cache_dir / "tensorrt.timings"))


def _dtype_or(value: object) -> object:
    if isinstance(value, str) and value.startswith("torch."):
        found = getattr(torch, value.removeprefix("torch."), None)
        return found if isinstance(found, torch.dtype) else value
    return value
