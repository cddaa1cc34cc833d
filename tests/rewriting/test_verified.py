from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy.errors import PreconditionError, VerificationError
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.patterns import FuseConvNorm, FuseLinearActivation
from embedl_deploy.rewriting import (
    Chain,
    Input,
    Named,
    Op,
    Pattern,
    PatternMatch,
    Phase,
    Refusal,
    apply_patterns,
)
from embedl_deploy.rewriting.verify import Verifier, shown_change
from embedl_deploy.testing import randomize
from embedl_deploy.tracing import trace
from embedl_deploy.transformation import (
    apply_transformation_plan,
    get_transformation_plan,
    transform,
)

ATEN = torch.ops.aten
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


class DropNorm(Pattern):
    """Wrong: leaves the norm out."""

    phase = Phase.FUSION
    tree = Chain(conv=nn.Conv2d, norm=nn.BatchNorm2d, act=nn.ReLU)

    def replace(self, match: PatternMatch) -> Node:
        return match.call_module(nn.ReLU(), match["conv"])


class ScaleInPlace(Pattern):
    """Wrong: folds the norm's scale into the weight of the user's own convolution."""

    phase = Phase.FUSION
    tree = Chain(conv=nn.Conv2d, norm=nn.BatchNorm2d)

    def replace(self, match: PatternMatch) -> Node:
        conv = match.module("conv", nn.Conv2d)
        conv.weight.data.mul_(2.0)
        return match.call_module(conv, match["conv"].args[0])


class ScaleInPlaceByTorch(ScaleInPlace):
    """The same, in a way that torch takes note of."""

    def replace(self, match: PatternMatch) -> Node:
        with torch.no_grad():
            match.module("conv", nn.Conv2d).weight.mul_(2.0)
        return match["conv"]


