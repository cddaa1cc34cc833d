from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.errors import PatternError
from embedl_deploy.graph import module_of
from embedl_deploy.graph.nodes import input_nodes
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.insertion import insert_quantizers
from embedl_deploy.passes.quantization import find_matches, quantize_graph
from embedl_deploy.patterns.quantized import QuantizeConv, QuantizeLinear
from embedl_deploy.quantization import (
    Decision,
    ModulesToSkip,
    Placement,
    QuantConfig,
    QuantStub,
    TensorQuantConfig,
    WeightFakeQuantize,
)
from embedl_deploy.rewriting import Chain, PassRecord, Pattern, Phase
from embedl_deploy.tracing import trace
from embedl_deploy.transformation import transform

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Branches(nn.Module):
    """Two linear layers read one tensor, which the output reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(8, 8)
        self.right = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return self.left(x) * self.right(x) + x


class Twice(nn.Module):
    """One layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


def inserted(
    model: nn.Module,
    example: Tensor,
    config: QuantConfig | None = None,
    placement: Placement | None = None,
    patterns: tuple[type[Pattern], ...] = (QuantizeConv, QuantizeLinear),
) -> tuple[GraphModule, PassRecord]:
    graph = trace(model.eval(), (example,))
    record = insert_quantizers(
        graph, find_matches(graph, patterns), config or QuantConfig(), placement or Placement()
    )
    graph.graph.lint()
    graph.recompile()
    return graph, record


def stub_nodes(graph: GraphModule) -> list[Node]:
    return [node for node in graph.graph.nodes if isinstance(module_of(node), QuantStub)]


def quantized_layers(graph: GraphModule) -> list[WeightedFused]:
    return [module for module in graph.modules() if isinstance(module, WeightedFused)]


def test_one_stub_serves_all_quantized_readers_and_only_those() -> None:
    graph, record = inserted(Branches(), ROWS)

    (stub,) = stub_nodes(graph)
    assert len(stub.users) == 2
    (relu,) = stub.all_input_nodes
    assert sorted(reader.op for reader in relu.users) == ["call_function", "call_module"]
    assert [site.pattern for site in record.applied] == ["quantize-linear", "quantize-linear"]


def test_values_are_unchanged_before_calibration_but_for_the_rounded_weights() -> None:
    model = Branches()
    graph, _ = inserted(model, ROWS, QuantConfig(weight=None))

    torch.testing.assert_close(graph(ROWS), model(ROWS))


def test_a_layer_called_twice_has_one_weight_quantizer_and_two_stubs() -> None:
    graph, _ = inserted(Twice(), ROWS)

    assert len(stub_nodes(graph)) == 2
    assert len(quantized_layers(graph)) == 1


def test_an_input_of_the_graph_can_be_quantized() -> None:
    graph, _ = inserted(nn.Sequential(nn.Conv2d(3, 4, 3)), IMAGE)

    (stub,) = stub_nodes(graph)
    assert stub.all_input_nodes[0].op == "placeholder"
    assert graph(IMAGE).shape == (2, 4, 6, 6)


def test_new_nodes_carry_the_metadata_of_the_tensor() -> None:
    graph, _ = inserted(Branches(), ROWS)

    (stub,) = stub_nodes(graph)
    (source,) = stub.all_input_nodes
    assert stub.meta["val"].shape == source.meta["val"].shape
    assert stub.meta["stack_trace"] == source.meta["stack_trace"]


def test_the_state_dict_keeps_every_key() -> None:
    model = Branches()

    graph, _ = inserted(model, ROWS)

    assert set(model.state_dict()) <= set(graph.state_dict())


def test_skip_rules_leave_stub_or_weight_in_float_with_the_reason() -> None:
    skip = ModulesToSkip(stub={"left"}, weight={"right"})

    graph, record = inserted(Branches(), ROWS, QuantConfig(skip=skip))

    (stub,) = stub_nodes(graph)
    assert [reader.name for reader in stub.users] == ["right"]
    (layer,) = quantized_layers(graph)
    assert layer.weighted is graph.get_submodule("left")
    assert [site.reason for site in record.refused] == [
        "skip.stub names it by name pattern 'left'",
        "skip.weight names it by name pattern 'right'",
    ]


def test_a_skip_rule_that_means_nothing_is_reported() -> None:
    skip = ModulesToSkip(stub={"lefft"}, weight={nn.Conv2d})

    _, record = inserted(Branches(), ROWS, QuantConfig(skip=skip))

    assert record.notes == (
        "skip.stub names nothing that could be quantized by name pattern 'lefft'",
        "skip.weight names nothing that could be quantized by type Conv2d",
    )


def test_a_pattern_the_table_declines_is_refused_with_the_tables_reason() -> None:
    placement = Placement(decisions={"quantize-linear": Decision(False, "rows are short")})

    graph, record = inserted(Branches(), ROWS, placement=placement)

    assert stub_nodes(graph) == []
    assert [site.reason for site in record.refused] == ["rows are short"] * 2


