from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.graph import module_of
from embedl_deploy.quantization import Decision, Placement, QuantStub
from embedl_deploy.quantize import check_qdq, convert, quantize
from embedl_deploy.rewriting.backend import Backend
from embedl_deploy.rewriting.records import report_of

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def deciding(name: str, quantized: bool) -> Backend:
    decisions = {f"share-through-{name}": Decision(quantized, "the test says so")}
    placement = Placement(activation_dtype=torch.uint8, decisions=decisions)
    return replace(INDUCTOR, placement=placement)


class PoolBesideConv(nn.Module):
    """A tensor that one convolution reads as it is and another behind a max-pool."""

    def __init__(self, pooled_output: bool = False) -> None:
        super().__init__()
        self.direct, self.pooled = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(3, 4, 1)
        self.pool, self.pooled_output = nn.MaxPool2d(2), pooled_output

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        pool = self.pool(x)
        y = self.direct(x) + self.pooled(pool)
        return (y, pool.mean()) if self.pooled_output else (y,)


class Joined(nn.Module):
    """Two tensors that one convolution reads each, and one both of them joined."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.both = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        low, high = torch.tanh(x), 10.0 * x
        return self.left(low) + self.right(high) + self.both(torch.cat([low, high], 1))


class Reshaped(nn.Module):
    """A tensor that one linear layer reads as it is and another behind two reshapes."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x) + self.columns(x.transpose(-1, -2).flatten(0, 1).view(x.shape))


def quantized(model: nn.Module, backend: Backend = INDUCTOR) -> GraphModule:
    return quantize(model.eval(), (IMAGE,), forward_loop=[IMAGE], backend=backend)


def stub_calls(model: GraphModule) -> list[str]:
    return [str(n.target) for n in model.graph.nodes if isinstance(module_of(n), QuantStub)]


@pytest.mark.parametrize("model", [PoolBesideConv, Reshaped])
def test_both_ends_of_an_op_that_carries_values_share_one_quantizer(
    model: type[nn.Module],
) -> None:
    shared = quantized(model())

    calls = stub_calls(shared)
    assert len(calls) == 2
    assert len(set(calls)) == 1
    assert len([module for module in shared.modules() if isinstance(module, QuantStub)]) == 1
    assert any("runs on codes" in note for note in report_of(shared).passes[-4].notes)
    assert check_qdq(shared) == check_qdq(convert(shared)) == ()


def test_the_op_reads_codes_and_the_second_rounding_changes_nothing() -> None:
    model = quantized(PoolBesideConv())

    pool = next(node for node in model.graph.nodes if node.name == "pool")
    assert isinstance(module_of(pool.all_input_nodes[0]), QuantStub)
    stub = next(module for module in model.modules() if isinstance(module, QuantStub))
    rounded = nn.functional.max_pool2d(stub(IMAGE), 2)
    assert torch.equal(stub(rounded), rounded)
    assert not torch.equal(stub(IMAGE), IMAGE)


def test_values_are_those_of_the_converted_graph() -> None:
    model = quantized(PoolBesideConv())

    torch.testing.assert_close(convert(model)(IMAGE)[0], model(IMAGE)[0])


def test_an_op_that_is_read_in_float_too_keeps_its_float_input() -> None:
    model = quantized(PoolBesideConv(pooled_output=True))

    assert len(set(stub_calls(model))) == 2
    assert check_qdq(model) == ()


def test_concatenation_keeps_the_scales_of_its_operands() -> None:
    model = quantized(Joined())

    assert len(set(stub_calls(model))) == 3
    assert any("coarsest of theirs" in note for note in report_of(model).passes[-4].notes)
    assert check_qdq(model) == ()


def test_concatenation_shares_one_scale_where_the_table_says_so() -> None:
    model = quantized(Joined(), deciding("concat", True))

    calls = stub_calls(model)
    assert len(calls) == 3
    assert len(set(calls)) == 1
    stub = next(module for module in model.modules() if isinstance(module, QuantStub))
    spread = float(10.0 * (IMAGE.max() - IMAGE.min()))
    assert float(stub.scale) == pytest.approx(spread / 255)
    assert check_qdq(model, deciding("concat", True)) == ()


def test_the_table_can_keep_max_pools_in_float() -> None:
    model = quantized(PoolBesideConv(), deciding("max-pool", False))

    assert len(set(stub_calls(model))) == 2
    assert any("the test says so" in note for note in report_of(model).passes[-4].notes)
