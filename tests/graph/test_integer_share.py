import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.graph.integer_share import integer_share
from embedl_deploy.graph.macs import total_macs
from embedl_deploy.quantization.quantize_dequantize import decomposed


class OneOfTwoInInteger(nn.Module):
    """A product of 2·3·5 in int8 through a transpose, and one of 2·5·7 in float."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.ones(5, 3, dtype=torch.int8))
        self.register_buffer("weight", torch.ones(5, 7))

    def forward(self, x: Tensor) -> Tensor:
        ops, ends = decomposed(), (0.1, 0, -128, 127, torch.int8)
        x = ops.dequantize_per_tensor.default(ops.quantize_per_tensor.default(x, *ends), *ends)
        weight = ops.dequantize_per_tensor.default(self.codes, *ends)
        return torch.mm(torch.mm(x, weight.t()), torch.as_tensor(self.weight))


def exported(model: nn.Module, *args: Tensor) -> GraphModule:
    module = torch.export.export(model, args).module()
    assert isinstance(module, GraphModule)
    return module


def test_counts_products_of_two_dequantized_operands() -> None:
    graph_module = exported(OneOfTwoInInteger(), torch.ones(2, 3))

    share = integer_share(graph_module)

    assert share == pytest.approx(30 / (30 + 70))


def test_a_float_model_has_no_share() -> None:
    assert integer_share(exported(nn.Linear(3, 4), torch.ones(2, 3))) == 0.0


def test_a_model_without_products_has_no_share() -> None:
    assert integer_share(exported(nn.ReLU(), torch.ones(2, 3))) == 0.0


def test_convolutions_spelled_as_ops_count() -> None:
    graph_module = exported(nn.Conv2d(3, 5, (2, 1), groups=1), torch.ones(2, 3, 4, 6))

    assert total_macs(graph_module) == 2 * 5 * 3 * 2 * (3 * 6)


class AttentionOnCodes(nn.Module):
    """Attention as one op, whose operands are dequantized."""

    def forward(self, x: Tensor) -> Tensor:
        ops, ends = decomposed(), (0.1, 0, -128, 127, torch.int8)
        x = ops.dequantize_per_tensor.default(ops.quantize_per_tensor.default(x, *ends), *ends)
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_attention_as_one_op_rounds_no_probabilities() -> None:
    graph_module = exported(AttentionOnCodes(), torch.ones(1, 2, 5, 8))

    assert total_macs(graph_module) == 2 * 5 * 5 * (8 + 8)
    assert integer_share(graph_module) == 0.0
