"""Saves a lowered model as one file and loads it in another process; nothing is unpickled."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from embedl_deploy.engines.engine import Engine
from embedl_deploy.errors import CheckpointError
from embedl_deploy.lowering.archive import MANIFEST, ArchiveReader, write_archive
from embedl_deploy.lowering.assembly import Assembly, EngineSlot, assemble
from embedl_deploy.lowering.core_graph import CoreGraph
from embedl_deploy.lowering.engine_archive import restored_engine
from embedl_deploy.lowering.engine_file import state_to_json
from embedl_deploy.lowering.environment import (
    hardware,
    misfit,
    running_libraries,
    versions,
)
from embedl_deploy.lowering.graph_file import fields, graph_from_json, graph_to_json
from embedl_deploy.lowering.literals import Json, decode, encode
from embedl_deploy.lowering.lowered_module import LoweredModule
from embedl_deploy.lowering.report_file import report_from_json, report_to_json
from embedl_deploy.lowering.saved_weights import described, left_out, stand_ins
from embedl_deploy.lowering.settings import Terms
from embedl_deploy.lowering.signature_file import signature_from_json, signature_to_json
from embedl_deploy.lowering.template_file import template_from_json, template_to_json
from embedl_deploy.lowering.tensor_file import tensors_from_bytes, tensors_to_bytes

FORMAT = "embedl_deploy.lowered"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class SavedEngine:
    """An engine as a checkpoint describes it."""

    subgraph: str
    class_name: str
    label: str
    config: dict[str, object]
    state: dict[str, object]


Rebuild = Callable[[Assembly, Sequence[SavedEngine], Terms], LoweredModule]
"""Lowers a loaded graph anew; what ``trust_engines=False`` calls."""


def save_lowered(model: LoweredModule, path: Path) -> None:
    """Writes graph, weights, signature, report and engines of ``model`` to one file.

    Raises:
        CheckpointError: Something has no form as data.
        OutputPathError: The file cannot be written.
    """
    assembly = model.assembly
    files: dict[str, bytes | Path] = {}
    graph, tensors = graph_to_json(assembly.core.module)
    dropped = left_out(assembly, tensors, model.fallback)
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    files["weights.safetensors"] = tensors_to_bytes(kept)
    header: dict[str, Json] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "versions": versions(
            running_libraries(type(slot.engine) for slot in assembly.slots.values())
        ),
        "hardware": hardware(),
        "fallback": model.fallback,
        "tolerance": encode(model.terms.tolerance),
        "allow_simulated": model.terms.allow_simulated,
        "graph": graph,
        "weights_left_out": described(tensors, dropped),
        "signature": signature_to_json(assembly.core.signature),
        "template": template_to_json(assembly.core.template),
        "steps": [[name, engine, list(nodes)] for name, engine, nodes in assembly.steps_by_name()],
        "engines": {
            name: _engine_to_json(slot, f"engines/{name}", files)
            for name, slot in assembly.slots.items()
        },
        "report": report_to_json(model.report),
    }
    write_archive(path, header, files)


def load_lowered(
    path: Path,
    engine_classes: Mapping[str, type[Engine]],
    *,
    classes: Sequence[type] = (),
    rebuild: Rebuild | None = None,
) -> LoweredModule:
    """Returns the model that ``save_lowered`` wrote.

    Engine files are code: load only what you trust, or give ``rebuild``, which takes nothing
    from the file but graph, weights and settings.

    Args:
        path: The file.
        engine_classes: The engines that may be in it, by class name.
        classes: Classes of the model's inputs and outputs that pytree does not know.
        rebuild: If given, builds the engines anew instead of loading them.

    Raises:
        CheckpointError: The file is damaged, unsafe, or for another version or machine.
    """
    with ArchiveReader(path) as archive:
        manifest = archive.manifest
        _check_format(manifest, path)
        core = _core(manifest, archive, classes)
        steps = _steps(manifest.get("steps"))
        engines = fields(manifest.get("engines"), "table of engines")
        dropped = bool(manifest.get("weights_left_out"))
        terms = _terms(manifest, may_fall_back=not dropped)
        if rebuild is not None:
            if dropped:
                raise CheckpointError(
                    f"the engines in {path} cannot be built anew: it was saved with "
                    "fallback=False, without the weights that they hold. Save it with "
                    "fallback=True, or lower the model again"
                )
            saved = [_described(name, data) for name, data in engines.items()]
            return rebuild(_assemble(core, steps, {}), saved, terms)
        if engines:
            _check_environment(manifest, engines, engine_classes, path)
        slots = _slots(_assemble(core, steps, {}), engines, archive, engine_classes)
        report = report_from_json(manifest.get("report"))
    assembly = _assemble(core, steps, slots)
    return LoweredModule(assembly, report, terms)


def _engine_to_json(slot: EngineSlot, folder: str, files: dict[str, bytes | Path]) -> Json:
    return {
        "class": type(slot.engine).__name__,
        "label": slot.label,
        "config": state_to_json(slot.engine.config.to_dict(), f"{folder}/config", files),
        "formats": [encode(memory_format) for memory_format in slot.formats],
        "state": state_to_json(slot.engine.to_dict(), folder, files),
    }


def _check_format(manifest: Mapping[str, Json], path: Path) -> None:
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} holds no lowered model: its {MANIFEST} says so")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {manifest.get('format_version')!r}, this package reads "
            f"{FORMAT_VERSION}: load it with the embedl_deploy that wrote it, "
            f"{fields(manifest.get('versions'), 'table of versions').get('embedl_deploy')}"
        )


def _check_environment(
    manifest: Mapping[str, Json],
    engines: Mapping[str, Json],
    engine_classes: Mapping[str, type[Engine]],
    path: Path,
) -> None:
    """Refuses engines that were compiled for other versions or another machine."""
    made = {
        **fields(manifest.get("versions"), "table of versions"),
        **fields(manifest.get("hardware"), "hardware"),
    }
    described = [fields(engine, "engine") for engine in engines.values()]
    classes = [engine_classes.get(str(engine.get("class"))) for engine in described]
    libraries = running_libraries(found for found in classes if found is not None)
    devices = [
        str(fields(engine.get("state"), "engine state").get(Engine.STATE_DEVICE))
        for engine in described
    ]
    on_gpu = any(device.startswith("cuda") for device in devices)
    here = {**versions(libraries), **hardware()}
    reason = misfit(made, here, libraries=libraries, on_gpu=on_gpu)
    if reason is not None:
        raise CheckpointError(
            f"the engines in {path} were built for {reason}: load it with trust_engines=False to "
            "build them anew"
        )


def _terms(manifest: Mapping[str, Json], *, may_fall_back: bool) -> Terms:
    """Returns what the model was lowered to keep to; files of before did not say all of it."""
    tolerance = decode(manifest.get("tolerance"))
    if tolerance is not None and not (isinstance(tolerance, (int, float)) and tolerance >= 0):
        raise CheckpointError(f"a saved tolerance must be 0 or more, got {tolerance!r:.80}")
    return Terms(
        fallback=may_fall_back and manifest.get("fallback") is not False,
        tolerance=tolerance,
        allow_simulated=manifest.get("allow_simulated") is not False,
    )


def _core(
    manifest: Mapping[str, Json], archive: ArchiveReader, classes: Sequence[type]
) -> CoreGraph:
    tensors = tensors_from_bytes(archive.read("weights.safetensors"))
    tensors |= stand_ins(manifest.get("weights_left_out", {}))
    module = graph_from_json(manifest.get("graph"), tensors)
    signature = signature_from_json(manifest.get("signature"), classes)
    taken = len(module.graph.find_nodes(op="placeholder"))
    if taken != len(signature.arguments) or any(
        index >= len(signature.inputs) for index in signature.arguments
    ):
        raise CheckpointError(
            f"the saved graph takes {taken} values, its signature passes {len(signature.arguments)}"
        )
    template = template_from_json(manifest.get("template"), classes)
    return CoreGraph(module, signature, (), template)


def _steps(data: Json) -> list[tuple[str, str, list[str]]]:
    steps: list[tuple[str, str, list[str]]] = []
    for step in data if isinstance(data, list) else [None]:
        if not isinstance(step, list) or len(step) != 3 or not isinstance(step[2], list):
            raise CheckpointError(f"the saved partition is damaged: {str(step)[:80]}")
        steps.append((str(step[0]), str(step[1]), [str(name) for name in step[2]]))
    return steps


def _assemble(
    core: CoreGraph,
    steps: Sequence[tuple[str, str, Sequence[str]]],
    slots: Mapping[str, EngineSlot],
) -> Assembly:
    try:
        return assemble(core, steps, slots)
    except (KeyError, IndexError, AssertionError) as error:
        raise CheckpointError(f"the saved partition does not fit the graph: {error}") from error


def _described(name: str, data: Json) -> SavedEngine:
    content = fields(data, "engine")
    config = decode_config(content.get("config"))
    return SavedEngine(name, str(content.get("class")), str(content.get("label")), config, {})


def decode_config(data: Json) -> dict[str, object]:
    """Returns a saved configuration; files and tensors in one are not restored."""
    found: dict[str, object] = {}
    for key, value in fields(data, "engine configuration").items():
        is_map = isinstance(value, dict) and set(value) == {"$map"}
        found[key] = decode_config(value["$map"]) if is_map else decode(value)  # type: ignore[index]
    return found


def _slots(
    assembly: Assembly,
    described: Mapping[str, Json],
    archive: ArchiveReader,
    engine_classes: Mapping[str, type[Engine]],
) -> dict[str, EngineSlot]:
    slots: dict[str, EngineSlot] = {}
    for piece in assembly.pieces:
        name = piece.subgraph.name
        if name not in described:
            raise CheckpointError(f"the checkpoint lacks the engine of {name}")
        content = fields(described[name], "engine")
        engine_class = engine_classes.get(str(content.get("class")))
        if engine_class is None:
            raise CheckpointError(
                f"{name} needs engine {content.get('class')!r}, which is not known here: give its "
                "class to load(..., engines=[...])"
            )
        saved_formats = content.get("formats")
        formats = [decode(f) for f in saved_formats] if isinstance(saved_formats, list) else []
        slots[name] = EngineSlot(
            restored_engine(
                engine_class, piece.module, content.get("state"), archive, f"engines/{name}"
            ),
            str(content.get("label")),
            tuple(f if isinstance(f, torch.memory_format) else None for f in formats),
        )
    return slots
