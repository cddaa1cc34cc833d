"""Where an engine stands in its life, and what a call that does not go there lacks."""

from enum import Enum


class EngineState(Enum):
    """Where an engine stands in its life."""

    INIT = "init"
    """Made, not built: only ``build``."""

    ACTIVE = "active"
    """Runs: ``infer``, ``deactivate``, ``to_dict``."""

    INACTIVE = "inactive"
    """Built, its memory given back: ``activate``, ``to_dict``."""

    CHECKPOINT_LOADED = "checkpoint loaded"
    """Read from a checkpoint: ``activate``, or ``deploy`` for good."""

    DEPLOYED = "deployed"
    """Runs for good: only ``infer``."""


def cure_of(call: str, state: EngineState) -> str:
    """Returns what is missing before ``call`` in ``state``, or why it comes too late."""
    return _CURES_OF_CALLS.get((call, state), _CURES[state])


_BUILT = "it was built before; make a new engine to build another module"
_CURES = {
    EngineState.INIT: "call build() first",
    EngineState.ACTIVE: "it is active already",
    EngineState.INACTIVE: "call activate() first",
    EngineState.CHECKPOINT_LOADED: "call activate() first",
    EngineState.DEPLOYED: "it is deployed for good and only takes infer(); load the checkpoint "
    "again with from_dict() for anything else",
}
"""What is missing before a call, by the state in which it does not go."""

_LOADED = "only what from_dict() loads is deployed: save this engine with to_dict(), and load that"
_CURES_OF_CALLS = {
    ("deploy", EngineState.INIT): "only what from_dict() loads is deployed: call that first",
    ("deploy", EngineState.ACTIVE): _LOADED,
    ("deploy", EngineState.INACTIVE): _LOADED,
    ("build", EngineState.ACTIVE): _BUILT,
    ("build", EngineState.INACTIVE): _BUILT,
    ("build", EngineState.CHECKPOINT_LOADED): "it was loaded, call activate() or deploy() to run "
    "it; make a new engine to build a module",
    ("infer", EngineState.CHECKPOINT_LOADED): "call activate() or deploy() first",
}
"""The same where it depends on the call, or the call comes too late."""
