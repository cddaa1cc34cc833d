"""Quantizing a model: its precisions, and the steps from a float graph to an int8 one."""

from collections.abc import Mapping
from dataclasses import replace

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from embedl_deploy.backends.registry import resolve_backend
from embedl_deploy.errors import PreconditionError
from embedl_deploy.graph.record import has_record, record_of
from embedl_deploy.graph.traced_module import with_own_modules
from embedl_deploy.passes.calibration import ForwardLoop, Progress, calibrate_model
from embedl_deploy.passes.calibration_state import calibration_state, load_calibration_state
from embedl_deploy.passes.integer_conversion import convert
from embedl_deploy.passes.qdq_check import findings_in
from embedl_deploy.passes.quantization import (
    Matches,
    own_modules,
    quantize_graph,
    report_stages,
)
from embedl_deploy.passes.quantization_quality import quality_of
from embedl_deploy.passes.quantized_graph import quantized_graph, require_data
from embedl_deploy.passes.skip_rules import named_rules
from embedl_deploy.passes.training import QatConfig, QatTraining
from embedl_deploy.passes.weight_rounding import round_weights
from embedl_deploy.precision_search import LoweredLatency, search_precision
from embedl_deploy.quantization import (
    CalibrationMethod,
    Dynamic,
    ModulesToSkip,
    Precision,
    QuantConfig,
    QuantStub,
    SmoothQuantConfig,
    TensorQuantConfig,
    WeightFakeQuantize,
    WeightRounding,
)
from embedl_deploy.quantization.config_file import load_config, save_config
from embedl_deploy.quantization.finding import QdqFinding
from embedl_deploy.quantization.report import LayerQuality, QuantizationReport
from embedl_deploy.quantization.search_result import PrecisionSearchResult
from embedl_deploy.rewriting.backend import Backend
from embedl_deploy.transformation import transform

__all__ = [
    "CalibrationMethod",
    "Dynamic",
    "LayerQuality",
    "LoweredLatency",
    "ModulesToSkip",
    "Precision",
    "PrecisionSearchResult",
    "QatConfig",
    "QatTraining",
    "QdqFinding",
    "QuantConfig",
    "QuantStub",
    "QuantizationReport",
    "SmoothQuantConfig",
    "TensorQuantConfig",
    "WeightFakeQuantize",
    "WeightRounding",
    "calibrate",
    "calibration_state",
    "check_qdq",
    "convert",
    "insert_qdq",
    "load_calibration_state",
    "load_config",
    "prepare_qat",
    "quantization_report",
    "quantize",
    "round_weights",
    "save_config",
    "search_precision",
]

_DEFAULT = QuantConfig()


def quantize(
    model: nn.Module | ExportedProgram,
    args: tuple[object, ...] | None = None,
    config: QuantConfig = _DEFAULT,
    forward_loop: ForwardLoop | None = None,
    freeze_weights: bool = False,
    *,
    kwargs: Mapping[str, object] | None = None,
    backend: str | Backend | None = None,
    progress: Progress | None = None,
) -> GraphModule:
    """Returns ``model`` with its activations and weights rounded as ``config`` says.

    Smooths, inserts quantizers, and calibrates them. The result simulates the rounding in float,
    trains, exports, and is what ``convert`` and ``lower`` take. Its report is
    ``report_of(result)``. The model itself is not changed; the result shares its parameters until
    it is trained.

    Args:
        model: The result of ``transform``, or any model that ``transform`` takes.
        args: Example inputs, as a tuple; read only where the model is not transformed yet.
        config: Precisions, what to skip, smoothing.
        forward_loop: Runs the model it is given on calibration data, or yields inputs: a tensor,
            a tuple or a dict each.
        freeze_weights: Whether the scales of weights become constants. Otherwise they follow the
            weights at each forward, as training needs.
        kwargs: Example keyword inputs.
        backend: A backend or its name; the one the graph was transformed for if None, else the
            active one.
        progress: Told the number of forward passes after each one.

    Raises:
        CalibrationError: Activations need data and there is none, or it is not usable.
        QuantizationError: The backend cannot run what ``config`` asks for.
    """
    require_data(config, forward_loop)
    chosen = _backend_for(model, backend)
    graph = _transformed(model, args, kwargs, chosen)
    if isinstance(model, nn.Module):
        config = replace(config, skip=named_rules(config.skip, model))
    return quantized_graph(
        graph, config, forward_loop, chosen, freeze_weights=freeze_weights, progress=progress
    )