class Blocks(nn.Module):
    """Two blocks of convolution, norm and ReLU, then a difference."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        return self.norm2(self.conv2(y)) - y


def model() -> nn.Module:
    return randomize(Blocks()).eval()


def test_a_right_rewrite_passes() -> None:
    original = model()

    result = transform(original, (IMAGE,), patterns=[FuseConvNorm], verify=True)

    assert result.report.applied_count == 2
    assert result.report.skipped_count == 0
    assert relative_error(result.model(IMAGE), original(IMAGE)) < 1e-6


def test_a_wrong_site_is_rolled_back_and_what_it_overlapped_goes_on() -> None:
    original = model()

    result = transform(original, (IMAGE,), patterns=[DropNorm, FuseConvNorm], verify=True)

    assert result.report.counts() == {"fuse-conv-norm": 2}
    (refused,) = [site for site in result.report.refusals() if site.pattern == "drop-norm"]
    assert refused.reason is not None
    assert refused.reason.startswith("rolled back")
    assert relative_error(result.model(IMAGE), original(IMAGE)) < 1e-6


def test_raise_names_pattern_node_line_and_values() -> None:
    message = r"drop-norm at %relu \(.*test_verified.py:\d+\).*\[.*\] became \[.*\]"

    with pytest.raises(VerificationError, match=message):
        transform(model(), (IMAGE,), patterns=[DropNorm], verify="raise")


def test_a_veto_stays_a_veto_under_verification() -> None:
    plan = get_transformation_plan(model(), (IMAGE,), patterns=[FuseConvNorm])
    first, _ = plan.sites()
    first.apply = False

    result = apply_transformation_plan(plan, (IMAGE,), verify=True)

    assert result.report.applied_count == 1
    (refused,) = result.report.refusals()
    assert refused.reason == "vetoed in the plan"


def _scales_by_one_and_a_half(node: Node) -> bool:
    return 1.5 in node.args


class RoundsDown(Pattern):
    """Each site moves its output by less than it promises; three in a row by more."""

    phase = Phase.FUSION
    tree = Chain(scale=Op(ATEN.mul.Tensor, where=_scales_by_one_and_a_half))
    tolerance = 1e-2

    def replace(self, match: PatternMatch) -> Node:
        return match.call_function(ATEN.mul.Tensor, match.root.args[0], 1.512)


class Scales(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ((x * 1.5).sin() + x.cos() * 1.5).exp() * 2.0


def test_sites_that_fail_only_together_are_rolled_back_together() -> None:
    rows = torch.full((4, 6), 0.7)

    result = transform(Scales().eval(), (rows,), patterns=[RoundsDown], verify=True)

    reasons = [site.reason or "" for site in result.report.refusals()]
    assert len(reasons) == 2
    assert all("together with rounds-down" in reason for reason in reasons)
    assert torch.equal(result.model(rows), Scales()(rows))


@pytest.mark.parametrize("rule", [ScaleInPlace, ScaleInPlaceByTorch])
@pytest.mark.parametrize("verify", [False, True])
def test_a_change_of_the_users_own_parameters_is_taken_back(
    rule: type[Pattern], verify: bool
) -> None:
    original = model()
    before = original(IMAGE)

    result = transform(original, (IMAGE,), patterns=[rule], verify=verify)

    assert result.report.applied_count == 0
    assert all("changed conv" in (site.reason or "") for site in result.report.refusals())
    assert torch.equal(original(IMAGE), before)


class SetsNewWeight(ScaleInPlace):
    """The same by a new parameter, and another setting, in the layer that other calls share."""

    def replace(self, match: PatternMatch) -> Node:
        conv = match.module("conv", nn.Conv2d)
        conv.weight = nn.Parameter(conv.weight * 2.0)
        conv.stride = (2, 2)
        return match["conv"]


@pytest.mark.parametrize("verify", [False, True])
def test_a_layer_that_a_rewrite_changes_is_as_it_was(verify: bool) -> None:
    graph = trace(model(), (IMAGE,))
    before = graph(IMAGE)

    result = transform(graph, (IMAGE,), patterns=[SetsNewWeight], verify=verify)

    reasons = [site.reason or "" for site in result.report.refusals()]
    assert len(reasons) == 2
    assert all("changed conv" in text and ".weight and conv" in text for text in reasons)
    assert torch.equal(graph(IMAGE), before)
    assert torch.equal(result.model(IMAGE), before)


def doubled_by_memory(x: Tensor) -> Tensor:
    """Doubles what lies in memory one after the other."""
    rows, columns = x.shape
    return x.as_strided((rows, columns), (columns, 1)) * 2.0


def doubled_and_squeezed(x: Tensor) -> Tensor:
    """Doubles, and loses a dimension of size 1."""
    return (x * 2.0).squeeze()


class Double(Pattern):
    """Wrong on some layouts or sizes only, as ``function`` is."""

    phase = Phase.FUSION
    tree = Chain(mul=Op(ATEN.mul.Tensor, Input(), 2.0))

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def replace(self, match: PatternMatch) -> Node:
        return match.call_function(self.function, match.root.args[0])


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0


@pytest.mark.parametrize(
    ("function", "kind"),
    [(doubled_by_memory, "non-contiguous"), (doubled_and_squeezed, "size-1")],
)
def test_what_is_wrong_on_other_layouts_or_sizes_only_is_found(
    function: Callable[[Tensor], Tensor], kind: str
) -> None:
    result = transform(Twice().eval(), (ROWS,), patterns=[Double(function)], verify=True)

    assert torch.equal(function(ROWS), ROWS * 2.0)
    (refused,) = result.report.refusals()
    assert (refused.reason or "").startswith(f"rolled back: on {kind} inputs the output moved")


def test_what_is_right_on_every_layout_and_size_stays() -> None:
    def doubled(x: Tensor) -> Tensor:
        return x + x

    result = transform(Twice().eval(), (ROWS,), patterns=[Double(doubled)], verify=True)

    assert result.report.counts() == {"double": 1}


def _divides_by_three(node: Node) -> bool:
    return 3.0 in node.args


class MultiplyByAThird(Pattern):
    """Right up to rounding."""

    phase = Phase.FUSION
    tree = Chain(div=Op(ATEN.div.Tensor, where=_divides_by_three))

    def replace(self, match: PatternMatch) -> Node:
        return match.call_function(ATEN.mul.Tensor, match.root.args[0], 1.0 / 3.0)


class FloorsRounding(nn.Module):
    """Turns the last digits of a quotient into whole numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.floor(x / 3.0 * 1e6) % 7.0


