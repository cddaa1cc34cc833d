"""A wrapped module in Python's pickle: the user's own, for processes that trust each other."""

from dataclasses import dataclass

from torch import nn

from embedl_deploy.engines.engine import Engine
from embedl_deploy.lowering.structure import Branch, Structure
from embedl_deploy.tracing.structures import Template
from embedl_deploy.tuning.module_core import ModuleCore
from embedl_deploy.tuning.module_state import LoadOptions, module_to_dict, tuned_from_dict
from embedl_deploy.tuning.recording import Recorder
from embedl_deploy.tuning.states import ModuleState
from embedl_deploy.tuning.strategies import Strategies
from embedl_deploy.tuning.strategy import TuneStrategy


@dataclass(frozen=True)
class Pickled:
    """What a wrapped module holds beside the module."""

    name: str
    state: ModuleState
    is_active: bool
    strategies: TuneStrategy | Strategies | None
    recorder: Recorder
    tuned: dict[str, object] | None
    engines: tuple[type[Engine], ...]
    classes: tuple[type, ...]


def pickled(core: ModuleCore) -> Pickled:
    """Returns what to pickle; engines as the bytes of their checkpoint.

    Raises:
        CheckpointError: An engine cannot be saved.
    """
    tuned = module_to_dict(core) if core.state is ModuleState.TUNED else None
    slots = [slot for model in core.models for slot in model.assembly.slots.values()]
    engines = tuple(dict.fromkeys(type(slot.engine) for slot in slots))
    classes: dict[type, None] = {}
    for model in core.models:
        signature = model.assembly.core.signature
        structures = [parameter.structure for parameter in signature.parameters]
        for structure in (*structures, signature.output):
            _collect_kinds(structure, classes)
        _collect_classes(model.assembly.core.template, classes)
    return Pickled(
        core.name,
        core.state,
        core.is_active,
        core.strategies,
        core.recorder,
        tuned,
        engines,
        tuple(classes),
    )


def unpickled(module: nn.Module, state: Pickled) -> nn.Module:
    """Returns the wrapped module that ``pickled`` was given."""
    from embedl_deploy.tuning.module import Module

    result = Module(module, state.name)
    core = result.tuning_core
    core.strategies, core.recorder = state.strategies, state.recorder
    if state.tuned is not None:
        options = LoadOptions(state.engines, state.classes, trust_engines=True)
        saved = tuned_from_dict(module, state.tuned, None, options)
        core.settle(saved.report, saved.device, None)
        core.switch(active=state.is_active)
    core.enter(state.state)
    return result


def _collect_kinds(structure: Structure | None, found: dict[type, None]) -> None:
    if isinstance(structure, Branch):
        found[structure.kind] = None
        for child in structure.children:
            _collect_kinds(child, found)


def _collect_classes(template: Template | None, found: dict[type, None]) -> None:
    if template is not None:
        if template.class_ is not None:
            found[template.class_] = None
        for child in template.children:
            _collect_classes(child, found)