def insert_qdq(
    model: GraphModule,
    matches: Matches | None = None,
    config: QuantConfig = _DEFAULT,
    *,
    backend: str | Backend | None = None,
) -> GraphModule:
    """Returns a copy of ``model`` with quantizers in place, which pass values until calibrated.

    Args:
        model: The result of ``transform``.
        matches: The places to quantize, as a plan holds them; those of the backend's patterns if
            None. Matches with ``apply=False`` are left alone.
        config: Precisions, and what to skip.
        backend: As for ``quantize``.

    Raises:
        PreconditionError: ``model`` was not transformed.
        QuantizationError: The backend cannot run what ``config`` asks for.
    """
    if not has_record(model):
        raise PreconditionError(
            "insert_qdq needs a transformed graph, got a model that was never traced: "
            "call transform(model, args) first"
        )
    chosen = _backend_for(model, backend)
    config = replace(config, skip=named_rules(config.skip, model))
    graph = with_own_modules(model, deferred=True, shares_layers=True)
    record = quantize_graph(graph, matches, config, chosen)
    graph.finish()
    report_stages(graph, chosen, (record,))
    return graph


def calibrate(
    model: GraphModule,
    forward_loop: ForwardLoop,
    *,
    bias_correction: bool = True,
    progress: Progress | None = None,
) -> GraphModule:
    """Sets the scales of ``model`` from one pass over data; changes it in place and returns it.

    If the loop is interrupted, ``calibration_state`` saves what was seen, and after
    ``load_calibration_state`` the rest of the data is enough. In the processes of one
    ``torchrun`` each passes its share of the data, and all get the scales of the whole.

    Args:
        model: What ``insert_qdq`` returned.
        forward_loop: As for ``quantize``.
        bias_correction: As in ``QuantConfig``.
        progress: Told the number of forward passes after each one.

    Raises:
        CalibrationError: The data is missing or unusable; the message says which tensor and batch.
    """
    calibrate_model(model, forward_loop, corrects_biases=bias_correction, progress=progress)
    return model


def prepare_qat(model: GraphModule, config: QatConfig | None = None) -> QatTraining:
    """Returns a copy of ``model`` made ready for quantization-aware training.

        training = prepare_qat(quantized, QatConfig(freeze_norms_after=800))
        optimizer = torch.optim.AdamW(training.parameter_groups(), lr=1e-3)
        for images, labels in batches:
            loss = cross_entropy(training.model(images), labels)
            optimizer.zero_grad(); loss.backward(); optimizer.step(); training.step()
        integer = convert(training.finish())

    Args:
        model: What ``quantize`` returned; not changed, nor is the model it came from.
        config: What is trained, and when norms and ranges freeze.

    Raises:
        PreconditionError: The graph holds no quantizers, or they are not calibrated.
    """
    return QatTraining(model, config or QatConfig())


def check_qdq(graph: GraphModule, backend: str | Backend | None = None) -> tuple[QdqFinding, ...]:
    """Returns every place where the quantizers of ``graph`` are not as the target needs them.

    One scale per tensor, shared through reshapes, max-pooling and concatenation; codes of the
    target's type; a scale per output channel of a weight; nothing in the middle of what the
    target fuses; no layer left in float without a reason. ``quantize`` runs it and puts what it
    finds into the report, as the notes of the stage ``check``.

    Args:
        graph: What ``quantize`` or ``convert`` returned.
        backend: As for ``quantize``.

    Returns:
        Findings with codes; see ``embedl_deploy.quantization.finding.CODES``. None is good.

    Raises:
        QuantizationError: The backend quantizes nothing.
    """
    return findings_in(graph, _backend_for(graph, backend))


def quantization_report(model: GraphModule, data: ForwardLoop) -> QuantizationReport:
    """Returns what ``model`` runs in which precision, and what rounding did to each layer.

    Per layer the signal-to-noise against the float model, its share in the error of the output,
    its multiply-accumulates and bytes, and why it stayed in float if it did. Costs two forward
    and eight backward passes per batch; a few batches are enough.

    Args:
        model: What ``quantize`` returned; not changed.
        data: As ``forward_loop`` of ``quantize``.

    Raises:
        PreconditionError: The model is not calibrated, or in training mode.
        CalibrationError: The data never ran the model.
    """
    return quality_of(model, data)


def _backend_for(model: object, backend: str | Backend | None) -> Backend:
    recorded = None
    if isinstance(model, GraphModule) and has_record(model):
        recorded = record_of(model).backend
    return resolve_backend(backend, recorded)


def _transformed(
    model: nn.Module | ExportedProgram,
    args: tuple[object, ...] | None,
    kwargs: Mapping[str, object] | None,
    backend: Backend,
) -> GraphModule:
    """Returns a transformed graph whose module objects are its own."""
    if isinstance(model, GraphModule) and has_record(model):
        return own_modules(model)
    # Tracing made its layers anew, around the user's parameters.
    return transform(model, args, kwargs, backend=backend).model
