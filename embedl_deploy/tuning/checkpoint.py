"""Saves the tuned modules of a pipeline in one file, and loads them into another process."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch

from embedl_deploy.engines.engine import Engine
from embedl_deploy.errors import CheckpointError
from embedl_deploy.lowering.archive import MANIFEST, ArchiveReader, write_archive
from embedl_deploy.lowering.literals import Json
from embedl_deploy.tuning.locating import Located, modules_of, wrapped_in
from embedl_deploy.tuning.module import Module
from embedl_deploy.tuning.module_state import LoadOptions, tuned_from_dict
from embedl_deploy.tuning.pipeline import placed
from embedl_deploy.tuning.states import ModuleState

FORMAT = "embedl_deploy.tuned"
FORMAT_VERSION = 1

DeviceMap = Mapping[str, torch.device | str]
"""By name of a module, where it runs."""


def save(obj: object, path: str | Path) -> None:
    """Writes what tuning made of every tuned module of ``obj`` to one file.

    The weights of the modules and the recorded samples are not in it; the weights that engines
    hold are. The file is complete or, where it was one before, the old one.

    Raises:
        RuntimeError: Nothing in ``obj`` is tuned.
        CheckpointError: An engine cannot be saved.
        OutputPathError: The file cannot be written.
    """
    wrapped = wrapped_in(obj)
    tuned = [found for found in wrapped if found[0].state is ModuleState.TUNED]
    if not tuned:
        states = ", ".join(f"{module.name} is {module.state.value}" for module, _ in wrapped)
        raise RuntimeError(
            f"nothing is tuned ({states or 'nothing is wrapped'}): call tune(obj, data) first"
        )
    files: dict[str, bytes | Path] = {}
    modules = [_described(i, module, found, files) for i, (module, found) in enumerate(tuned)]
    header: dict[str, Json] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "modules": cast("Json", modules),
    }
    write_archive(Path(path), header, files)


def load(
    obj: object,
    path: str | Path,
    device_map: DeviceMap | torch.device | str | None = None,
    *,
    engines: Sequence[type[Engine]] = (),
    classes: Sequence[type] = (),
    trust_engines: bool = True,
) -> object:
    """Wraps the modules of ``obj`` that were tuned, and runs them by what ``save`` wrote.

    Nothing is unpickled, and nothing is written outside a folder of its own. Sums detect damage,
    not malice: engine files are code.

    Args:
        obj: The pipeline as it was before ``wrap``, with the same weights; changed in place, and
            only once everything is loaded.
        path: The file.
        device_map: Where modules run, by name or all of them; None: where they were tuned for.
        engines: Engine classes beyond those of this package.
        classes: Classes of inputs and outputs that pytree does not know.
        trust_engines: Whether to run the saved engines, or to build them anew from the graphs.

    Returns:
        ``obj``; its wrapper if it is itself a module that was tuned.

    Raises:
        ValueError: ``device_map`` names another module, or no device.
        CheckpointError: The file is damaged, unsafe, made for another pipeline, other weights,
            another version or machine.
    """
    located = modules_of(obj)
    by_path = {place.path: found for found in located for place in found.places}
    options = LoadOptions(tuple(engines), tuple(classes), trust_engines)
    loaded: list[tuple[Located, Module]] = []
    with ArchiveReader(Path(path)) as archive:
        _require_names(archive, device_map)
        for entry in _entries(archive):
            found = _at_paths(entry, by_path)
            loaded.append((found, _module(entry, found, archive, device_map, options)))
    result = obj
    for found, module in loaded:
        result = placed(result, found, module)
    return result


def _described(
    number: int, module: Module, located: Located, files: dict[str, bytes | Path]
) -> dict[str, object]:
    state = module.to_dict()
    graphs: list[dict[str, object]] = []
    for position, graph in enumerate(cast("list[dict[str, object]]", state["graphs"])):
        content, name = graph["archive"], None
        if isinstance(content, bytes):
            name = f"modules/{number}/graph_{position}.zip"
            files[name] = content
        graphs.append({**graph, "archive": name})
    return {**state, "paths": [place.path for place in located.places], "graphs": graphs}


def _entries(archive: ArchiveReader) -> list[Mapping[str, object]]:
    manifest = archive.manifest
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{archive.path} holds no tuned pipeline: its {MANIFEST} says so")
    found = manifest.get("format_version")
    if found != FORMAT_VERSION:
        raise CheckpointError(
            f"{archive.path} has format version {found!r}, this package reads {FORMAT_VERSION}: "
            "load it with the version that wrote it"
        )
    modules = manifest.get("modules")
    if not isinstance(modules, list) or not modules:
        raise CheckpointError(f"{archive.path} lacks its table of modules")
    if not all(isinstance(entry, dict) for entry in modules):
        raise CheckpointError(f"the table of modules in {archive.path} is damaged")
    return [cast("dict[str, object]", entry) for entry in modules]


def _at_paths(entry: Mapping[str, object], by_path: Mapping[str, Located]) -> Located:
    """Returns the module that is at all the paths of a saved one."""
    paths = entry.get("paths")
    names = cast("list[object]", paths) if isinstance(paths, list) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError("the checkpoint does not say where a module was")
    found = [by_path.get(str(name)) for name in names]
    first = found[0]
    if first is None or any(other is not first for other in found):
        saved = " and ".join(str(name) or "the object itself" for name in names)
        known = ", ".join(path or "the object itself" for path in list(by_path)[:10])
        raise CheckpointError(
            f"the checkpoint has a module at {saved}, this object has modules at {known}: load it "
            "into the pipeline that was tuned"
        )
    return first


def _module(
    entry: Mapping[str, object],
    located: Located,
    archive: ArchiveReader,
    device_map: DeviceMap | torch.device | str | None,
    options: LoadOptions,
) -> Module:
    graphs = entry.get("graphs")
    items = cast("list[object]", graphs) if isinstance(graphs, list) else [None]
    state = {**entry, "graphs": [_with_content(item, archive) for item in items]}
    inner = located.module.module if isinstance(located.module, Module) else located.module
    saved = tuned_from_dict(inner, state, _device(entry, device_map), options)
    module = Module(inner, saved.report.name)
    module.tuning_core.settle(saved.report, saved.device, None)
    return module


def _with_content(graph: object, archive: ArchiveReader) -> dict[str, object]:
    entry = cast("dict[str, object]", graph) if isinstance(graph, dict) else {"archive": 0}
    name = entry.get("archive")
    if name is not None and not isinstance(name, str):
        raise CheckpointError(f"the table of graphs in {archive.path} is damaged")
    return {**entry, "archive": None if name is None else archive.read(name)}


def _require_names(
    archive: ArchiveReader, device_map: DeviceMap | torch.device | str | None
) -> None:
    if not isinstance(device_map, Mapping):
        return
    names = [str(entry.get("name")) for entry in _entries(archive)]
    unknown = [name for name in device_map if name not in names]
    if unknown:
        raise ValueError(f"device_map names {unknown[0]!r}; the checkpoint has {', '.join(names)}")


def _device(
    entry: Mapping[str, object], device_map: DeviceMap | torch.device | str | None
) -> torch.device | str | None:
    if isinstance(device_map, Mapping):
        return device_map.get(str(entry.get("name")))
    return device_map
