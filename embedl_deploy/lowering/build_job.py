"""A build as files and plain values, so that any process may run it."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from embedl_deploy.engines.engine import Engine, Sample
from embedl_deploy.errors import CheckpointError
from embedl_deploy.lowering.archive import ArchiveReader, write_archive
from embedl_deploy.lowering.build_errors import BUILD_ERRORS, PASSING_ERRORS, error_text
from embedl_deploy.lowering.engine_archive import write_engine
from embedl_deploy.lowering.environment import hardware, misfit, running_libraries, versions
from embedl_deploy.lowering.graph_file import graph_from_json, graph_to_json
from embedl_deploy.lowering.literals import Json, decode, encode
from embedl_deploy.lowering.memory_format import format_of
from embedl_deploy.lowering.piece_spec import DeclaredInput, declared_inputs, spec_from
from embedl_deploy.lowering.signature import SymbolRange
from embedl_deploy.lowering.stitch import Piece
from embedl_deploy.lowering.tensor_file import tensors_from_bytes, tensors_to_bytes


@dataclass(frozen=True)
class BuildJob:
    """What to build from which file into which: can be pickled, holds nothing live."""

    source: Path
    """Graph, weights and example inputs, by ``write_source``."""

    target: Path
    """Where the built engine goes."""

    engine_class: type[Engine]
    config: Mapping[str, object]
    """As ``EngineConfig.to_dict`` gives it."""

    threads: int
    """How many threads of torch the engine is built for."""

    surroundings: Mapping[str, Json]
    """Versions and hardware of where the engine is to run, in one table."""

    cache_dir: Path | None = None
    """Where engines keep what later builds profit from."""


@dataclass(frozen=True)
class BuildOutcome:
    """How a build went."""

    seconds: float
    failure: str = ""
    """Why there is no engine; empty if there is one."""

    is_passing: bool = False
    """Whether the failure says more of the moment than of the graph."""

    is_elsewhere: bool = False
    """Whether nothing was built, as what is built here would not run where it is to run."""


def write_source(
    piece: Piece, examples: Sequence[object], symbols: Mapping[str, SymbolRange], path: Path
) -> None:
    """Writes what a build of ``piece`` needs.

    Raises:
        CheckpointError: The graph has no form as data.
        OutputPathError: The file cannot be written.
    """
    graph, weights = graph_to_json(piece.module)
    tensors = {str(i): value for i, value in enumerate(examples) if isinstance(value, Tensor)}
    header: dict[str, Json] = {
        "graph": graph,
        "examples": [_example_to_json(value) for value in examples],
        "inputs": [list(s) if isinstance(s, tuple) else s for s in declared_inputs(piece)],
        "symbols": {name: [s.lower, s.upper, s.example] for name, s in symbols.items()},
    }
    files = {"weights": tensors_to_bytes(weights), "examples": tensors_to_bytes(tensors)}
    write_archive(path, header, {f"{n}.safetensors": content for n, content in files.items()})


def run_build(job: BuildJob) -> BuildOutcome:
    """Builds one engine and writes it to ``job.target``; this is what an executor is given."""
    start = time.perf_counter()
    threads = torch.get_num_threads()
    try:
        # Compilers write the number of threads into their code.
        torch.set_num_threads(job.threads)
        failure = _build(job)
    except BUILD_ERRORS as error:
        is_passing = isinstance(error, PASSING_ERRORS)
        return BuildOutcome(time.perf_counter() - start, error_text(error), is_passing)
    finally:
        torch.set_num_threads(threads)
    seconds = time.perf_counter() - start
    return BuildOutcome(seconds, failure, is_passing=bool(failure), is_elsewhere=bool(failure))


def _build(job: BuildJob) -> str:
    """Builds, or returns why the engine would not run where it is to run."""
    with ArchiveReader(job.source) as archive:
        manifest = archive.manifest
        weights = tensors_from_bytes(archive.read("weights.safetensors"))
        tensors = tensors_from_bytes(archive.read("examples.safetensors"))
    module = graph_from_json(manifest.get("graph"), weights)
    saved = cast("list[Json]", manifest.get("examples"))
    examples: Sample = tuple(_example(value, tensors.get(str(i))) for i, value in enumerate(saved))
    spec = spec_from(_inputs(manifest.get("inputs")), _symbols(manifest.get("symbols")))
    device = device_of((*examples, *module.parameters()))
    libraries = running_libraries([job.engine_class])
    made, on_gpu = {**versions(libraries), **hardware()}, device.type == "cuda"
    reason = misfit(made, job.surroundings, libraries=libraries, on_gpu=on_gpu)
    if reason is not None:
        return f"this process would build for {reason}"
    engine = job.engine_class(job.engine_class.config_class.from_dict(job.config))
    engine.build(module, spec, [examples], device, job.cache_dir)
    write_engine(engine, job.target)
    engine.deactivate()
    return ""


def device_of(values: Iterable[object]) -> torch.device:
    """Returns the device of the tensors: a single number may lie on the CPU beside the rest."""
    devices = [value.device for value in values if isinstance(value, Tensor)]
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))


def _example_to_json(value: object) -> Json:
    if not isinstance(value, Tensor):
        return {"value": encode(value)}
    return {"device": str(value.device), "format": encode(format_of(value))}


def _example(saved: Json, tensor: Tensor | None) -> object:
    if not isinstance(saved, dict):
        raise CheckpointError(f"a saved example must be an object, got {saved!r:.80}")
    if tensor is None:
        return decode(saved.get("value"))
    layout = decode(saved.get("format"))
    value = tensor.to(str(saved.get("device")))
    return (
        value.contiguous(memory_format=layout) if isinstance(layout, torch.memory_format) else value
    )


def _inputs(saved: Json) -> list[DeclaredInput]:
    listed = cast("list[list[int | str] | str | None]", saved)
    return [tuple(sizes) if isinstance(sizes, list) else sizes for sizes in listed]


def _symbols(saved: Json) -> dict[str, SymbolRange]:
    ranges = cast("dict[str, tuple[int, int | None, int]]", saved)
    return {name: SymbolRange(*bounds) for name, bounds in ranges.items()}