def test_a_model_that_amplifies_rounding_is_not_blamed_on_a_rewrite() -> None:
    rows = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))

    result = transform(FloorsRounding().eval(), (rows,), patterns=[MultiplyByAThird], verify=True)

    assert result.report.applied_count == 1
    assert relative_error(result.model(rows), FloorsRounding()(rows)) > 1e-2
    assert any("agrees in float64" in note for note in result.report.notes)


class ScaleLate(Pattern):
    """Right but for what overflows: multiplies before it divides."""

    phase = Phase.FUSION
    tree = Chain(div=Op(ATEN.div.Tensor, where=_divides_by_three))

    def replace(self, match: PatternMatch) -> Node:
        large = match.call_function(ATEN.mul.Tensor, match.root.args[0], 1e30)
        return match.call_function(ATEN.div.Tensor, large, 3e30)


class DividesByThree(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 3.0 - 1.0


def test_a_rewrite_that_overflows_is_rolled_back_though_it_agrees_in_float64() -> None:
    huge = torch.full((2, 3), 1e20)

    result = transform(DividesByThree().eval(), (huge,), patterns=[ScaleLate], verify=True)

    assert result.report.applied_count == 0
    assert "became [inf, inf, inf, …]" in str(result.report)
    fits = transform(
        DividesByThree().eval(), (torch.ones(2, 3),), patterns=[ScaleLate], verify=True
    )
    assert fits.report.applied_count == 1


class SplitBias(Pattern):
    """Right: adds the bias apart, read from the layer that is no longer called."""

    phase = Phase.FUSION
    tree = Chain(linear=nn.Linear)

    def check(self, match: PatternMatch) -> Refusal | None:
        plain = "bias" not in dict(match.module("linear", nn.Linear).named_parameters())
        return Refusal("it has no bias", match.root) if plain else None

    def replace(self, match: PatternMatch) -> Node:
        linear = match.module("linear", nn.Linear)
        bare = nn.Linear(linear.in_features, linear.out_features, bias=False)
        bare.weight = linear.weight
        product = match.call_module(bare, match["linear"].args[0])
        bias = match.get_attr(linear.bias, "bias")
        return match.call_function(ATEN.add.Tensor, product, bias)


def test_a_parameter_that_is_read_apart_outlives_its_layer() -> None:
    original = nn.Sequential(nn.Linear(6, 4)).eval()

    result = transform(original, (ROWS,), patterns=[SplitBias], verify=True)

    assert result.report.applied_count == 1
    assert relative_error(result.model(ROWS), original(ROWS)) < 1e-6


def test_the_users_inputs_are_left_as_they_were() -> None:
    image = IMAGE.clone()

    transform(model(), (image,), patterns=[FuseConvNorm, FuseLinearActivation], verify=True)

    assert torch.equal(image, IMAGE)


def test_reports_are_equal_with_and_without_verification_where_all_is_right() -> None:
    plain = transform(model(), (IMAGE,), patterns=[FuseConvNorm])
    checked = transform(model(), (IMAGE,), patterns=[FuseConvNorm], verify=True)

    assert [str(site) for site in plain.report.applied_sites()] == [
        str(site) for site in checked.report.applied_sites()
    ]


class DifferenceAsIndex(nn.Module):
    """Reads a table where two columns of integers differ, as LayoutLM does."""

    def __init__(self, lowest: int) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 6)
        self.layers = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
        self.lowest = lowest

    def forward(self, boxes: Tensor) -> Tensor:
        y: Tensor = self.layers(self.table(boxes[:, 1] - boxes[:, 0] - self.lowest))
        return y


def test_integers_that_are_no_indices_give_way_to_zeros() -> None:
    graph = trace(DifferenceAsIndex(0).eval(), (torch.zeros(8, 2, dtype=torch.int64),))

    result = transform(graph, patterns=[FuseLinearActivation], verify=True)

    assert result.report.counts() == {"fuse-linear-activation": 1}


