import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from embedl_deploy.quantize import QuantConfig, SmoothQuantConfig, convert, quantize

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
