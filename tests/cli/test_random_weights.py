import torch
from torch import nn

from embedl_deploy.cli.random_weights import fill_zero_parameters, seeded, warm_up_norms


def test_norms_take_the_statistics_of_the_data() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=0.3)).eval()
    data = torch.randn(4000, 3) * 5.0 + 2.0

    warm_up_norms(model, lambda module: module(data))

    norm = model[0]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, data.mean(0))
    assert norm.momentum == 0.3
    assert not norm.training


def test_zero_weights_are_drawn_and_zero_biases_stay() -> None:
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)

    fill_zero_parameters(layer)

    assert layer.weight.all()
    assert not layer.bias.any()


def test_seeded_gives_the_random_state_back() -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)

    with seeded(1):
        torch.randn(7)

    assert torch.equal(torch.randn(3), expected)
