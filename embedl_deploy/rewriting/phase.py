"""The stages that a pattern can belong to."""

from enum import Enum


class Phase(Enum):
    """When a pattern runs; the value is the name of the stage in reports and plans."""

    CONVERSION = "conversion"
    """Spells the graph the way the target can take it. Same values up to rounding."""

    FUSION = "fusion"
    """One module per thing that the target runs as one kernel. Same values up to rounding."""

    SMOOTH = "smooth"
    """Moves outliers from activations into weights. Same values up to rounding."""

    QUANTIZATION = "quantization"
    """Places quantizers. Rounds on purpose; the error is measured and reported."""

    @property
    def names_places_only(self) -> bool:
        """Whether its rules say where, and the stage itself does the work."""
        return self in (Phase.SMOOTH, Phase.QUANTIZATION)
