import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.modules.fused_conv import fused_conv
from embedl_deploy.modules.fused_linear import fused_linear
from embedl_deploy.modules.fused_norm_linear import FusedNormLinear
from embedl_deploy.passes.bias_correction import correct_biases, watching_inputs
from embedl_deploy.quantization import (
    Precision,
    QuantStub,
    TensorQuantConfig,
    WeightFakeQuantize,
)

COARSE = TensorQuantConfig(Precision.INT4)
SEED = torch.Generator().manual_seed(0)
ROWS = torch.rand(64, 8, generator=SEED) * torch.arange(1.0, 9.0)
IMAGES = torch.rand(4, 8, 6, 6, generator=SEED) * torch.arange(1.0, 9.0).reshape(8, 1, 1)


def with_quantizer(layer: WeightedFused) -> WeightedFused:
    weight, _ = layer.folded_weight_and_bias()
    layer.weight_fake_quant = WeightFakeQuantize(COARSE, weight.shape, layer.weight_axis)
    return layer.eval()


def mean_shift(layer: WeightedFused, x: Tensor) -> float:
    dimensions = [0, *range(2, x.dim())]
    with torch.no_grad():
        rounded, reference = layer(x), layer.run_parts(x)
    return float((rounded - reference).mean(dimensions).abs().max())


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (fused_linear(nn.Linear(8, 5)), ROWS),
        (fused_linear(nn.Linear(8, 5, bias=False)), ROWS),
        (fused_conv(nn.Conv2d(8, 6, 3)), IMAGES),
        (fused_conv(nn.Conv2d(8, 6, 3, groups=2, bias=False)), IMAGES),
        (fused_conv(nn.ConvTranspose2d(8, 6, 1)), IMAGES),
    ],
)
def test_the_mean_output_is_that_of_float(layer: WeightedFused, x: Tensor) -> None:
    with_quantizer(layer)
    before = mean_shift(layer, x)

    with watching_inputs(layer) as means:
        layer(x)
    correct_biases(means)

    assert before > 1e-2
    # Images vary over positions and a convolution sees their middle more often than their rim.
    assert mean_shift(layer, x) < (1e-5 if x.dim() == 2 else 0.35 * before)


def test_the_mean_after_a_norm_is_what_counts() -> None:
    norm = nn.LayerNorm(8)
    nn.init.uniform_(norm.bias, 1.0, 2.0)
    layer = FusedNormLinear(norm, nn.Linear(8, 5))
    layer.linear_input_stub = QuantStub(TensorQuantConfig())
    with_quantizer(layer)
    before = mean_shift(layer, ROWS)

    with watching_inputs(layer) as means:
        layer(ROWS)
    correct_biases(means)

    assert mean_shift(layer, ROWS) < 1e-4 * before


def test_batches_add_up() -> None:
    whole, parts = (with_quantizer(fused_linear(nn.Linear(8, 5))) for _ in range(2))
    parts.weighted.load_state_dict(whole.weighted.state_dict())

    with watching_inputs(whole) as means:
        whole(ROWS)
    correct_biases(means)
    with watching_inputs(parts) as means:
        for batch in (ROWS[:10], ROWS[10:]):
            parts(batch)
    correct_biases(means)

    assert whole.bias_correction is not None
    torch.testing.assert_close(parts.bias_correction, whole.bias_correction)


def test_a_layer_that_saw_nothing_is_left_alone() -> None:
    layer = with_quantizer(fused_linear(nn.Linear(8, 5)))

    with watching_inputs(layer) as means:
        pass
    record = correct_biases(means)

    assert layer.bias_correction is None
    assert record.notes == ("0 biases corrected",)
