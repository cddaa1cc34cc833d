from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils.fusion import fuse_conv_bn_eval

from embedl_deploy.backend import Backend
from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.errors import PreconditionError
from embedl_deploy.quantization.quantize_dequantize import decomposed
from embedl_deploy.quantize import (
    CalibrationMethod,
    Precision,
    QuantConfig,
    TensorQuantConfig,
    convert,
    insert_qdq,
    quantize,
)
from embedl_deploy.transformation import transform

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


class Block(nn.Module):
    """Convolution, norm, activation, residual, pooling and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv = nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.norm2(self.conv(x)) + x)
        return self.head(x.mean((2, 3)))


def quantized(model: nn.Module, backend: Backend = INDUCTOR, **options: object) -> GraphModule:
    return quantize(model, (IMAGE,), forward_loop=[IMAGE], backend=backend, **options)  # pyright: ignore[reportArgumentType]


def targets(graph: GraphModule, name: str) -> int:
    return sum(name in str(node.target) for node in graph.graph.nodes)


@pytest.mark.parametrize("backend", [INDUCTOR, TENSORRT])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_computes_what_the_simulation_computes(backend: Backend, is_frozen: bool) -> None:
    simulated = quantized(randomised(Block()), backend, freeze_weights=is_frozen)

    converted = convert(simulated)

    torch.testing.assert_close(converted(IMAGE), simulated(IMAGE))


def test_the_graph_is_flat_and_its_weights_are_integers() -> None:
    converted = convert(quantized(randomised(Block())))

    assert {node.op for node in converted.graph.nodes} == {
        "placeholder",
        "get_attr",
        "call_function",
        "output",
    }
    codes = {name for name, value in converted.state_dict().items() if value.dtype == torch.int8}
    assert codes == {"stem.weight_codes", "conv.weight_codes", "head.weight_codes"}
    assert not {"stem.weight", "conv.weight", "head.weight"} & set(converted.state_dict())
    assert targets(converted, "fake_quantize") == targets(converted, "batch_norm") == 0


def test_a_tensor_is_quantized_once_and_scales_are_literals() -> None:
    converted = convert(quantized(randomised(Block())))

    assert targets(converted, "quantized_decomposed.quantize_per_tensor") == 3
    for node in converted.graph.nodes:
        if "quantize_per_tensor" in str(node.target):
            assert isinstance(node.args[1], float)
            assert isinstance(node.args[2], int)


def test_the_input_is_not_changed() -> None:
    simulated = quantized(randomised(Block()))
    before, keys = simulated(IMAGE), list(simulated.state_dict())

    convert(simulated)

    assert torch.equal(simulated(IMAGE), before)
    assert list(simulated.state_dict()) == keys


def test_weights_are_quantized_as_torch_quantizes_the_folded_weight() -> None:
    model = randomised(Block())
    folded = cast("nn.Conv2d", fuse_conv_bn_eval(model.stem, model.norm))  # pyright: ignore[reportArgumentType]

    converted = convert(quantized(model, config=QuantConfig(bias_correction=False)))

    state = converted.state_dict()
    theirs = decomposed().quantize_per_channel.default(
        folded.weight,
        folded.weight.detach().abs().amax((1, 2, 3)) / 127,
        torch.zeros(6, dtype=torch.int64),
        *(0, -128, 127, torch.int8),
    )
    difference = (state["stem.weight_codes"].int() - theirs.int()).abs()
    # The norms are folded in another order of float32 operations: a tie may round the other way.
    assert int(difference.max()) <= 1
    assert int((difference > 0).sum()) <= 2
    assert folded.bias is not None
    torch.testing.assert_close(state["stem.folded_bias"], folded.bias.detach())


class TransposedLayer(nn.Module):
    """A linear layer the way GPT-2 spells it, after one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(8, 8)
        self.weight = nn.Parameter(torch.randn(8, 4))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(torch.tanh(self.shared(x))).reshape(-1, 8)
        return torch.addmm(self.bias, x, self.weight)


def test_a_transposed_weight_becomes_a_plain_one_per_output_channel() -> None:
    rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    simulated = quantize(
        randomised(TransposedLayer()), (rows,), forward_loop=[rows], backend=INDUCTOR
    )

    converted = convert(simulated)

    torch.testing.assert_close(converted(rows), simulated(rows))
    axes = [node.args[3] for node in converted.graph.nodes if "dequantize_per_channel" in str(node)]
    assert axes == [0, 0, 0]
    shared = [name for name in converted.state_dict() if name.startswith("shared.weight_codes")]
    assert shared == ["shared.weight_codes"]


def test_integers_lie_in_order_however_the_weight_is_stored() -> None:
    stem, head = nn.Conv2d(3, 6, 3), nn.Linear(216, 5)
    stem.weight = nn.Parameter(stem.weight.contiguous(memory_format=torch.channels_last))
    head.weight = nn.Parameter(torch.randn(216, 5).t())
    model = nn.Sequential(stem, nn.Flatten(), head).eval()

    graph = convert(quantized(model))

    codes = [tensor for name, tensor in graph.state_dict().items() if "weight_codes" in name]
    assert not stem.weight.is_contiguous()
    assert not head.weight.is_contiguous()
    assert [tensor.is_contiguous() for tensor in codes] == [True, True]
    assert torch.norm(graph(IMAGE) - model(IMAGE)) < 0.05 * torch.norm(model(IMAGE))


def test_dynamic_shapes_stay_dynamic() -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    fused = transform(
        randomised(Block()), (IMAGE,), dynamic_shapes=({0: batch},), backend=INDUCTOR
    ).model
    simulated = quantized(fused)

    converted = convert(simulated)

    larger = torch.randn(7, 3, 8, 8)
    torch.testing.assert_close(converted(larger), simulated(larger))


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8_E4M3])
def test_other_precisions_convert(precision: Precision) -> None:
    config = QuantConfig(
        activation=TensorQuantConfig(precision, calibration_method=CalibrationMethod.MINMAX),
        weight=TensorQuantConfig(precision, per_channel=True),
    )
    simulated = quantized(randomised(Block()), TENSORRT, config=config)

    torch.testing.assert_close(convert(simulated)(IMAGE), simulated(IMAGE))


def test_exports_after_conversion() -> None:
    converted = convert(quantized(randomised(Block())))

    program = torch.export.export(converted, (IMAGE,), strict=False)

    torch.testing.assert_close(program.module()(IMAGE), converted(IMAGE))


def test_refuses_a_model_that_was_never_traced() -> None:
    symbolic = torch.fx.symbolic_trace(Block().eval())

    with pytest.raises(PreconditionError, match="never traced"):
        convert(symbolic)


def test_refuses_stubs_without_a_scale() -> None:
    fused = transform(Block().eval(), (IMAGE,), backend=INDUCTOR).model

    with pytest.raises(PreconditionError, match=r"3 have no scale yet.*call calibrate"):
        convert(insert_qdq(fused, backend=INDUCTOR))


def test_refuses_training_mode() -> None:
    simulated = quantized(Block().eval())
    simulated.train()

    with pytest.raises(PreconditionError, match=r"call model.eval\(\)"):
        convert(simulated)
