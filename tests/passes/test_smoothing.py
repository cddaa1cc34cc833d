import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from embedl_deploy.passes.smoothing import rounding_like
from embedl_deploy.quantize import (
    CalibrationMethod,
    QuantConfig,
    SmoothQuantConfig,
    TensorQuantConfig,
    convert,
    quantize,
)

BATCHES = 24


def batches() -> list[Tensor]:
    """Inputs of which only the last holds an outlier."""
    rows = list(torch.randn(BATCHES, 4, 8, generator=torch.Generator().manual_seed(0)))
    rows[-1][0, 3] = 80.0
    return rows


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4)).eval()


def outputs(quantized: nn.Module) -> Tensor:
    return torch.stack([quantized(batch) for batch in batches()])


def test_smoothing_sees_all_the_data_however_it_comes() -> None:
    example = (torch.zeros(4, 8),)
    net = model()

    from_list = quantize(net, example, forward_loop=batches(), backend="inductor")
    from_loop = quantize(
        net,
        example,
        forward_loop=lambda given: [given(batch) for batch in batches()],
        backend="inductor",
    )
    cut_short = quantize(net, example, forward_loop=batches()[:-1], backend="inductor")

    assert any("smoothing_factors" in key for key in from_list.state_dict())
    torch.testing.assert_close(outputs(from_list), outputs(from_loop), rtol=0, atol=0)
    assert not torch.equal(outputs(from_list), outputs(cut_short))


def lost(quantized: nn.Module, net: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((quantized(x) - net(x)).norm() / net(x).norm())


def test_a_computed_weight_takes_its_factors_and_stays_computed() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    net = nn.Sequential(nn.LayerNorm(16), weight_norm(nn.Linear(16, 8))).eval()
    nn.init.uniform_(net.get_parameter("0.weight"), 0.01, 30)

    plain, smoothed = (
        quantize(net, (x,), QuantConfig(smooth=smooth), [x], backend="inductor")
        for smooth in (None, SmoothQuantConfig())
    )

    assert lost(smoothed, net, x) < 0.7 * lost(plain, net, x)
    assert torch.equal(convert(smoothed)(x), smoothed(x))
    factors = smoothed.state_dict()["1.weight_computation.factors"]
    assert factors.shape == (16,)
    assert factors.max() > 2 * factors.min()
    other = copy.deepcopy(smoothed)
    other.get_buffer("1.weight_computation.factors").fill_(1.0)
    other.load_state_dict(smoothed.state_dict())
    assert torch.equal(other(x), smoothed(x))
    smoothed.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in smoothed.parameters())


def uneven_norm() -> nn.Module:
    """The channels of its norm differ in size, and all are shifted to one side."""
    net = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 24)).eval()
    nn.init.uniform_(net.get_parameter("0.weight"), 0.01, 3)
    nn.init.uniform_(net.get_parameter("0.bias"), 0, 20)
    with torch.no_grad():
        net.get_parameter("0.weight")[3] = 40
    return net


def uneven_gelu() -> nn.Module:
    """The channels of its activation differ in size; all but a little lies above zero."""
    net = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 16)).eval()
    with torch.no_grad():
        net.get_parameter("0.weight").mul_(torch.logspace(-1, 1.5, 32)[torch.randperm(32)][:, None])
    return net


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("make", "config", "backend"),
    [
        (uneven_norm, QuantConfig(activation=None), "inductor"),
        (uneven_norm, QuantConfig(weight=None), "inductor"),
        (uneven_gelu, QuantConfig(), "tensorrt"),
    ],
    ids=["weights only", "activations only", "symmetric activations"],
)
def test_the_search_rounds_what_will_be_rounded(
    make: Callable[[], nn.Module], config: QuantConfig, backend: str, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(256, 32)
    net = make()

    def error(smooth: SmoothQuantConfig | None) -> float:
        chosen = replace(config, smooth=smooth, bias_correction=False)
        return lost(quantize(net, (x,), chosen, [x], backend=backend), net, x)

    fixed = [SmoothQuantConfig(strength, search=False) for strength in (0.2, 0.5, 0.7, 0.8, 0.9)]
    assert error(SmoothQuantConfig()) < 1.06 * min(map(error, (None, *fixed)))


@pytest.mark.parametrize("group_size", [None, 4])
def test_a_weight_is_tried_where_it_lies(group_size: int | None) -> None:
    weight = torch.empty(4, 8, device="meta")

    rounding = rounding_like(weight, TensorQuantConfig(per_channel=True, group_size=group_size))

    assert {buffer.device.type for buffer in rounding.buffers()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", [CalibrationMethod.MINMAX, CalibrationMethod.HISTOGRAM])
def test_a_model_on_cuda_is_smoothed_as_on_the_cpu(method: CalibrationMethod) -> None:
    torch.manual_seed(0)
    x, net = torch.randn(256, 32), uneven_norm()
    activation = TensorQuantConfig(symmetric=False, calibration_method=method)

    there, here = (
        quantize(
            copy.deepcopy(net).to(device),
            (data,),
            QuantConfig(activation),
            [data],
            backend="inductor",
        )
        for device, data in (("cuda", x.cuda()), ("cpu", x))
    )

    torch.testing.assert_close(
        there.get_parameter("0.weight").cpu(), here.get_parameter("0.weight"), rtol=1e-4, atol=1e-5
    )
    assert not torch.equal(here.get_parameter("0.weight"), net.get_parameter("0.weight"))
    assert abs(lost(there, net.cuda(), x.cuda()) - lost(here, net.cpu(), x)) < 1e-3
