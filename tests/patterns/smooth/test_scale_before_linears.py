import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.graph import record_of
from embedl_deploy.passes.quantization import find_matches
from embedl_deploy.patterns.smooth import MoveOutliersIntoLinears, ScaleBeforeLinears
from embedl_deploy.quantize import (
    ModulesToSkip,
    QuantConfig,
    SmoothQuantConfig,
    convert,
    quantize,
)
from embedl_deploy.rewriting import PassRecord, TransformationReport
from embedl_deploy.tracing import trace

ROWS = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))


class PostNorm(nn.Module):
    """The output of a norm with outliers feeds a residual add and a linear layer with GELU."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(16)
        self.norm.weight.data[:2] = torch.tensor([60.0, -90.0])
        self.up = nn.Linear(16, 24)
        self.up.weight.data[:, :2] *= 0.05
        self.up.weight.data[:2] *= 30.0
        self.down = nn.Linear(24, 16)
        self.down.weight.data[:, :2] *= 0.05

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.down(nn.functional.gelu(self.up(x))) + 0.01 * x


def quantized(
    smooth: SmoothQuantConfig | None, skip: ModulesToSkip | None = None
) -> tuple[GraphModule, list[PassRecord]]:
    config = QuantConfig(smooth=smooth, skip=skip or ModulesToSkip(), bias_correction=False)
    result = quantize(PostNorm().eval(), (ROWS,), config, forward_loop=[ROWS], backend=INDUCTOR)
    report = record_of(result).report
    assert isinstance(report, TransformationReport)
    return result, [record for record in report.passes if record.name == "smooth"]


def error(found: nn.Module) -> float:
    with torch.no_grad():
        reference = PostNorm()(ROWS)
        return float((found(ROWS) - reference).norm() / reference.norm())


@pytest.mark.parametrize("smooth", [SmoothQuantConfig(), SmoothQuantConfig(search=False)])
def test_a_product_before_the_layers_lowers_the_error(smooth: SmoothQuantConfig) -> None:
    found, (record,) = quantized(smooth)

    plain, _ = quantized(None)
    assert [site.pattern for site in record.applied] == ["scale-before-linears"] * 2
    assert error(found) < 0.6 * error(plain)
    assert sum("mul" in node.name for node in found.graph.nodes) == 3


def test_the_residual_reads_the_norm_itself() -> None:
    found, _ = quantized(SmoothQuantConfig())

    norm = next(node for node in found.graph.nodes if node.target == "norm")
    assert len(norm.users) == 2


def test_converts_to_the_same_values() -> None:
    found, _ = quantized(SmoothQuantConfig())

    torch.testing.assert_close(convert(found)(ROWS), found(ROWS))


def test_skip_rules_leave_a_site_alone() -> None:
    _, (record,) = quantized(SmoothQuantConfig(), ModulesToSkip(smooth={nn.LayerNorm, "down"}))

    assert not record.applied


def test_leaves_a_norm_alone_that_takes_the_factors_itself() -> None:
    class PreNorm(PostNorm):
        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.norm(x))

    graph = trace(PreNorm().eval(), (ROWS,))

    assert find_matches(graph, (ScaleBeforeLinears,)) == ()


def test_leaves_an_activation_alone_that_no_linear_layer_reads() -> None:
    graph = trace(nn.Sequential(nn.Linear(16, 4), nn.GELU()).eval(), (ROWS,))

    assert find_matches(graph, (ScaleBeforeLinears,)) == ()


def test_refuses_a_layer_that_is_called_twice() -> None:
    class Twice(PostNorm):
        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.norm(x)) + self.up(x) + self.norm.weight.sum()

    graph = trace(nn.Sequential(nn.GELU(), Twice()).eval(), (ROWS,))

    (match,) = find_matches(graph, (MoveOutliersIntoLinears,))

    assert match.refusal is not None
    assert "called more than once" in match.refusal.reason
