"""Linear layers between float8 codes. On processors torch multiplies float8 too, if slowly."""

from collections.abc import Generator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy import load_lowered, lower, plan_lowering
from embedl_deploy.engines import TorchAOEngine, float8_products
from embedl_deploy.engines.float8_products import put_float8_layers, unfit_rounding
from embedl_deploy.engines.integer_graph import rounds_to_float8
from embedl_deploy.errors import BuildError, LoweringError
from embedl_deploy.quantize import (
    Precision,
    QuantConfig,
    TensorQuantConfig,
    convert,
    quantize,
)

CPU = torch.device("cpu")
FLOAT8 = TensorQuantConfig(Precision.FP8_E4M3)
aten = torch.ops.aten


@pytest.fixture(autouse=True)
def without_gradients() -> Generator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the processor stand for a device with float8 kernels."""

    def lacks_nothing(_: torch.device) -> str | None:
        return None

    monkeypatch.setattr(float8_products, "lacks_float8", lacks_nothing)


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def feedforward(middle: int = 32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, middle), nn.ReLU(), nn.Linear(middle, 16)).eval()


def quantized(module: nn.Module, x: Tensor) -> GraphModule:
    config = QuantConfig(activation=FLOAT8, weight=FLOAT8)
    return quantize(module, (x,), config, [(x,)], True, backend="tensorrt")


def reasons(graph: GraphModule) -> list[str]:
    found = [unfit_rounding(node) for node in graph.graph.nodes if rounds_to_float8(node)]
    return [reason for reason in found if reason is not None]


@pytest.mark.usefixtures("with_kernels")
@pytest.mark.parametrize("shape", [(1, 64), (3, 64), (2, 5, 64)])
def test_float8_gives_the_values_of_the_graph(shape: Sequence[int]) -> None:
    x = inputs(*shape)
    graph = convert(quantized(feedforward(), x))
    expected = graph(x)

    assert reasons(graph) == []
    assert put_float8_layers(graph, CPU) == 2

    assert aten.linear.default not in [node.target for node in graph.graph.nodes]
    assert [type(p).__name__ for p in graph.children()].count("Float8Linear") == 2
    torch.testing.assert_close(graph(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("with_kernels")
def test_a_view_between_codes_and_product_is_kept() -> None:
    x = inputs(4, 64)
    graph = convert(quantized(feedforward(), x))
    first = graph.graph.find_nodes(op="call_function", target=aten.linear.default)[0]
    read = first.all_input_nodes[0]
    with graph.graph.inserting_before(first):
        first.replace_input_with(read, graph.graph.call_function(aten.unsqueeze.default, (read, 0)))
    graph.recompile()
    expected = graph(x)

    assert put_float8_layers(graph, CPU) == 2

    assert expected.shape == (1, 4, 16)
    torch.testing.assert_close(graph(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("with_kernels")
def test_what_the_kernels_do_not_take_is_refused_and_not_computed_otherwise() -> None:
    x, image = inputs(4, 64), inputs(1, 16, 4, 4)
    odd = convert(quantized(feedforward(middle=24), x))
    conv = convert(quantized(nn.Conv2d(16, 16, 3).eval(), image))

    assert [text for text in reasons(odd) if "multiples of 16, the weight 0.weight" in text]
    assert "for linear layers, this is conv2d" in reasons(conv)[0]
    for graph in (odd, conv):
        with pytest.raises(BuildError, match="would run in a wider type"):
            put_float8_layers(graph, CPU)


def test_a_processor_has_no_kernels_for_it() -> None:
    x = inputs(4, 64)
    graph = convert(quantized(feedforward(), x))

    assert "CUDA device of compute capability 8.9, this is on cpu" in reasons(graph)[0]
    with pytest.raises(BuildError, match=r"_scaled_mm\) need a CUDA device"):
        TorchAOEngine().build(graph, None, [(x,)])
    with pytest.raises(LoweringError, match="this is on cpu"):
        lower(quantized(feedforward(), x), (x,), engines=["torchao", "inductor"])


@pytest.mark.parametrize(("capability", "lacks"), [((8, 0), True), ((8, 9), False)])
def test_old_devices_lack_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], lacks: bool
) -> None:
    def told(_: torch.device) -> tuple[int, int]:
        return capability

    monkeypatch.setattr(torch.cuda, "get_device_capability", told)

    reason = float8_products.lacks_float8(torch.device("cuda"))

    assert (reason is not None) is lacks
    assert reason is None or "compute capability 8.9, this device has 8.0" in reason


@pytest.mark.usefixtures("with_kernels")
def test_inductor_leaves_all_of_it_to_torchao() -> None:
    x = inputs(4, 64)

    plan = plan_lowering(quantized(feedforward(), x), (x,), engines=["inductor", "torchao"])

    taken = {part.engine: part.nodes for part in plan.subgraphs if part.engine == "torchao"}
    operations = {r.operation.split("(")[0] for r in plan.refusals if r.engine == "inductor"}
    assert taken
    assert not [line for line in plan.recommendations if "will refuse" in line]
    assert any("linear" in name for name in operations)


@pytest.mark.slow
@pytest.mark.usefixtures("with_kernels")
@pytest.mark.parametrize("engines", [["torchao"], ["inductor", "torchao"]])
def test_a_quantized_model_is_lowered_saved_and_loaded(tmp_path: Path, engines: list[str]) -> None:
    x = inputs(4, 64)
    model = quantized(feedforward(), x)
    lowered = lower(model, (x,), engines=engines)
    lowered.save(tmp_path / "model.lowered")

    loaded = load_lowered(tmp_path / "model.lowered")

    kernels = [part.kernels.get("scaled_mm", 0) for part in lowered.report.subgraphs]
    assert sum(kernels) == 2
    torch.testing.assert_close(lowered(x), model(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(loaded(x), lowered(x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [1, 17, 128])
def test_cuda_multiplies_float8(rows: int) -> None:
    x = inputs(rows, 64).cuda()
    model = quantized(feedforward().cuda(), x)
    lowered = lower(model, (x,), engines=["inductor", "torchao"])

    assert sum(part.kernels.get("scaled_mm", 0) for part in lowered.report.subgraphs) == 2
    torch.testing.assert_close(lowered(x), model(x), rtol=2e-2, atol=2e-2)
