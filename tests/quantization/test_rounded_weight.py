import pytest
import torch

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.layer_inputs import InputMoments, input_columns
from embedl_deploy.quantization import CalibrationMethod, Precision, TensorQuantConfig
from embedl_deploy.quantization.rounded_weight import RoundedWeight
from embedl_deploy.quantization.weight_rounding import compensated_codes
from embedl_deploy.quantization.weights import WeightFakeQuantize
from embedl_deploy.quantize import QuantConfig, WeightRounding, convert, quantize

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CONFIGS = {
    "per channel": TensorQuantConfig(per_channel=True),
    "per tensor": TensorQuantConfig(),
    "in groups": TensorQuantConfig(group_size=16),
    "clipped": TensorQuantConfig(per_channel=True, calibration_method=CalibrationMethod.MSE),
    "int16": TensorQuantConfig(Precision.INT16, per_channel=True),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_gives_the_codes_it_was_given(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 64, generator=generator).to(dtype).requires_grad_()
    nearest = WeightFakeQuantize(CONFIGS[name], weight.shape)
    nearest.freeze(weight)
    limits = nearest.grid.quant_min, nearest.grid.quant_max
    steps = torch.randint(-2, 3, weight.shape, generator=generator)
    codes = (nearest.codes_of(weight)[0] + steps).clamp(*limits)

    rounded = RoundedWeight(nearest, weight, codes)

    found, scale = rounded.codes_of(weight)
    assert torch.equal(found.long(), codes.long())
    each = scale.repeat_interleave(16, 1) if name == "in groups" else scale.reshape(-1, 1)
    values = rounded(weight)
    assert values.dtype == dtype
    torch.testing.assert_close(values, (codes * each).to(dtype))
    values.sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones_like(weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_converts_to_the_codes_that_were_chosen(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = (torch.randn(256, 64) @ torch.randn(64, 64)).to(dtype)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64)).eval().to(dtype)
    config = QuantConfig(
        activation=None, weight_rounding=WeightRounding.GPTQ, smooth=None, bias_correction=False
    )

    rounded = quantize(model, (rows,), config, [rows], backend=INDUCTOR)
    converted = convert(rounded)

    (layer,) = [part for part in rounded.modules() if isinstance(part, WeightedFused)]
    moments = InputMoments()
    moments.add(input_columns(layer, rows))
    gram, quantizer = moments.gram(centred=False), layer.weight_fake_quant
    assert gram is not None
    assert isinstance(quantizer, RoundedWeight)
    weight = layer.folded_weight_and_bias()[0].detach()
    (chosen,) = compensated_codes(
        weight[None], quantizer.scale[None, :, None], quantizer.grid, gram
    )
    (stored,) = [value for value in converted.state_dict().values() if value.dtype == torch.int8]
    assert torch.equal(stored.float(), chosen)
