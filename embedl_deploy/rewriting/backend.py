"""What a target can do, as data."""

from collections.abc import Sequence
from dataclasses import dataclass

from embedl_deploy.rewriting.contract import require_several
from embedl_deploy.rewriting.pattern import Pattern
from embedl_deploy.rewriting.phase import Phase


@dataclass(frozen=True)
class Backend:
    """The table of one target: patterns per stage, engines, number formats, placement."""

    name: str
    """The name that ``set_backend`` takes and reports show."""

    conversion_patterns: Sequence[type[Pattern]] = ()
    """Spell the graph the way the target can take it; run to a fixpoint."""

    fusion_patterns: Sequence[type[Pattern]] = ()
    """Make one module per kernel of the target. Where two overlap the larger match wins."""

    smooth_patterns: Sequence[type[Pattern]] = ()
    """Move outliers from activations into weights before quantization."""

    quantized_patterns: Sequence[type[Pattern]] = ()
    """Name what the target runs in low precision and where its quantizers stand."""

    engines: Sequence[object] = ()
    """Engine classes, configs or names; the first that supports a node gets it."""

    formats: Sequence[object] = ()
    """The precisions that the target has kernels for."""

    placement: object | None = None
    """How the target takes quantized tensors: a ``quantization.placement.Placement``."""

    costs: object | None = None
    """What its kernels cost in int8 and in bfloat16: a ``quantization.costs.TargetCosts``."""

    def __post_init__(self) -> None:
        for field, phase in _FIELDS.items():
            require_several(getattr(self, field), f"{field} of backend {self.name!r}")
            patterns = tuple(getattr(self, field))
            for pattern in patterns:
                self._check_phase(field, phase, pattern)
            object.__setattr__(self, field, patterns)
        for field in ("engines", "formats"):
            given: object = getattr(self, field)
            if isinstance(given, str):
                raise ValueError(f"{field} of backend {self.name!r} is a list: write ({given!r},)")
        object.__setattr__(self, "engines", tuple(self.engines))
        object.__setattr__(self, "formats", tuple(self.formats))

    def _check_phase(self, field: str, phase: Phase, pattern: type[Pattern]) -> None:
        found = getattr(pattern, "phase", None)
        if found is phase:
            return
        if found is None and not _is_rule(pattern):
            raise ValueError(
                f"{field} of backend {self.name!r} takes patterns, subclasses of Pattern, got "
                f"{pattern!r} of type {type(pattern).__name__}"
            )
        shown = found.name if isinstance(found, Phase) else repr(found)
        name = getattr(pattern, "__name__", repr(pattern))
        raise ValueError(
            f"{field} of backend {self.name!r} takes patterns of phase {phase.name}, got {name} "
            f"of phase {shown}: set `phase = Phase.{phase.name}` or move it to the field it fits"
        )


def _is_rule(pattern: object) -> bool:
    return isinstance(pattern, Pattern) or (
        isinstance(pattern, type) and issubclass(pattern, Pattern)
    )


_FIELDS = {
    "conversion_patterns": Phase.CONVERSION,
    "fusion_patterns": Phase.FUSION,
    "smooth_patterns": Phase.SMOOTH,
    "quantized_patterns": Phase.QUANTIZATION,
}
