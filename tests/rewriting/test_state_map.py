import copy
import pickle
import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils.fusion import fuse_conv_bn_eval

from embedl_deploy import TransformationResult, transform
from embedl_deploy.errors import PlanError
from embedl_deploy.graph import record_of
from embedl_deploy.patterns import (
    Chain,
    FuseLinearActivation,
    Op,
    Pattern,
    PatternMatch,
    Phase,
    Refusal,
)
from embedl_deploy.tracing import trace

GENERATOR = torch.Generator().manual_seed(0)
IMAGE = torch.randn(2, 3, 8, 8, generator=GENERATOR)
ROWS = torch.randn(2, 5, 8, generator=GENERATOR)
ATEN = torch.ops.aten


class FoldNorm(Pattern):
    phase = Phase.FUSION
    tree = Chain(conv=nn.Conv2d, norm=nn.BatchNorm2d)

    def check(self, match: PatternMatch) -> Refusal | None:
        smallest = match.module("norm", nn.BatchNorm2d).weight.min()
        return Refusal("the norm has a negative gain", match.root) if smallest < 0 else None

    def replace(self, match: PatternMatch) -> Node:
        conv, norm = match.module("conv", nn.Conv2d), match.module("norm", nn.BatchNorm2d)
        return match.call_module(fuse_conv_bn_eval(conv, norm), *match.inputs)


class SplitInThree(Pattern):
    """Splits a linear layer that yields q, k and v side by side."""

    phase = Phase.CONVERSION
    tree = Chain(linear=nn.Linear)

    def check(self, match: PatternMatch) -> Refusal | None:
        linear = match.module("linear", nn.Linear)
        is_packed = linear.out_features == 3 * linear.in_features
        return None if is_packed else Refusal("it yields one value", match.root)

    def replace(self, match: PatternMatch) -> Node:
        weight = match.module("linear", nn.Linear).weight
        key = f"{match['linear'].target}.weight"
        parts = [
            match.get_attr(nn.Parameter(part.detach().clone()), "part", replaces=(key,))
            for part in weight.chunk(3)
        ]
        rows = [match.call_function(ATEN.linear.default, match.inputs[0], part) for part in parts]
        return match.call_function(ATEN.cat.default, rows, -1)


class FoldScale(Pattern):
    """Folds ``linear(x) * 0.5`` into the weight."""

    phase = Phase.CONVERSION
    tree = Chain(linear=nn.Linear, half=Op(ATEN.mul.Tensor, ..., 0.5))

    def replace(self, match: PatternMatch) -> Node:
        linear = copy.deepcopy(match.module("linear", nn.Linear))
        with torch.no_grad():
            linear.weight.mul_(0.5)
            linear.bias.mul_(0.5)
        return match.call_module(linear, *match.inputs)


class Halved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * 0.5


