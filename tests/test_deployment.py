from pathlib import Path
from typing import Literal, cast

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from embedl_deploy.backend import Backend, use_backend
from embedl_deploy.deployment import Engines, lower, plan_lowering
from embedl_deploy.engines import EagerEngine, EagerEngineConfig, OpenVINOEngine
from embedl_deploy.engines.recording import RecordingConfig, RecordingEngine
from embedl_deploy.errors import (
    InputError,
    LoweringError,
    MissingDependencyError,
    OutputPathError,
    PreconditionError,
)
from embedl_deploy.quantize import Precision, QuantConfig, TensorQuantConfig, quantize
from embedl_deploy.transformation import transform


class Block(nn.Module):
    """Two linears, an operation between them, and a skip connection around both."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(x)
        return self.head(torch.sin(hidden)) + hidden


X = torch.linspace(-1, 1, 12).reshape(3, 4)


def engine(label: str, **config: object) -> RecordingEngine:
    return RecordingEngine(RecordingConfig(label, **config))  # type: ignore[arg-type]


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block().eval()


def test_the_first_engine_that_takes_a_node_gets_it(block: Block) -> None:
    engines = [engine("linears", takes=["linear"]), engine("rest")]

    lowered = lower(block, (X,), engines=engines)

    used = [subgraph.engine for subgraph in lowered.report.subgraphs]
    assert used == ["linears", "rest", "linears", "rest"]
    torch.testing.assert_close(lowered(X), block(X))


def test_what_no_engine_takes_runs_eager_with_the_reason(block: Block) -> None:
    lowered = lower(block, (X,), engines=engine("linears", takes=["linear"]))

    assert [subgraph.engine for subgraph in lowered.report.subgraphs] == ["linears", "linears"]
    assert len(lowered.report.eager_nodes) == 3
    reasons = {refusal.reason for refusal in lowered.report.refusals}
    assert reasons == {"linears takes only linear"}
    assert all(refusal.source for refusal in lowered.report.refusals)
    torch.testing.assert_close(lowered(X), block(X))


def test_one_engine_for_everything_is_called_directly(block: Block) -> None:
    lowered = lower(block, (X,), engines=EagerEngine)

    assert lowered.stitched_graph is None
    assert lowered.report.coverage == 1.0


def test_a_build_that_fails_falls_to_the_next_engine(block: Block) -> None:
    lowered = lower(block, (X,), engines=[engine("broken", build_error="no compiler"), "eager"])

    (subgraph,) = lowered.report.subgraphs
    assert subgraph.engine == "eager"
    (failure,) = subgraph.failures
    assert (failure.engine, failure.reason) == ("broken", "BuildError: no compiler")


def test_a_build_that_fails_with_nothing_left_runs_eager(block: Block) -> None:
    lowered = lower(block, (X,), engines=engine("broken", build_error="no compiler"))

    (subgraph,) = lowered.report.subgraphs
    assert (subgraph.engine, subgraph.failures[0].engine) == ("eager", "broken")
    torch.testing.assert_close(lowered(X), block(X))


def test_an_engine_that_computes_something_else_is_dropped(block: Block) -> None:
    lowered = lower(block, (X,), engines=[engine("wrong", factor=1.5), engine("right")])

    (subgraph,) = lowered.report.subgraphs
    assert subgraph.engine == "right"
    assert "off by 0.5 relative" in subgraph.failures[0].reason


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", torch.fft.rfft(x))


def test_an_engine_that_rounds_complex_outputs_is_right() -> None:
    lowered = lower(Spectrum().eval(), (X,), engines=[engine("rounds", factor=1.0001)])

    assert lowered.report.engines == {"subgraph_0": "rounds"}


def test_measuring_keeps_the_fastest_that_is_right(block: Block) -> None:
    engines = [engine("slow", sleep_ms=3), engine("wrong", factor=2.0), engine("fast")]

    lowered = lower(block, (X,), engines=engines, choose="measure")

    (subgraph,) = lowered.report.subgraphs
    assert subgraph.engine == "fast"
    assert {m.engine: m.kept for m in subgraph.measurements} == {"slow": False, "fast": True}
    assert subgraph.failures[0].engine == "wrong"


def test_neighbours_that_one_engine_won_are_merged(block: Block) -> None:
    engines = [engine("linears", takes=["linear"], sleep_ms=3), engine("rest")]

    lowered = lower(block, (X,), engines=engines, choose="measure")

    assert lowered.report.engines == {"subgraph_0": "rest"}
    torch.testing.assert_close(lowered(X), block(X))


def test_a_spent_time_budget_builds_no_further_candidate(block: Block) -> None:
    engines = [engine("first"), engine("second")]

    lowered = lower(block, (X,), engines=engines, choose="measure", time_budget_s=0.0)

    (subgraph,) = lowered.report.subgraphs
    assert subgraph.engine == "first"
    assert "time budget" in subgraph.failures[0].reason


def test_a_module_can_be_pinned_to_an_engine(block: Block) -> None:
    lowered = lower(block, (X,), engines={"encoder.*": engine("pinned"), "*": engine("rest")})

    assert lowered.report.engines == {"subgraph_0": "pinned", "subgraph_1": "rest"}


def test_a_pin_that_pins_nothing_is_named(block: Block) -> None:
    engines: Engines = {"encoder.*": "eager", "decoder.*": "eager", "*": "eager"}

    plan = plan_lowering(block, (X,), engines=engines)
    lowered = lower(block, (X,), engines=engines)

    (note,) = (line for line in plan.recommendations if "pins" in line)
    assert note.startswith("engines pins 'decoder.*', and no operation was made under such a path")
    assert note in lowered.report.recommendations


def test_equal_engines_are_one_and_different_ones_have_labels_of_their_own(block: Block) -> None:
    first, same = engine("one", takes=["linear"]), engine("one", takes=["linear"])
    other = engine("one", takes=["relu", "sin", "add"])

    lowered = lower(block, (X,), engines=[first, same, other])

    assert set(lowered.report.engines.values()) == {"one", "one-2"}


def test_engines_are_given_by_name_class_config_or_engine(block: Block) -> None:
    for given in ("eager", EagerEngine, EagerEngineConfig(), EagerEngine(), ["eager"]):
        assert lower(block, (X,), engines=given).report.engines == {"subgraph_0": "eager"}
    with pytest.raises(ValueError, match="there is no engine 'nothing'; there are"):
        lower(block, (X,), engines="nothing")


def test_the_engines_of_the_backend_are_the_default(block: Block) -> None:
    with use_backend("lattice"):
        plan = plan_lowering(transform(block, (X,)).model, (X,))

    assert plan.coverage == 0.0
    assert plan.recommendations == ("no engine takes any node: lowering would change nothing",)


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVINOEngine, "libraries", ("openvino_that_is_not_there", "onnx"))


@pytest.mark.usefixtures("without_openvino")
def test_an_engine_of_the_backend_without_its_library_is_left_out_with_a_note(block: Block) -> None:
    backend = Backend("both", engines=("openvino", "eager"))

    lowered = lower(block, (X,), backend=backend)

    assert lowered.report.engines == {"subgraph_0": "eager"}
    note = "OpenVINOEngine was left out: openvino_that_is_not_there is not installed"
    assert note in lowered.report.notes


@pytest.mark.usefixtures("without_openvino")
@pytest.mark.parametrize("engines", ["openvino", ["eager", "openvino"], {"head.*": "openvino"}])
def test_an_engine_that_was_asked_for_needs_its_library(block: Block, engines: Engines) -> None:
    with pytest.raises(MissingDependencyError, match=r"OpenVINOEngine needs openvino_that_is_not"):
        lower(block, (X,), engines=engines)


def test_a_plan_says_what_crosses_and_builds_nothing(block: Block) -> None:
    broken = engine("linears", takes=["linear"], build_error="must not be built")

    plan = plan_lowering(block, (X,), engines=broken)

    first, second = plan.subgraphs
    assert [(v.dtype, v.shape, v.bytes) for v in first.outputs] == [("float32", (3, 4), 48)]
    assert plan.boundary_bytes == 4 * 48
    assert plan.coverage == pytest.approx(2 / 5)
    assert len(second.nodes) == 1
    assert "min_nodes" in plan.recommendations[0]
    assert plan.to_dict()["boundary_bytes"] == 192


def test_quantization_is_never_simulated_without_being_asked(block: Block) -> None:
    with use_backend("inductor"):
        quantized = quantize(block, (X,), forward_loop=lambda model: model(X))

    with pytest.raises(LoweringError, match=r"would run as float arithmetic.*allow_simulated"):
        lower(quantized, (X,), engines="eager")
    lowered = lower(quantized, (X,), engines="eager", allow_simulated=True)
    torch.testing.assert_close(lowered(X), quantized(X))


@pytest.mark.parametrize("choose", ["first", "measure"])
def test_simulated_quantization_is_refused_before_anything_is_built(
    block: Block, choose: Literal["first", "measure"]
) -> None:
    with use_backend("inductor"):
        quantized = quantize(block, (X,), forward_loop=lambda model: model(X))
    engines = [engine("floats", takes=["relu"]), "eager"]
    said: list[str] = []

    with pytest.raises(LoweringError, match=r"floats: floats takes only relu"):
        lower(quantized, (X,), engines=engines, choose=choose, progress=said.append)
    assert said == []
    (warning, *_) = plan_lowering(quantized, (X,), engines=engines).recommendations
    assert warning.startswith("lower() will refuse: ")
    assert lower(quantized, (X,), engines=engines, allow_simulated=True).report.engines


def test_rounding_to_float8_is_not_simulated_either(block: Block) -> None:
    float8 = TensorQuantConfig(Precision.FP8_E4M3)
    config = QuantConfig(activation=float8, weight=float8)
    quantized = quantize(block, (X,), config, [(X,)], True, backend="tensorrt")

    with pytest.raises(LoweringError, match="would run as float arithmetic"):
        lower(quantized, (X,), engines="eager")
    refusals = plan_lowering(quantized, (X,), engines=["inductor", "torchao"]).refusals
    rounded = [r for r in refusals if "rounded to float8" in r.reason]
    assert {r.engine for r in rounded} == {"inductor", "torchao"}
    allowed = lower(quantized, (X,), engines="eager", allow_simulated=True)
    torch.testing.assert_close(allowed(X), quantized(X))


def test_a_graph_of_an_earlier_stage_keeps_its_declared_ranges(block: Block) -> None:
    shapes = ({0: Dim("batch", min=1, max=8)},)
    with use_backend("inductor"):
        transformed = transform(block, (X,), dynamic_shapes=shapes).model

    lowered = lower(transformed, (X,), engines="eager")

    torch.testing.assert_close(lowered(X[:1]), block(X[:1]))
    with pytest.raises(InputError, match=r"must lie in \[1, 8\], got 9"):
        lowered(torch.zeros(9, 4))


class Scaled(nn.Module):
    """Has defaults of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 2.0) -> Tensor:
        y = self.linear(x) * scale
        return y if mask is None else y * mask


