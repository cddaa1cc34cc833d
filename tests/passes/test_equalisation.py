from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import register_parametrization

from embedl_deploy.backend import Backend
from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.graph import record_of
from embedl_deploy.graph.traced_module import with_own_modules
from embedl_deploy.passes.equalisation import equalise_layers
from embedl_deploy.quantization.equalisation import equalising_factors
from embedl_deploy.quantize import Precision, QuantConfig, TensorQuantConfig, quantize
from embedl_deploy.rewriting import PassRecord, TransformationReport
from embedl_deploy.transformation import transform

IMAGE = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def uneven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fills a model with values whose channels differ by some powers of ten."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5, generator=generator)
            spread = torch.rand(tensor.shape[:1], generator=generator)
            tensor.data *= (10.0 ** (3 * spread - 1.5)).reshape(-1, *(1,) * (tensor.dim() - 1))
            if tensor.dim() > 1:
                tensor.data *= torch.randn(tensor.shape, generator=generator)
    return model.eval()


def equalised(
    model: nn.Module, example: Tensor, backend: Backend = INDUCTOR
) -> tuple[GraphModule, PassRecord]:
    graph = with_own_modules(transform(model, (example,), backend=backend).model)
    return graph, equalise_layers(graph)


def convs(activation: nn.Module, groups: int, *, norm: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, bias=not norm),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        activation,
        nn.Conv2d(8, 8, 3, padding=1, groups=groups),
        nn.ReLU(),
        nn.Conv2d(8, 3, 1),
    )


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    groups=st.sampled_from([1, 2, 8]),
    norm=st.booleans(),
    slope=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_convolutions_compute_the_same_bits(
    seed: int, groups: int, norm: bool, slope: float
) -> None:
    model = uneven(convs(nn.LeakyReLU(slope), groups, norm=norm), seed)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = transform(model, (IMAGE,), backend=INDUCTOR).model(IMAGE)

    graph, record = equalised(model, IMAGE)

    assert len(record.applied) == 2
    assert torch.equal(graph(IMAGE), expected)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("backend", [INDUCTOR, TENSORRT])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)),
        lambda: nn.Sequential(nn.Linear(6, 7, bias=False), nn.PReLU(), nn.Linear(7, 3)),
        lambda: nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 3)),
    ],
)
def test_linear_layers_compute_the_same(backend: Backend, make: Callable[[], nn.Module]) -> None:
    model = uneven(make())
    expected = transform(model, (ROWS,), backend=backend).model(ROWS)

    graph, record = equalised(model, ROWS, backend)

    assert len(record.applied) == 1
    torch.testing.assert_close(graph(ROWS), expected, rtol=1e-6, atol=0)


class Doubled(nn.Module):
    """Makes a parameter from one half as large."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def with_computed_parameters(norm: nn.Module) -> nn.Module:
    first, second = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 3, 1)
    register_parametrization(first, "bias", Doubled())
    return nn.Sequential(weight_norm(first), norm, nn.ReLU(), weight_norm(second))


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm2d(8)])
def test_computed_weights_take_factors_and_stay_computed(norm: nn.Module) -> None:
    model = uneven(with_computed_parameters(norm))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = transform(model, (IMAGE,), backend=INDUCTOR).model(IMAGE)

    graph, record = equalised(model, IMAGE)

    assert len(record.applied) == 1
    assert torch.equal(graph(IMAGE), expected)
    assert graph.state_dict().keys() - before.keys() >= {"3.weight_computation.factors"}
    assert all(torch.equal(graph.state_dict()[key], before[key]) for key in before if key[0] != "1")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_layers_in_balance_keep_their_parameters() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    for parameter in model.parameters():
        nn.init.ones_(parameter)

    graph, record = equalised(model.eval(), ROWS)

    assert not record.applied
    assert graph.get_parameter("0.weight") is model[0].weight


def test_both_sides_get_the_same_range_up_to_a_factor_of_two() -> None:
    graph, _ = equalised(uneven(nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))), ROWS)

    state = graph.state_dict()
    ratio = state["0.weight"].abs().amax(1) / state["2.weight"].abs().amax(0)
    assert float(ratio.min()) > 0.49
    assert float(ratio.max()) < 2.01


def test_a_dead_channel_keeps_its_scale() -> None:
    factors = equalising_factors(torch.tensor([0.0, 4.0, 1.0, 1e30]), torch.tensor([1, 0, 16, 1]))

    assert factors.tolist() == [1.0, 1.0, 0.25, 2.0**16]


def test_int4_weights_of_one_scale_lose_less() -> None:
    model = uneven(convs(nn.ReLU(), 8, norm=True))
    coarse = TensorQuantConfig(Precision.INT4)

    balanced, plain = (
        quantize(model, (IMAGE,), QuantConfig(None, coarse, equalise=equalise), backend=TENSORRT)
        for equalise in (True, False)
    )

    with torch.no_grad():
        lost, lost_without = ((net(IMAGE) - model(IMAGE)).norm() for net in (balanced, plain))
    assert float(lost) < 0.8 * float(lost_without)


class Transposed(nn.Module):
    """Two linear layers the way GPT-2 spells them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 7))
        self.bias = nn.Parameter(torch.randn(7))
        self.weight2 = nn.Parameter(torch.randn(7, 3))
        self.bias2 = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(torch.addmm(self.bias, x, self.weight))
        return torch.addmm(self.bias2, x, self.weight2)


class Shared(nn.Module):
    """A layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


class ReadTwice(nn.Module):
    """What is between the layers goes to the output too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.second(x) + x


class Tied(ReadTwice):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Residual(nn.Module):
    """A residual between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(x)) + x))


REFUSED: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    r"GELU\(s · x\) is not s": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 2)),
        ROWS,
    ),
    "called more than once": (Shared, ROWS),
    "is also used by another node": (ReadTwice, ROWS),
    "weight of Linear is tied": (Tied, ROWS),
    "a residual is added": (Residual, IMAGE),
    "TransposedLinear has its input channels first": (Transposed, ROWS),
    "ConvTranspose2d has its input channels first": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 2), nn.ReLU(), nn.Conv2d(4, 2, 1)),
        IMAGE,
    ),
    "no gain to scale": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Conv2d(4, 2, 1)
        ),
        IMAGE,
    ),
    "not the features of a linear layer": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 2), nn.ReLU(), nn.Linear(8, 2)),
        IMAGE,
    ),
}


@pytest.mark.parametrize("because", REFUSED)
def test_leaves_alone_with_a_reason(because: str) -> None:
    make, example = REFUSED[because]
    model = uneven(make())
    expected = transform(model, (example,), backend=INDUCTOR).model(example)

    graph, record = equalised(model, example)

    assert not record.applied
    (site,) = record.refused
    with pytest.raises(AssertionError, match=because):
        raise AssertionError(str(site))
    assert torch.equal(graph(example), expected)


def test_the_report_names_each_pair() -> None:
    model = uneven(nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)))

    graph = quantize(model, (ROWS,), QuantConfig(None, equalise=True), backend=TENSORRT)

    report = record_of(graph).report
    assert isinstance(report, TransformationReport)
    (record,) = [one for one in report.passes if one.name == "equalisation"]
    assert len(record.applied) == 1
    assert "factors up to" in str(record.applied[0])