class Tied(nn.Module):
    """Two packed layers around one weight, and a layer that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 24, bias=False), nn.Linear(8, 24, bias=False)
        self.second.weight = self.first.weight
        self.last = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(torch.relu(self.first(x)[..., :8])))


def image_net() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return randomized(model)


def randomized(model: nn.Sequential) -> nn.Sequential:
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model.eval()


def rewritten(
    model: nn.Module, rows: Tensor, patterns: Sequence[type[Pattern]]
) -> TransformationResult:
    result = transform(model, (rows,), patterns=patterns, verify=True)
    assert result.report.applied_count >= 1
    return result


def test_a_folded_norm_is_folded_again() -> None:
    model, other = image_net(), image_net()
    before = copy.deepcopy(model.state_dict())
    result = rewritten(model, IMAGE, [FoldNorm])

    result.load_state_dict(other.state_dict())

    torch.testing.assert_close(result.model(IMAGE), other(IMAGE))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_split_weight_is_split_again_and_ties_stay() -> None:
    model, other = Tied().eval(), Tied().eval()
    result = rewritten(model, ROWS, [SplitInThree])

    result.load_state_dict(other.state_dict())

    assert result.report.key_map["first.weight"][:3] == ("part", "part_1", "part_2")
    torch.testing.assert_close(result.model(ROWS), other(ROWS))


def test_the_state_of_the_rewritten_model_loads_as_it_is() -> None:
    result = rewritten(image_net(), IMAGE, [FoldNorm])
    other = rewritten(image_net(), IMAGE, [FoldNorm])

    result.load_state_dict(other.model.state_dict())

    assert torch.equal(result.model(IMAGE), other.model(IMAGE))


def test_missing_unexpected_and_misshapen_keys_are_named_as_the_model_names_them() -> None:
    state = dict(image_net().state_dict())
    result = rewritten(image_net(), IMAGE, [FoldNorm])

    with pytest.raises(RuntimeError, match=r"Missing key.*\"1\.running_mean\""):
        result.load_state_dict({key: state[key] for key in state if key != "1.running_mean"})
    with pytest.raises(RuntimeError, match=r"Missing key.*\"3\.weight\""):
        result.load_state_dict({key: state[key] for key in state if key != "3.weight"})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*\"extra\""):
        result.load_state_dict({**state, "extra": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"size mismatch for 1\.weight"):
        result.load_state_dict({**state, "1.weight": torch.zeros(7)})


def test_keys_that_are_not_given_keep_their_values_where_that_is_asked_for() -> None:
    model, other = image_net(), image_net()
    result = rewritten(model, IMAGE, [FoldNorm])
    gain = {"1.weight": other.get_parameter("1.weight")}
    mixed = copy.deepcopy(model)
    mixed.load_state_dict(gain, strict=False)

    result.load_state_dict(gain, strict=False)

    torch.testing.assert_close(result.model(IMAGE), mixed(IMAGE))


def test_weights_that_a_rewrite_does_not_take_are_refused_with_the_place() -> None:
    result = rewritten(image_net(), IMAGE, [FoldNorm])
    other = image_net()
    nn.init.constant_(other.get_parameter("1.weight"), -1.0)

    with pytest.raises(PlanError, match=r"fold-norm at %.*negative gain.*transform it again"):
        result.load_state_dict(other.state_dict())


def test_two_transformations_in_a_row_are_both_done_again() -> None:
    model = nn.Sequential(Tied(), Halved(), nn.ReLU()).eval()
    other = copy.deepcopy(randomized(model))
    first = rewritten(model, ROWS, [SplitInThree])
    second = transform(first.model, patterns=[FoldScale])
    third = transform(second.model, patterns=[FuseLinearActivation])

    third.load_state_dict(other.state_dict())

    assert [second.report.applied_count, third.report.applied_count] == [1, 1]
    torch.testing.assert_close(third.model(ROWS), other(ROWS))


def test_copies_and_parents_of_a_rewritten_model_load_the_state_too() -> None:
    other = image_net()
    graph = copy.deepcopy(rewritten(image_net(), IMAGE, [FoldNorm]).model)
    parent = nn.Sequential(nn.Identity(), graph)

    parent.load_state_dict(nn.Sequential(nn.Identity(), other).state_dict())

    torch.testing.assert_close(parent(IMAGE), other(IMAGE))


def test_loading_never_reaches_the_model_that_was_traced() -> None:
    model, other = image_net(), image_net()
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, (IMAGE,))

    graph.load_state_dict(other.state_dict())

    assert torch.equal(graph(IMAGE), other(IMAGE))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_only_rewrites_that_touch_parameters_keep_the_graph_from_before() -> None:
    layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()

    fused = rewritten(layers, ROWS, [FuseLinearActivation]).model
    folded = rewritten(image_net(), IMAGE, [FoldNorm]).model

    assert record_of(fused).loader is None
    assert record_of(folded).loader is not None
    assert record_of(folded).loader is record_of(copy.deepcopy(folded)).loader
    assert pickle.loads(pickle.dumps(record_of(folded))).loader is None


class NamesAnotherKey(FoldNorm):
    """Wrong: misspells the key that its new weight takes the place of."""

    keys = ("0.wieght",)

    def replace(self, match: PatternMatch) -> Node:
        conv = match.module("conv", nn.Conv2d)
        weight = match.get_attr(nn.Parameter(conv.weight.detach() * 2), "w", replaces=self.keys)
        return match.call_function(ATEN.conv2d.default, match.inputs[0], weight, conv.bias)


class NamesNoTuple(NamesAnotherKey):
    keys = "0.weight"  # pyright: ignore[reportAssignmentType]  # wrong on purpose


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (NamesAnotherKey, "replaces='0.wieght', which is no key .*; the nearest is '0.weight'"),
        (NamesNoTuple, "replaces is a tuple of keys, got '0.weight'"),
    ],
)
def test_a_key_that_the_model_does_not_have_is_named(pattern: type[Pattern], message: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()

    report = transform(model, (IMAGE,), patterns=[pattern]).report

    (site,) = report.refusals()
    assert re.search(message, site.reason or "")