def test_an_operand_that_only_shares_gets_no_stub_of_its_own() -> None:
    class QuantizeProduct(Pattern):
        phase = Phase.QUANTIZATION
        tree = Chain(product=torch.ops.aten.add.Tensor)
        qdq_points = ("product[0]", "product[1]")

    placement = Placement(
        decisions={"quantize-product": Decision(True, "float is cheaper", only_if_shared=True)}
    )

    graph, record = inserted(
        Branches(), ROWS, placement=placement, patterns=(QuantizeProduct, QuantizeLinear)
    )

    (stub,) = stub_nodes(graph)
    assert len(stub.users) == 3
    assert [site.reason for site in record.refused] == ["float is cheaper"]


@pytest.mark.parametrize("quantized", [True, False])
def test_a_tensor_that_is_read_twice_is_decided_for_each_place(
    adds_its_input: nn.Module, quantized: bool
) -> None:
    decisions = {"quantize-residual": Decision(quantized, "the add is a kernel of its own")}
    backend = replace(TENSORRT, placement=Placement(decisions=decisions))
    graph = transform(adds_its_input, (IMAGE,), backend=TENSORRT).model

    record = quantize_graph(graph, None, QuantConfig(), backend)

    (stub,) = stub_nodes(graph)
    (layer,) = stub.users
    (value,) = stub.all_input_nodes
    assert layer.args == (stub, stub if quantized else value)
    assert {site.pattern for site in record.applied} == {
        "quantize-conv",
        *(("quantize-residual",) if quantized else ()),
    }


def test_a_stub_is_not_rounded_again() -> None:
    class QuantizeTwice(QuantizeLinear):
        qdq_points = ("layer[0]", "layer[0]", "layer.weight")

    class QuantizeAgain(QuantizeLinear):
        pass

    graph, record = inserted(Branches(), ROWS, patterns=(QuantizeTwice, QuantizeAgain))

    (stub,) = stub_nodes(graph)
    assert len(stub.users) == 2
    assert not record.refused


def test_asymmetric_activations_become_symmetric_where_the_target_needs_it() -> None:
    graph, record = inserted(Branches(), ROWS, placement=Placement(symmetric_activations=True))

    stub = module_of(stub_nodes(graph)[0])
    assert isinstance(stub, QuantStub)
    assert stub.config.symmetric
    assert "symmetric activations only" in record.notes[0]


def test_weight_only_places_no_stub() -> None:
    graph, record = inserted(Branches(), ROWS, QuantConfig(activation=None))

    assert stub_nodes(graph) == []
    assert len(quantized_layers(graph)) == 2
    assert {site.reason for site in record.refused} == {
        "the configuration leaves activations in float"
    }


def test_a_vetoed_match_is_left_alone() -> None:
    graph = trace(Branches().eval(), (ROWS,))
    matches = find_matches(graph, (QuantizeLinear,))
    matches[0].apply = False

    record = insert_quantizers(graph, matches, QuantConfig(), Placement())

    assert len(record.applied) == 1
    assert [site.reason for site in record.refused] == ["vetoed in the plan"]


def test_per_tensor_weights_have_one_scale() -> None:
    graph, _ = inserted(Branches(), ROWS, QuantConfig(weight=TensorQuantConfig()))

    quantizers = [module for module in graph.modules() if isinstance(module, WeightFakeQuantize)]
    assert [tuple(quantizer.scale.shape) for quantizer in quantizers] == [(), ()]


class Joined(nn.Module):
    """Reads one tensor at two places of a list."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x)
        return torch.cat([y, x, y], 1)


@pytest.mark.parametrize(
    ("points", "rounded"), [(("joined[2]",), [False, False, True]), (("joined",), [True] * 3)]
)
def test_a_point_reaches_one_place_of_a_list(points: tuple[str, ...], rounded: list[bool]) -> None:
    class QuantizeJoined(Pattern):
        phase = Phase.QUANTIZATION
        tree = Chain(joined=torch.ops.aten.cat.default)
        qdq_points = points

    graph, _ = inserted(Joined(), ROWS, patterns=(QuantizeJoined,))

    (joined,) = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default)
    reads = list(input_nodes(joined.args))
    assert [isinstance(module_of(read), QuantStub) for read in reads] == rounded


@pytest.mark.parametrize("point", ["product[2]", "product.weight", "product product"])
def test_a_point_that_names_nothing_is_an_error_of_the_pattern(point: str) -> None:
    class QuantizeNothing(Pattern):
        phase = Phase.QUANTIZATION
        tree = Chain(product=torch.ops.aten.add.Tensor)
        qdq_points = (point,)

    with pytest.raises(PatternError, match="quantize-nothing"):
        inserted(Branches(), ROWS, patterns=(QuantizeNothing,))
