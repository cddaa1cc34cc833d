"""The states of a wrapped module, and which call goes in which."""

from enum import Enum


class ModuleState(Enum):
    """Where a wrapped module stands."""

    INIT = "init"
    """Nothing recorded yet: the first call records."""

    RECORDING = "recording"
    """Calls run eager and are recorded."""

    PASSTHROUGH = "passthrough"
    """Calls run eager and leave no trace."""

    TUNED = "tuned"
    """Calls run by what tuning chose, eager where it chose nothing."""


CURES = {
    ModuleState.INIT: "call the module on some data first, which records it",
    ModuleState.RECORDING: "call tune() first",
    ModuleState.PASSTHROUGH: "call enable_recording() and run the module on some data first",
    ModuleState.TUNED: "enable_recording(force=True) drops what was tuned and goes on recording",
}
"""For each state the way out, as messages give it."""
