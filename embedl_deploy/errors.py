"""The family of exceptions that embedl_deploy raises."""


class EmbedlDeployError(Exception):
    """Base of every error that embedl_deploy raises on purpose, bad arguments aside."""


class TracingError(EmbedlDeployError):
    """A model could not be turned into a graph."""


class PreconditionError(EmbedlDeployError):
    """A graph is not in the state that a pass needs."""


class PassError(EmbedlDeployError):
    """A pass left a graph that breaks what the pass promises."""


class PatternError(EmbedlDeployError):
    """A pattern is written so that it cannot work, or two patterns undo each other."""


class PlanError(EmbedlDeployError):
    """A transformation plan does not fit the model it is applied to."""


class VerificationError(EmbedlDeployError):
    """A rewrite moved an output further than its pattern promises."""


class QuantizationError(EmbedlDeployError):
    """A model cannot be quantized the way a configuration asks."""


class CalibrationError(QuantizationError):
    """Calibration saw no data, or data that no scale can be computed from."""


class SearchError(QuantizationError):
    """No choice of precisions keeps to the budget, or nothing can be chosen."""


class LoweringError(EmbedlDeployError):
    """A graph could not be lowered."""


class BuildError(LoweringError):
    """An engine could not build the subgraph it was given."""


class InputError(EmbedlDeployError):
    """An input lies outside what a compiled model was declared to take."""


class CheckpointError(EmbedlDeployError):
    """A saved file is damaged, partial, unsafe, or made for another version or machine."""


class TuningError(EmbedlDeployError):
    """A module could not be tuned the way a strategy asks."""


class ModelSourceError(EmbedlDeployError):
    """A model name, file or factory given by the user could not be loaded."""


class OutputPathError(EmbedlDeployError):
    """A result cannot be written where the user asked."""


class MissingDependencyError(EmbedlDeployError, ImportError):
    """An optional library is not installed; the message names the extra that brings it."""