@pytest.mark.parametrize("given", [(), (None,)])
def test_a_graph_of_an_earlier_stage_keeps_the_defaults_of_forward(given: tuple[None, ...]) -> None:
    model = Scaled().eval()
    with use_backend("inductor"):
        quantized = quantize(model, (X, *given), forward_loop=lambda traced: traced(X, *given))

    lowered = lower(quantized, (X, *given), engines="eager", allow_simulated=True)

    assert list(lowered.signature.parameters) == ["x", "mask", "scale"]
    expected = lowered(X, *given)
    for args, kwargs in (((X,), {}), ((X, None), {}), ((), {"x": X, "scale": 2.0})):
        assert torch.equal(lowered(*args, **kwargs), expected)
    with pytest.raises(InputError, match="scale"):
        lowered(X, scale=3.0)


def test_a_model_in_training_mode_is_refused(block: Block) -> None:
    with pytest.raises(PreconditionError, match=r"call model\.eval\(\)"):
        lower(block.train(), (X,), engines="eager")


def test_the_model_stays_as_it_was(block: Block) -> None:
    before = {name: value.clone() for name, value in block.state_dict().items()}

    lower(block, (X,), engines="eager")

    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())
    assert [parameter.requires_grad for parameter in block.parameters()] == [True] * 4


@pytest.mark.parametrize(
    ("setting", "because"),
    [
        ({"choose": "fastest"}, "choose must be 'first' or 'measure', got 'fastest'"),
        ({"tolerance": -0.1}, "tolerance must be 0 or more, or None, got -0.1"),
        ({"tolerance": float("nan")}, "tolerance must be 0 or more, or None, got nan"),
        ({"time_budget_s": -1.0}, "time_budget_s must be 0 or more"),
        ({"min_nodes": 0}, "min_nodes must be 1 or more, got 0"),
        ({"builds": "two"}, "builds must be 1 or more, or an executor, got 'two'"),
    ],
)
def test_settings_out_of_range_are_refused(
    block: Block, setting: dict[str, object], because: str
) -> None:
    with pytest.raises(ValueError, match=because):
        lower(block, (X,), engines="eager", **setting)  # type: ignore[arg-type]


def test_a_cache_that_is_no_folder_is_named(block: Block, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(OutputPathError, match=r"cache_dir must be a folder .*file: File exists"):
        lower(block, (X,), engines="eager", cache_dir=tmp_path / "file")
