import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.graph import record_of
from embedl_deploy.passes.quantization import find_matches
from embedl_deploy.patterns.smooth import MoveOutliersIntoLinears
from embedl_deploy.quantize import (
    ModulesToSkip,
    QuantConfig,
    SmoothQuantConfig,
    TensorQuantConfig,
    WeightFakeQuantize,
    quantize,
)
from embedl_deploy.rewriting import PassRecord, TransformationReport
from embedl_deploy.tracing import trace

PATTERN = "move-outliers-into-linears"
ROWS = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))


class Encoder(nn.Module):
    """A norm with two outlier channels, read by two linear layers."""

    def __init__(self, norm: nn.LayerNorm | nn.RMSNorm | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = norm or nn.LayerNorm(16)
        if self.norm.elementwise_affine:
            self.norm.weight.data[:2] = torch.tensor([60.0, -90.0])
        self.query = nn.Linear(16, 8)
        self.key = nn.Linear(16, 8)
        for layer in (self.query, self.key):
            layer.weight.data[:, :2] *= 0.05

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.query(y) * self.key(y)


class ReadTwice(Encoder):
    """The norm is added to the result, as in a post-norm transformer."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.query(y) * self.key(y) + y.sum()


class CalledTwice(Encoder):
    """One layer reads two tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return self.query(self.norm(x)) + self.query(x)


class Tied(Encoder):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.key.weight = self.query.weight


def smoothed(
    model: nn.Module,
    skip: ModulesToSkip | None = None,
    search: bool = True,
) -> tuple[nn.Module, PassRecord]:
    config = QuantConfig(
        smooth=SmoothQuantConfig(search=search), skip=skip or ModulesToSkip(), bias_correction=False
    )
    result = quantize(model.eval(), (ROWS,), config, forward_loop=[ROWS], backend=INDUCTOR)
    report = record_of(result).report
    assert isinstance(report, TransformationReport)
    return result, next(record for record in report.passes if record.name == "smooth")


def reasons(record: PassRecord) -> list[str]:
    return [str(site.reason) for site in record.refused if site.pattern == PATTERN]


def error(found: nn.Module, model: nn.Module) -> float:
    with torch.no_grad():
        return float((found(ROWS) - model(ROWS)).norm() / model(ROWS).norm())


def plain(model: nn.Module) -> nn.Module:
    config = QuantConfig(bias_correction=False, smooth=None)
    return quantize(model.eval(), (ROWS,), config, forward_loop=[ROWS], backend=INDUCTOR)


@pytest.mark.parametrize("norm", [nn.LayerNorm(16), nn.RMSNorm(16)])
@pytest.mark.parametrize("search", [True, False])
def test_outliers_cost_less_after_smoothing(norm: nn.LayerNorm | nn.RMSNorm, search: bool) -> None:
    model = Encoder(norm)

    found, record = smoothed(model, search=search)

    assert [site.pattern for site in record.applied] == ["move-outliers-into-linears"]
    assert error(found, model) < 0.6 * error(plain(model), model)


def test_the_function_itself_is_unchanged_and_so_is_the_model() -> None:
    model = Encoder()
    before = model.norm.weight.clone()
    config = QuantConfig(
        activation=None,
        weight=TensorQuantConfig(per_channel=True),
        smooth=SmoothQuantConfig(search=False),
        bias_correction=False,
    )

    found = quantize(model.eval(), (ROWS,), config, forward_loop=[ROWS], backend=INDUCTOR)
    for module in found.modules():
        if isinstance(module, WeightFakeQuantize):
            module.quantizing = False

    assert error(found, model) < 1e-5
    assert not torch.equal(found.get_parameter("norm.weight"), before)
    assert torch.equal(model.norm.weight, before)


def test_smoothing_is_left_out_where_it_does_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedl_deploy.passes.smoothing._WORTH_IT", 0.0)

    found, record = smoothed(Encoder())

    assert reasons(record) == ["no strength leaves less error than none"]
    torch.testing.assert_close(found(ROWS), plain(Encoder())(ROWS))


@pytest.mark.parametrize(
    ("model", "because"),
    [
        (ReadTwice(), "reads the norm too"),
        (Encoder(nn.LayerNorm(16, elementwise_affine=False)), "no gain to fold factors into"),
        (CalledTwice(), "called more than once"),
        (Tied(), "tied to another parameter"),
    ],
)
def test_refuses_with_the_reason(model: nn.Module, because: str) -> None:
    _, record = smoothed(model)

    assert PATTERN not in [site.pattern for site in record.applied]
    assert [because in reason for reason in reasons(record)] == [True]


@pytest.mark.parametrize("rule", [nn.LayerNorm, "norm", "query"])
def test_skip_rules_leave_a_site_alone(rule: type[nn.Module] | str) -> None:
    _, record = smoothed(Encoder(), ModulesToSkip(smooth={rule}))

    assert not record.applied
    assert "skip.smooth names it" in reasons(record)[0]


def test_finds_one_site_per_norm() -> None:
    graph = trace(Encoder().eval(), (ROWS,))

    matches = find_matches(graph, (MoveOutliersIntoLinears,))

    assert [match["value"].name for match in matches] == ["norm"]


class Moved(nn.Module):
    """A norm with two outlier channels; what reads it gets its rows in another form."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.norm = nn.LayerNorm(16)
        self.norm.weight.data[:2] = torch.tensor([60.0, -90.0])
        is_convolution = way.startswith("convolution")
        groups = 16 if way == "convolution of groups" else 1
        self.layer = nn.Conv2d(16, 16, 2, 2, groups=groups) if is_convolution else nn.Linear(16, 8)
        if groups == 1:
            self.layer.weight.data[:, :2] *= 0.05

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.reshape(4, 4, 4, 16))
        if self.way == "transposed":
            return self.layer(y.transpose(0, 1)).transpose(0, 1)
        if self.way == "in windows":
            return self.layer(y.reshape(2, 2, 4, 4, 16).permute(0, 2, 1, 3, 4).flatten(1, 2))
        if self.way == "other channels":
            return self.layer(y.transpose(2, 3).reshape(4, 4, 4, 16))
        if self.way == "read on the way":
            rows = y.flatten(0, 1)
            return self.layer(rows) + rows.sum()
        return self.layer(y.permute(0, 3, 1, 2))


@pytest.mark.parametrize("way", ["transposed", "in windows", "convolution"])
def test_channels_are_followed_to_the_layers_that_read_them(way: str) -> None:
    model = Moved(way)

    found, record = smoothed(model)

    assert [site.pattern for site in record.applied] == [PATTERN]
    assert error(found, model) < 0.6 * error(plain(model), model)


def test_sizes_that_depend_on_data_are_not_guessed() -> None:
    class Chosen(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            return self.query(self.norm(x[x[:, 0] > 0]).unsqueeze(0))

    model = Chosen()

    found, record = smoothed(model)

    assert [site.pattern for site in record.applied] == [PATTERN]
    assert error(found, model) < 0.6 * error(plain(model), model)


@pytest.mark.parametrize("way", ["other channels", "read on the way", "convolution of groups"])
def test_channels_that_get_mixed_or_are_read_otherwise_stay(way: str) -> None:
    _, record = smoothed(Moved(way))

    assert not record.applied


def test_a_norm_of_pooled_channels_reaches_the_linear_layer_behind_it() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = Moved("transposed")
            self.norm, self.layer = inner.norm, inner.layer

        def forward(self, x: Tensor) -> Tensor:
            pooled = x.unsqueeze(1).unsqueeze(1)
            return self.layer(self.norm(pooled).permute(0, 3, 1, 2).flatten(1))

    model = Pooled()

    found, record = smoothed(model)

    assert [site.pattern for site in record.applied] == [PATTERN]
    assert error(found, model) < 0.6 * error(plain(model), model)


def test_attention_is_smoothed_and_its_joint_weight_has_one_value() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm = nn.LayerNorm(16)
            self.norm.weight.data[:2] = torch.tensor([6.0, -9.0])
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x.unsqueeze(0))
            return self.attention(y, y, y, need_weights=False)[0][0]

    model = Attention()

    found, record = smoothed(model)

    assert PATTERN in [site.pattern for site in record.applied]
    joint = found.get_parameter("attention.in_proj_weight")
    assert joint is found.get_parameter("attention.in_proj.weight")
    assert not torch.equal(joint, model.attention.in_proj_weight)
