"""From an ONNX file to a built engine: network, profiles and settings through Polygraphy."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch

from embedl_deploy.engines.inductor_build import first_line
from embedl_deploy.engines.onnx_file import OnnxFile
from embedl_deploy.engines.tensorrt_cache import (
    EngineCache,
    content_key,
    merge_timings,
    read_timings,
    structure_key,
)
from embedl_deploy.engines.tensorrt_config import TensorRTEngineConfig
from embedl_deploy.engines.tensorrt_library import (
    Library,
    Polygraphy,
    polygraphy,
    quiet_polygraphy,
)
from embedl_deploy.engines.tensorrt_profiles import InputProfile
from embedl_deploy.errors import BuildError


@dataclass(frozen=True)
class BuildRequest:
    """What an engine is built from."""

    file: OnnxFile
    profiles: Sequence[InputProfile | None]
    """One for each input whose shape varies."""

    config: TensorRTEngineConfig
    target: str
    """Name and compute capability of the device: an engine runs on no other kind."""


def request_for(
    file: OnnxFile,
    profiles: Sequence[InputProfile | None],
    config: TensorRTEngineConfig,
    device: torch.device,
) -> BuildRequest:
    """Returns the request to build ``file`` for a CUDA device."""
    major, minor = torch.cuda.get_device_capability(device)
    target = f"{torch.cuda.get_device_name(device)} {major}.{minor}"
    return BuildRequest(file, profiles, config, target)


def built_engine(
    request: BuildRequest,
    library: Library,
    build: "Build | None" = None,
    refit: "Refit | None" = None,
) -> bytes:
    """Returns the engine: from the cache, refitted from the cache, or built.

    Args:
        request: What it is built from.
        library: TensorRT.
        build: Builds it; None: TensorRT does.
        refit: Gives a cached engine the weights of a file, or None where that cannot be done.

    Raises:
        BuildError: TensorRT cannot build it.
    """
    build, refit = build or build_engine, refit or refitted_engine
    folder = request.config.engine_cache
    if folder is None:
        return build(request, library)
    cache, settings = EngineCache(Path(folder)), key_settings(request, library.__version__)
    key = content_key(request.file.path, request.file.data, settings)
    content = cache.read(key)
    if content is not None:
        return content
    if request.config.refittable:
        alike = structure_key(request.file.path, settings)
        known = cache.read(alike)
        content = None if known is None else refit(known, request.file.path, library)
        if content is None:
            content = build(request, library)
            cache.write(alike, content)
    else:
        content = build(request, library)
    cache.write(key, content)
    return content


def key_settings(request: BuildRequest, version: str) -> dict[str, object]:
    """Returns all but the file that decides what is built, as JSON values."""
    profiles = [p for p in request.profiles if p is not None]
    return {
        "tensorrt": version,
        "target": request.target,
        "profiles": [[p.name, p.smallest, p.best, p.largest] for p in profiles],
        "workspace_bytes": request.config.workspace_bytes,
        "optimization_level": request.config.optimization_level,
        "refittable": request.config.refittable,
    }


def builder_settings(request: BuildRequest, library: Library) -> dict[str, object]:
    """Returns the keywords of Polygraphy's ``CreateConfig``, profiles and timings aside."""
    config = request.config
    settings: dict[str, object] = {"refittable": config.refittable}
    if config.workspace_bytes is not None:
        settings["memory_pool_limits"] = {library.MemoryPoolType.WORKSPACE: config.workspace_bytes}
    if config.optimization_level is not None:
        settings["builder_optimization_level"] = config.optimization_level
    if config.timing_cache is not None:
        timings = read_timings(Path(config.timing_cache))
        settings["load_timing_cache"] = io.BytesIO(timings) if timings else None
    return settings


def polygraphy_profiles(
    profiles: Sequence[InputProfile | None], loaders: Polygraphy
) -> list[object]:
    """Returns the one profile of all inputs whose shape varies, none if none does."""
    profile = cast("_Profile", loaders.Profile())
    varying = [p for p in profiles if p is not None]
    for p in varying:
        profile.add(p.name, min=p.smallest, opt=p.best, max=p.largest)
    return [profile] if varying else []


def build_engine(request: BuildRequest, library: Library) -> bytes:
    """Returns what TensorRT builds of a strongly typed network.

    Raises:
        BuildError: It cannot.
    """
    loaders = polygraphy()
    try:
        with quiet_polygraphy():
            load = loaders.NetworkFromOnnxPath(str(request.file.path), strongly_typed=True)
            builder, network, _parser = cast("_Load", load)()
            profiles = polygraphy_profiles(request.profiles, loaders)
            settings = builder_settings(request, library)
            create = loaders.CreateConfig(profiles=profiles or None, **settings)
            config = cast("_Create", create)(builder, network)
            build = loaders.EngineBytesFromNetwork((builder, network), config)
            content = bytes(cast("Callable[[], bytes]", build)())
    except Exception as error:
        raise BuildError(f"TensorRT cannot build the module: {first_line(error)}") from error
    if request.config.timing_cache is not None:
        _keep_timings(Path(request.config.timing_cache), config)
    return content


def _keep_timings(path: Path, config: "_BuilderConfig") -> None:
    """Merges what a build learned into the file; timings of another version are replaced."""
    learned = config.get_timing_cache()

    def merged(known: bytes) -> bytes:
        former = config.create_timing_cache(known) if known else None
        if former is not None:
            learned.combine(former, ignore_mismatch=False)
        return bytes(learned.serialize())

    merge_timings(path, merged)


def refitted_engine(content: bytes, path: Path, library: Library) -> bytes | None:
    """Returns an engine with the weights of an ONNX file; None where that cannot be done."""
    logger = library.Logger(library.Logger.Severity.ERROR)
    engine = library.Runtime(logger).deserialize_cuda_engine(content)
    if engine is None:
        return None
    refitter = library.Refitter(engine, logger)
    if not library.OnnxParserRefitter(refitter, logger).refit_from_file(str(path)):
        return None
    if refitter.get_missing_weights() or not refitter.refit_cuda_engine():
        return None
    return bytes(engine.serialize())


Build = Callable[[BuildRequest, Library], bytes]
Refit = Callable[[bytes, Path, Library], bytes | None]


class _TimingCache(Protocol):
    def combine(self, other: object, ignore_mismatch: bool) -> bool: ...
    def serialize(self) -> bytes: ...


class _BuilderConfig(Protocol):
    def get_timing_cache(self) -> _TimingCache: ...
    def create_timing_cache(self, content: bytes) -> _TimingCache | None: ...


class _Profile(Protocol):
    def add(
        self,
        name: str,
        min: tuple[int, ...],  # noqa: A002  # Polygraphy's names
        opt: tuple[int, ...],
        max: tuple[int, ...],  # noqa: A002
    ) -> object: ...


class _Load(Protocol):
    def __call__(self) -> tuple[object, object, object]: ...


class _Create(Protocol):
    def __call__(self, builder: object, network: object) -> _BuilderConfig: ...
