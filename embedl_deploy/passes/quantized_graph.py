"""The steps from a rewritten float graph to a quantized one, in their order."""

from collections.abc import Iterator
from typing import cast

from torch.fx import GraphModule

from embedl_deploy.errors import CalibrationError
from embedl_deploy.passes.calibration import ForwardLoop, Progress, calibrate_model
from embedl_deploy.passes.equalisation import equalise_layers
from embedl_deploy.passes.qdq_check import check_record
from embedl_deploy.passes.quantization import (
    fix_weight_scales,
    quantize_graph,
    report_stages,
)
from embedl_deploy.passes.single_pass import smooth_and_calibrate
from embedl_deploy.passes.weight_rounding import round_weights
from embedl_deploy.quantization.config import QuantConfig
from embedl_deploy.quantization.precision import WeightRounding
from embedl_deploy.rewriting.backend import Backend


def require_data(config: QuantConfig, forward_loop: ForwardLoop | None) -> None:
    """Checks that there is data where ``config`` needs some.

    Raises:
        CalibrationError: There is none.
    """
    if forward_loop is not None:
        return
    if config.activation is not None and config.activation.dynamic is None:
        raise CalibrationError(
            "static activation scales need data, got forward_loop=None: pass a callable that runs "
            "the model or an iterable of inputs, or set QuantConfig(activation=None) or a dynamic "
            "activation"
        )
    if config.weight_rounding is not WeightRounding.NEAREST:
        raise CalibrationError(
            f"weight_rounding={config.weight_rounding.name} needs data, got forward_loop=None: "
            "pass a callable that runs the model or an iterable of inputs, or round to NEAREST"
        )


def quantized_graph(
    graph: GraphModule,
    config: QuantConfig,
    forward_loop: ForwardLoop | None,
    backend: Backend,
    *,
    freeze_weights: bool = False,
    progress: Progress | None = None,
) -> GraphModule:
    """Smooths, inserts quantizers, calibrates and checks; changes ``graph`` and returns it.

    Args:
        graph: The result of ``transform``, with module objects of its own.
        config: Precisions, what to skip (names and classes only), smoothing.
        forward_loop: As for ``calibrate_model``.
        backend: Whose patterns and placement.
        freeze_weights: Whether the scales of weights become constants.
        progress: Told the number of forward passes after each one.

    Raises:
        QuantizationError: The backend cannot run what ``config`` asks for, or the data is no use.
    """
    rounds = config.weight is not None and config.weight_rounding is not WeightRounding.NEAREST
    if rounds and isinstance(forward_loop, Iterator):
        forward_loop = list(cast("Iterator[object]", forward_loop))  # gone through several times
    equalised = (equalise_layers(graph),) if config.equalise else ()
    if config.smooth is not None and forward_loop is not None:
        records = smooth_and_calibrate(graph, config, forward_loop, backend, progress)
    else:
        inserted = quantize_graph(graph, None, config, backend)
        graph.recompile()
        corrects = config.bias_correction
        calibrated = calibrate_model(
            graph, forward_loop, corrects_biases=corrects, progress=progress
        )
        records = (inserted, *calibrated)
    if rounds and forward_loop is not None:
        rounded = round_weights(
            graph,
            forward_loop,
            corrects_biases=config.bias_correction,
            rounding=config.weight_rounding,
        )
        records = (*records, *rounded)
    if freeze_weights:
        fix_weight_scales(graph)
    report_stages(graph, backend, (*equalised, *records))
    report_stages(graph, backend, (check_record(graph, backend),))
    return graph
