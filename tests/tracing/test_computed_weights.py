from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from embedl_deploy.quantize import convert, quantize
from embedl_deploy.tracing import trace
from embedl_deploy.transformation import transform

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def called(graph: GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]


def traced_alike(model: nn.Module) -> GraphModule:
    """Traces ``model``; values, keys and parameter objects must be the model's."""
    graph = trace(model, (IMAGE,))
    torch.testing.assert_close(graph(IMAGE), model(IMAGE))
    assert list(graph.state_dict()) == list(model.state_dict())
    parameters = dict(graph.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert parameters[name] is parameter
    return graph


class Standardised(nn.Conv2d):
    """Standardises its weight in every call, as BiT and NFNet do."""

    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        self.gain = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name is torch's
        rows = self.weight.reshape(1, 4, -1)
        rows = functional.batch_norm(rows, None, None, weight=self.gain, training=True)
        return functional.conv2d(input, rows.reshape_as(self.weight), self.bias)


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: weight_norm(nn.Conv2d(3, 4, 3)),
    "spectral norm": lambda: spectral_norm(nn.ConvTranspose2d(3, 4, 3, bias=False)),
    "standardised": Standardised,
}


@pytest.mark.parametrize("name", COMPUTED)
def test_a_convolution_computes_its_weight_from_the_models_parameters(name: str) -> None:
    model = nn.Sequential(COMPUTED[name](), nn.BatchNorm2d(4), nn.ReLU()).eval()
    other = nn.Sequential(COMPUTED[name](), nn.BatchNorm2d(4), nn.ReLU()).eval()

    graph = traced_alike(model)
    fused = transform(graph, (IMAGE,), backend="tensorrt", verify=True)

    assert called(graph) == ["0", "1", "2"]
    assert fused.report.counts() == {"fuse-conv-norm-activation": 1}
    assert dict(graph.named_parameters()).keys() == dict(model.named_parameters()).keys()
    graph.load_state_dict(other.state_dict())
    torch.testing.assert_close(graph(IMAGE), other(IMAGE))


@pytest.mark.parametrize("name", COMPUTED)
def test_a_computed_weight_is_trained_and_quantized(name: str) -> None:
    model = nn.Sequential(COMPUTED[name](), nn.BatchNorm2d(4), nn.ReLU()).eval()

    quantized = quantize(model, (IMAGE,), forward_loop=[(IMAGE,)], backend="tensorrt")
    copied = deepcopy(quantized)
    copied.train()(IMAGE).square().sum().backward()
    graph = convert(quantized)

    assert all(parameter.grad is not None for parameter in copied.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert any("weight_codes" in str(node.target) for node in graph.graph.nodes)
    assert torch.norm(graph(IMAGE) - model(IMAGE)) < 0.05 * torch.norm(model(IMAGE))


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv2d(3, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.conv(x)))


def test_two_calls_of_a_convolution_with_a_computed_weight_are_one_module() -> None:
    graph = traced_alike(CalledTwice().eval())

    assert called(graph) == ["conv", "relu", "conv"]


class LooksElsewhere(nn.Module):
    """Attention whose keys and values are not its queries, as poolers and decoders have it."""

    def __init__(self, separate: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.separate = separate

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(2, 12, 16)
        keys = rows.flip(1)
        values = keys + 1 if self.separate else keys
        attended: Tensor = self.attention(rows[:, :3], keys, values)[0]
        return attended


@pytest.mark.parametrize(("separate", "linears"), [(False, 2), (True, 3)])
def test_parts_of_a_joint_projection_become_linear_layers(separate: bool, linears: int) -> None:
    model, other = LooksElsewhere(separate).eval(), LooksElsewhere(separate).eval()
    assert model.attention.in_proj_bias is not None
    nn.init.normal_(model.attention.in_proj_bias)

    graph = traced_alike(model)
    quantized = quantize(model, (IMAGE,), forward_loop=[(IMAGE,)], backend="inductor")

    parts = [name for name in called(graph) if name.startswith("attention.in_proj")]
    assert parts == [f"attention.in_proj{end}" for end in ("", "_1", "_2")[:linears]]
    assert all(isinstance(graph.get_submodule(name), nn.Linear) for name in parts)
    codes = [n for n in convert(quantized).graph.nodes if "weight_codes" in str(n.target)]
    assert len(codes) == linears + 1  # and the projection of the output
    assert torch.norm(quantized(IMAGE) - model(IMAGE)) < 0.05 * torch.norm(model(IMAGE))
    graph.load_state_dict(other.state_dict())
    torch.testing.assert_close(graph(IMAGE), other(IMAGE))


def test_parts_of_a_joint_projection_are_trained_as_one_parameter() -> None:
    model = LooksElsewhere(separate=False).eval()

    copied = deepcopy(quantize(model, (IMAGE,), forward_loop=[(IMAGE,)], backend="inductor"))
    copied.train()(IMAGE).square().sum().backward()

    gradient = dict(copied.named_parameters())["attention.in_proj_weight"].grad
    assert gradient is not None
    assert all(part.abs().sum() > 0 for part in gradient.chunk(3))
