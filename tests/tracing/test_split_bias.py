import torch
from torch import Tensor, nn

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.graph import module_of
from embedl_deploy.passes.carried_values import op_name
from embedl_deploy.quantize import check_qdq, quantize
from embedl_deploy.rewriting.records import report_of
from embedl_deploy.tracing import trace

ROWS = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class JoinedBias(nn.Module):
    """A query, key and value projection whose keys have no bias, as BEiT writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))
        self.register_buffer("k_bias", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, self.get_buffer("k_bias"), self.v_bias])
        return nn.functional.linear(x, self.qkv.weight, bias)


class GivenBias(nn.Module):
    """A linear layer whose bias is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return nn.functional.linear(x, self.layer.weight, bias)


class ConstantBias(nn.Module):
    """A linear layer whose bias is no parameter: zeros made on the way, or a buffer."""

    def __init__(self, number: float | None) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3, bias=False)
        self.number = number
        self.register_buffer("shift", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        shift = self.get_buffer("shift")
        bias = shift if self.number is None else torch.full_like(shift, self.number)
        return nn.functional.linear(x, self.layer.weight, bias)


def test_a_weight_with_a_joined_bias_is_the_module_of_the_model() -> None:
    model = JoinedBias()

    graph = trace(model, (ROWS,))

    linear = next(node for node in graph.graph.nodes if node.target == "qkv")
    layer = module_of(linear)
    assert isinstance(layer, nn.Linear)
    assert layer.weight is model.qkv.weight
    assert [op_name(user) for user in linear.users] == ["add"]
    assert graph.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(graph(ROWS), model(ROWS))


def test_a_bias_that_is_an_input_stays_one() -> None:
    model, bias = GivenBias(), torch.randn(3)

    graph = trace(model, (ROWS, bias))

    assert any(isinstance(module_of(node), nn.Linear) for node in graph.graph.nodes)
    torch.testing.assert_close(graph(ROWS, 2 * bias), model(ROWS, 2 * bias))


def test_a_bias_of_constant_zeros_is_left_out() -> None:
    model = ConstantBias(0.0).eval()

    graph = trace(model, (ROWS,))

    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]
    assert graph.get_submodule("layer").weight is model.layer.weight
    torch.testing.assert_close(graph(ROWS), model(ROWS))


def test_a_bias_of_other_constants_is_added() -> None:
    model = ConstantBias(2.0).eval()

    graph = trace(model, (ROWS,))

    assert isinstance(graph.get_submodule("layer"), nn.Linear)
    torch.testing.assert_close(graph(ROWS), model(ROWS))


def test_a_buffer_of_zeros_is_added_since_another_may_be_loaded() -> None:
    model = ConstantBias(None).eval()

    graph = trace(model, (ROWS,))
    state = {**model.state_dict(), "shift": torch.ones(3)}
    graph.load_state_dict(state)
    model.load_state_dict(state)

    assert isinstance(graph.get_submodule("layer"), nn.Linear)
    torch.testing.assert_close(graph(ROWS), model(ROWS))


def test_an_ordinary_linear_layer_keeps_its_bias() -> None:
    graph = trace(nn.Sequential(nn.Linear(8, 3)), (ROWS,))

    assert not any(op_name(node) == "add" for node in graph.graph.nodes)


def test_such_a_layer_is_quantized() -> None:
    model = quantize(JoinedBias().eval(), (ROWS,), forward_loop=[ROWS], backend=INDUCTOR)

    assert report_of(model).counts()["quantize-linear"] == 1
    assert check_qdq(model) == ()
