import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.fx import GraphModule

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.graph import module_of
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.predicted_speed import predicted_slower, prediction_at
from embedl_deploy.quantize import (
    ModulesToSkip,
    Precision,
    QuantConfig,
    TensorQuantConfig,
    calibrate,
    insert_qdq,
    quantization_report,
)
from embedl_deploy.report.quantization_tables import precision_table, quality_table
from embedl_deploy.rewriting.backend import Backend
from embedl_deploy.rewriting.records import report_of
from embedl_deploy.transformation import transform

IMAGES = torch.randn(1, 8, 40, 40, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    """A depthwise layer, slow in int8, and a wide one, fast in int8."""
    torch.manual_seed(0)
    wide = nn.Conv2d(8, 512, 3, padding=1)
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), wide).eval()


def inserted(config: QuantConfig | None = None, backend: Backend = INDUCTOR) -> GraphModule:
    """Returns ``net`` with quantizers in place, not calibrated."""
    fused = transform(net(), (IMAGES,), backend=backend).model
    return insert_qdq(fused, config=config or QuantConfig(), backend=backend)


def notes_of(graph: GraphModule) -> str:
    return "\n".join(note for record in report_of(graph).passes for note in record.notes)


def test_the_report_says_before_calibration_which_layers_int8_makes_slower() -> None:
    graph = inserted()

    ((node, forecast),) = predicted_slower(graph)
    layer = module_of(node)
    assert isinstance(layer, WeightedFused)
    assert layer.weighted is graph.get_submodule("0")
    assert forecast.int8_ms > forecast.bf16_ms
    notes = notes_of(graph)
    assert "1 of 2 int8 layers are predicted slower than in bfloat16" in notes
    assert f"%{node.name} {forecast.int8_ms / forecast.bf16_ms:.2f} times" in notes
    assert forecast.reason in notes
    assert INDUCTOR.costs is not None
    assert getattr(INDUCTOR.costs, "measured_on") in notes  # noqa: B009  # the field holds any object


@pytest.mark.parametrize(
    "config",
    [
        QuantConfig(skip=ModulesToSkip(stub={nn.Conv2d}, weight={nn.Conv2d})),
        QuantConfig(activation=None),
        QuantConfig(weight=TensorQuantConfig(Precision.INT4)),
    ],
)
def test_layers_that_are_not_int8_on_both_sides_are_not_warned_about(config: QuantConfig) -> None:
    backend = replace(INDUCTOR, placement=any_weights(), name="any-weights")

    graph = inserted(config, backend)

    assert predicted_slower(graph) == ()
    assert "predicted slower" not in notes_of(graph)


def any_weights() -> object:
    """Returns Inductor's placement with int4 weights admitted."""
    placement = INDUCTOR.placement
    return replace(placement, weight_precisions=(Precision.INT8, Precision.INT4))  # pyright: ignore[reportArgumentType, reportUnknownVariableType]  # the field holds any object


def test_a_backend_without_a_table_predicts_nothing() -> None:
    graph = inserted(backend=replace(INDUCTOR, costs=None, name="no-table"))

    assert [prediction_at(node) for node in graph.graph.nodes] == [None] * len(graph.graph.nodes)
    assert "predicted slower" not in notes_of(graph)


def test_the_quality_report_holds_the_prediction_of_each_layer() -> None:
    graph = calibrate(inserted(), [IMAGES])

    report = quantization_report(graph, [IMAGES])

    depthwise, wide = report.layers
    assert depthwise.prediction is not None
    assert wide.prediction is not None
    assert depthwise.prediction.gain < 1 < wide.prediction.gain
    assert report.predicted_slower() == (depthwise,)
    console = Console(width=240, file=io.StringIO(), record=True)
    console.print(quality_table(report.layers), precision_table(report))
    shown = console.export_text()
    assert f"{wide.prediction.gain:.2f}×" in shown
    assert "predicted slower in int8" in shown


def test_a_layer_left_in_float_has_a_prediction_and_is_not_counted_slower() -> None:
    graph = calibrate(inserted(QuantConfig(skip=ModulesToSkip(stub={"0"}, weight={"0"}))), [IMAGES])

    report = quantization_report(graph, [IMAGES])

    assert report.layers[0].prediction is not None
    assert report.layers[0].prediction.is_slower
    assert report.predicted_slower() == ()