def test_a_model_that_takes_no_random_inputs_asks_for_its_own() -> None:
    boxes = torch.tensor([[0, 5]] * 8)
    graph = trace(DifferenceAsIndex(5).eval(), (boxes,))

    with pytest.raises(PreconditionError, match="pass args and kwargs"):
        transform(graph, patterns=[FuseLinearActivation], verify=True)
    assert transform(graph, (boxes,), patterns=[FuseLinearActivation], verify=True).report.counts()


def test_the_values_shown_are_the_first_that_differ() -> None:
    before = torch.arange(12.0).reshape(3, 4)
    after = before + 1e-7
    after[1, 2] = -5.0

    assert shown_change(before, after) == "[1, 2]: [6] became [-5]"
    assert shown_change(before, after[:2]) == "[0, 1, 2, …] became [1e-07, 1, 2, …]"
    assert shown_change(before, -before - 9).startswith("[0, 0], [0, 1], [0, 2] and 9 more: [0, 1")


class ReLUInPlace(Pattern):
    """Wrong: spoils what it reads."""

    phase = Phase.FUSION
    tree = Chain(act=nn.ReLU)

    def replace(self, match: PatternMatch) -> Node:
        return match.call_module(nn.ReLU(inplace=True), *match.inputs)


class ReLUInPlaceByOp(ReLUInPlace):
    def replace(self, match: PatternMatch) -> Node:
        return match.call_function(ATEN.relu_.default, *match.inputs)


class ScaleParameterInPlace(Pattern):
    """Wrong: each run scales the model's parameter."""

    phase = Phase.FUSION
    tree = Op(ATEN.mul.Tensor, Named("x", Input()), Named("scale", Input()))

    def replace(self, match: PatternMatch) -> Node:
        return match.call_function(ATEN.mul_.Tensor, match["scale"], match["x"])


class ReadTwice(nn.Module):
    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=inplace)
        self.scale = nn.Parameter(torch.full((4, 6), 2.0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) - x * self.scale


@pytest.mark.parametrize(
    ("pattern", "changed"),
    [(ReLUInPlace, "%x"), (ReLUInPlaceByOp, "%x"), (ScaleParameterInPlace, "scale")],
)
def test_a_replacement_that_changes_its_input_is_rolled_back(
    pattern: type[Pattern], changed: str
) -> None:
    original = ReadTwice().eval()

    result = transform(original, (ROWS,), patterns=[pattern], verify=True)

    (refused,) = result.report.refusals()
    assert f"the replacement changes what it reads, {changed}, in place" in (refused.reason or "")
    assert torch.equal(original.scale, torch.full((4, 6), 2.0))
    assert torch.equal(result.model(ROWS), original(ROWS))
    with pytest.raises(VerificationError, match="in place"):
        transform(original, (ROWS,), patterns=[pattern], verify="raise")


def test_what_the_model_itself_changes_in_place_may_be_changed() -> None:
    graph_module = trace(nn.Sequential(nn.Linear(6, 6), nn.ReLU()).eval(), (ROWS,))
    layer = graph_module.get_submodule("1")
    assert isinstance(layer, nn.ReLU)
    layer.inplace = True

    record = apply_patterns(graph_module, [ReLUInPlace], verify=Verifier(raises=True))

    assert len(record.applied) == 1


@pytest.mark.parametrize("verify", ["rais", "no", 1, None])
def test_verify_is_one_of_its_choices(verify: object) -> None:
    wrong = cast("bool", verify)
    message = r"verify is False, True \(what is wrong is rolled back\) or 'raise', got"
    plan = get_transformation_plan(model(), (IMAGE,), patterns=[FuseConvNorm])

    with pytest.raises(ValueError, match=message):
        transform(model(), (IMAGE,), patterns=[FuseConvNorm], verify=wrong)
    with pytest.raises(ValueError, match=message):
        apply_transformation_plan(plan, (IMAGE,), verify=wrong)
