"""The exit codes of the command line: one per thing that a script may want to tell apart."""

from enum import IntEnum

from embedl_deploy.errors import (
    CheckpointError,
    EmbedlDeployError,
    InputError,
    LoweringError,
    MissingDependencyError,
    ModelSourceError,
    OutputPathError,
    QuantizationError,
    TracingError,
)


class ExitCode(IntEnum):
    """What the process ends with; documented in the README and by ``embedl-deploy --help``."""

    DONE = 0
    BUG = 1
    """An error that embedl-deploy did not foresee, with its traceback."""

    USAGE = 2
    """The command line itself is wrong: an unknown option, backend or command."""

    MODEL = 3
    """The model could not be found or loaded."""

    TRACING = 4
    """The model could not be turned into a graph."""

    REWRITING = 5
    """The graph could not be rewritten: a precondition, a pattern, a plan, verification."""

    QUANTIZATION = 6
    """The model could not be quantized or calibrated."""

    LOWERING = 7
    """The graph could not be lowered, or the lowered model refused its input."""

    FILE = 8
    """A result could not be written, or a saved one could not be read."""

    DEPENDENCY = 9
    """An optional library is missing; the message names what to install."""

    LOSS = 10
    """A model lost rewrites that its manifest expects."""


_CODES: tuple[tuple[type[EmbedlDeployError], ExitCode], ...] = (
    (ModelSourceError, ExitCode.MODEL),
    (TracingError, ExitCode.TRACING),
    (QuantizationError, ExitCode.QUANTIZATION),
    (LoweringError, ExitCode.LOWERING),
    (InputError, ExitCode.LOWERING),
    (CheckpointError, ExitCode.FILE),
    (OutputPathError, ExitCode.FILE),
    (MissingDependencyError, ExitCode.DEPENDENCY),
)


def exit_code_of(error: EmbedlDeployError) -> ExitCode:
    """Returns the code for an error of the family; what has none of its own is rewriting's."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return ExitCode.REWRITING
