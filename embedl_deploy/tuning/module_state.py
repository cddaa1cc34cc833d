"""A tuned module as data: JSON values, and the bytes of one checkpoint per graph."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from embedl_deploy.deployment import load_lowered
from embedl_deploy.engines.engine import Engine
from embedl_deploy.errors import CheckpointError
from embedl_deploy.lowering import LoweredModule
from embedl_deploy.lowering.signature import TensorInput
from embedl_deploy.tuning.module_core import ModuleCore, device_from
from embedl_deploy.tuning.report_data import graph_from_dict
from embedl_deploy.tuning.tuned_graph import TuningReport
from embedl_deploy.tuning.weights import weights_sum


@dataclass(frozen=True)
class LoadOptions:
    """How engines are loaded."""

    engines: tuple[type[Engine], ...] = ()
    classes: tuple[type, ...] = ()
    trust_engines: bool = True


@dataclass(frozen=True)
class SavedTuning:
    """What a tuned module was saved as."""

    report: TuningReport
    device: torch.device


def module_to_dict(core: ModuleCore) -> dict[str, object]:
    """Returns what ``tuned_from_dict`` needs.

    Raises:
        CheckpointError: An engine cannot be saved.
    """
    return {
        "name": core.name,
        "device": str(core.device),
        "weights": weights_sum(core.module),
        "notes": list(core.report.notes),
        "graphs": [
            {**graph.to_dict(), "archive": None if graph.model is None else _bytes_of(graph.model)}
            for graph in core.graphs
        ],
    }


def tuned_from_dict(
    module: nn.Module,
    state: Mapping[str, object],
    device: torch.device | str | None,
    options: LoadOptions,
) -> SavedTuning:
    """Returns the tuned graphs that ``module_to_dict`` was given.

    Raises:
        CheckpointError: The state is damaged, or made for other weights or another machine.
    """
    name, weights = state.get("name"), state.get("weights")
    if not isinstance(name, str) or not isinstance(weights, str):
        raise CheckpointError("the saved state of a module lacks its name or its weights' sum")
    if weights_sum(module) != weights:
        raise CheckpointError(
            f"{name!r} was tuned with other weights than those of the {type(module).__name__} it "
            "is loaded for: load the weights that were tuned first, or tune again"
        )
    target = _device(state.get("device"), device)
    graphs = state.get("graphs")
    if not isinstance(graphs, Sequence) or isinstance(graphs, (str, bytes)):
        raise CheckpointError(f"the saved state of {name!r} lacks its graphs")
    tuned = [
        replace(graph_from_dict(entry), model=_loaded(entry, options, target))
        for entry in (_mapping(item) for item in cast("Sequence[object]", graphs))
    ]
    notes = state.get("notes")
    lines = cast("list[object]", notes) if isinstance(notes, list) else []
    return SavedTuning(TuningReport(name, tuple(tuned), tuple(map(str, lines))), target)


def _bytes_of(model: LoweredModule) -> bytes:
    with tempfile.TemporaryDirectory(prefix="embedl_deploy_") as folder:
        path = Path(folder) / "graph"
        model.save(path)
        return path.read_bytes()


def _loaded(
    entry: Mapping[str, object], options: LoadOptions, device: torch.device
) -> LoweredModule | None:
    archive = entry.get("archive")
    if archive is None:
        return None
    if not isinstance(archive, bytes):
        raise CheckpointError("the saved state of a graph holds no archive")
    with tempfile.TemporaryDirectory(prefix="embedl_deploy_") as folder:
        path = Path(folder) / "graph"
        path.write_bytes(archive)
        model = load_lowered(
            path,
            trust_engines=options.trust_engines,
            engines=options.engines,
            classes=options.classes,
        )
    for leaf in model.assembly.core.signature.inputs:
        if isinstance(leaf, TensorInput) and leaf.device.type != device.type:
            raise CheckpointError(
                f"a graph was tuned for {leaf.device}, asked to load it for {device}: tune it there"
            )
    return model


def _device(saved: object, wanted: torch.device | str | None) -> torch.device:
    if wanted is not None:
        return device_from(wanted)
    try:
        return torch.device(str(saved))
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint names no device: {saved!r:.80}") from error


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise CheckpointError(f"the saved state of a graph is damaged: {str(value)[:80]}")
    return cast("Mapping[str, object]", value)
