import torch
from torch import Tensor, nn

from embedl_deploy.quantize import quantize

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
