"""From a loaded model to one that an engine runs: what several commands do alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from embedl_deploy.backends.registry import resolve_backend
from embedl_deploy.cli.calibration_data import forward_loop
from embedl_deploy.cli.choice import (
    EVERYTHING,
    Choice,
    quantized_backend,
    transformed,
    without_unwanted_modules,
)
from embedl_deploy.cli.model_sources import Inputs, LoadedModel
from embedl_deploy.cli.options import RunPrecision
from embedl_deploy.deployment import lower
from embedl_deploy.engines import InductorEngineConfig
from embedl_deploy.errors import LoweringError
from embedl_deploy.graph.integer_share import integer_share
from embedl_deploy.graph.record import record_of
from embedl_deploy.lowering import EngineChoice, LoweredModule
from embedl_deploy.lowering.engine_choice import engine_from
from embedl_deploy.quantize import QuantConfig, convert, quantize
from embedl_deploy.rewriting import PassRecord
from embedl_deploy.rewriting.records import report_of

BF16_TOLERANCE = 0.3
"""Largest relative error of a bfloat16 build against the graph it was given. Rounding to bfloat16
before rounding to int8 moves values into the neighbouring step, so the two differ by about as
much as int8 differs from float32 (0.11 for MiniLM, whose cosine to float32 is the same)."""


@dataclass(frozen=True)
class Rewritten:
    """A model after the rewriting stages, and quantization if it was asked for."""

    graph: GraphModule
    records: tuple[PassRecord, ...]
    """One per stage, in order."""

    integer_share: float
    """Share of multiply-accumulates spelled in int8, 0 to 1."""


def rewritten(
    loaded: LoadedModel,
    *,
    backend: str,
    calibration: Sequence[Inputs] | None,
    config: QuantConfig | None = None,
    choice: Choice = EVERYTHING,
    on_input: Callable[[int], None] | None = None,
) -> Rewritten:
    """Returns a model transformed, and quantized if ``calibration`` has inputs for it.

    ``config`` is the library's default if None.
    """
    if calibration is None:
        result = transformed(loaded, backend, choice)
        return Rewritten(result.model, result.report.passes, 0.0)
    graph = quantized(
        loaded, calibration, backend=backend, config=config, choice=choice, on_input=on_input
    )
    return Rewritten(graph, report_of(graph).passes, integer_share(convert(graph)))


def quantized(
    loaded: LoadedModel,
    calibration: Sequence[Inputs],
    *,
    backend: str,
    config: QuantConfig | None = None,
    choice: Choice = EVERYTHING,
    on_input: Callable[[int], None] | None = None,
) -> GraphModule:
    """Returns a model transformed, quantized and calibrated; ``config`` as in ``rewritten``."""
    model = transformed(loaded, backend, choice).model
    return quantize(
        model,
        config=without_unwanted_modules(config or QuantConfig(), model, choice),
        forward_loop=forward_loop(calibration, on_input),
        freeze_weights=True,
        backend=quantized_backend(model, choice),
    )


def lowered(
    graph: GraphModule,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    precision: RunPrecision,
    on_step: Callable[[str], None] | None = None,
) -> LoweredModule:
    """Returns ``graph`` built by its backend's engines, what is not int8 in the asked precision.

    Raises:
        LoweringError: The backend's engines have no bfloat16, or cannot build the graph.
    """
    if not precision.rest_is_bf16:
        return lower(graph, args, kwargs, progress=on_step)
    engines = _in_bfloat16(graph)
    return lower(graph, args, kwargs, engines, tolerance=BF16_TOLERANCE, progress=on_step)


def _in_bfloat16(graph: GraphModule) -> list[EngineChoice]:
    engines = list(resolve_backend(None, record_of(graph).backend).engines)
    if "inductor" not in engines:
        raise LoweringError(
            f"a rest in bfloat16 is Inductor's to build, and this backend has the engines "
            f"{', '.join(map(str, engines))}: ask for --precision int8-fp32 or fp32"
        )
    bfloat16 = InductorEngineConfig(autocast_enabled=True, autocast_dtype=torch.bfloat16)
    return [bfloat16 if engine == "inductor" else engine_from(engine) for engine in engines]
