"""What may run a graph: an engine, the rewrites before it, and how it is quantized."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from embedl_deploy.backends.registry import discover_backends
from embedl_deploy.engines import InductorEngine, InductorEngineConfig
from embedl_deploy.engines.engine import Engine
from embedl_deploy.lowering import EngineChoice
from embedl_deploy.lowering.engine_choice import engine_from
from embedl_deploy.quantization import QuantConfig
from embedl_deploy.rewriting.backend import Backend

_LIBRARIES = {"openvino": "openvino", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True)
class Tolerance:
    """How far outputs may be from eager."""

    relative_error: float
    """‖candidate - eager‖ / ‖eager‖ of each output."""

    cosine: float
    """The smallest cosine between an output and eager's."""


TOLERANCES = {
    "float64": Tolerance(1e-6, 0.99999),
    "float32": Tolerance(1e-3, 0.9999),
    "float16": Tolerance(2e-2, 0.999),
    "bfloat16": Tolerance(5e-2, 0.998),
    "int8": Tolerance(0.2, 0.98),
}
"""By the lowest precision that a candidate computes in."""


@dataclass(frozen=True)
class Candidate:
    """One way to run a graph."""

    engine: EngineChoice
    """A name, a class, a configuration, or an engine that was not built."""

    rewrites: str | Backend | None = None
    """Whose conversions, fusions and quantizer placement come before it; None: those of the
    backend of the engine's name, else of ``inductor``."""

    quantization: QuantConfig | None = None
    """If set, weights and activations are quantized, calibrated on recorded samples."""

    @property
    def label(self) -> str:
        """What reports call it."""
        described = engine_from(self.engine).describe().removesuffix("()")
        return described + (" on a quantized graph" if self.quantization is not None else "")

    @property
    def precision(self) -> str:
        """The lowest precision it computes in."""
        engine = engine_from(self.engine)
        if self.quantization is not None or engine.name == "torchao":
            return "int8"
        rest: object = getattr(engine.config, "rest_dtype", None)
        return str(rest).removeprefix("torch.") if isinstance(rest, torch.dtype) else "float32"

    @property
    def backend(self) -> str | Backend:
        """Whose rewrites come before the engine."""
        if self.rewrites is not None:
            return self.rewrites
        name = engine_from(self.engine).name
        return name if name in discover_backends() else "inductor"


def candidates_from(
    choices: Sequence[EngineChoice | Candidate] | None, quantization: QuantConfig | None
) -> tuple[Candidate, ...]:
    """Returns a candidate for each choice, and another quantized one for each engine if asked.

    Args:
        choices: Engines and candidates; None: every engine that is installed here.
        quantization: How engines that are no candidates yet are tried quantized; None: not.

    Raises:
        ValueError: A choice is no engine, or there is none.
    """
    found: list[Candidate] = []
    for choice in default_engines() if choices is None else choices:
        if isinstance(choice, Candidate):
            found.append(choice)
            continue
        engine_from(choice)
        found.append(Candidate(choice))
        if quantization is not None:
            found.append(Candidate(choice, quantization=quantization))
    if not found:
        raise ValueError("a strategy needs at least one backend to try, got none")
    return tuple(found)


def require_settings(backends: object, quantization: object, tolerance: object) -> None:
    """Checks what a user gave to a strategy.

    Raises:
        ValueError: A setting is of another type.
    """
    if backends is not None and not isinstance(backends, (list, tuple)):
        raise ValueError(
            f"backends must be a list of engines, such as ['openvino'], got {backends!r:.80}"
        )
    if quantization is not None and not isinstance(quantization, QuantConfig):
        raise ValueError(f"quantization must be a QuantConfig or None, got {quantization!r:.80}")
    if tolerance is not None and not isinstance(tolerance, Tolerance):
        raise ValueError(
            f"tolerance must be Tolerance(relative_error=..., cosine=...) or None, "
            f"got {tolerance!r:.80}"
        )


def default_engines() -> tuple[Engine, ...]:
    """Returns what is tried unless told otherwise: what is installed here."""
    names = [name for name, package in _LIBRARIES.items() if importlib.util.find_spec(package)]
    bf16 = InductorEngineConfig(autocast_enabled=True)
    return (InductorEngine(), InductorEngine(bf16), *(engine_from(name) for name in names))
