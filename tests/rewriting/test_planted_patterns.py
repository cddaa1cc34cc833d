# pyright: reportPrivateUsage=false
# the bases of torch's norms and convolutions
"""Wrong patterns among a backend's own: found, taken back, named; the rest is applied."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.conv import _ConvNd as Convolution
from torch.nn.utils.fusion import fuse_conv_bn_eval

from embedl_deploy import bisect, get_transformation_plan, transform
from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.cli.model_sources import load_model
from embedl_deploy.errors import VerificationError
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.rewriting import Chain, Op, Pattern, PatternMatch, Phase, Refusal
from embedl_deploy.tracing import trace

ATEN = torch.ops.aten
BUILT_IN = (*TENSORRT.conversion_patterns, *TENSORRT.fusion_patterns)
SMALL, REAL = ("small-conv", "small-bert"), ("resnet50", "vit_b_16", "bert-base")
NETS = (*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in REAL))


class DropNorm(Pattern):
    """Wrong: leaves the batch norm out."""

    phase = Phase.FUSION
    tree = Chain(conv=nn.Conv2d, norm=nn.BatchNorm2d, act=nn.ReLU)

    def replace(self, match: PatternMatch) -> Node:
        return match.call_module(match.module("act", nn.ReLU), match["conv"])


class DropLayerNorm(Pattern):
    """Wrong: leaves the layer norm out."""

    phase = Phase.FUSION
    tree = Chain(norm=nn.LayerNorm)

    def replace(self, match: PatternMatch) -> Node:
        return match.inputs[0]


def _of_tensors(node: Node) -> bool:
    return all(isinstance(operand, Node) for operand in node.args)


class SwapSubtraction(Pattern):
    """Wrong: subtracts the other way round."""

    phase = Phase.FUSION
    tree = Chain(sub=Op(ATEN.sub.Tensor, where=_of_tensors))

    def replace(self, match: PatternMatch) -> Node:
        return match.call_function(ATEN.sub.Tensor, *reversed(match["sub"].args))


def folded(match: PatternMatch) -> Convolution:
    """Returns a new convolution that equals the match's norm of its convolution."""
    return fuse_conv_bn_eval(match.module("conv", Convolution), match.module("norm", BatchNorm))


class FoldShared(Pattern):
    """A convolution that several norms read the outputs of, and one of these norms."""

    phase = Phase.FUSION
    tree = Chain(conv=(nn.Conv1d, nn.Conv2d), norm=(nn.BatchNorm1d, nn.BatchNorm2d))

    def check(self, match: PatternMatch) -> Refusal | None:
        conv = match["conv"]
        calls = [node for node in conv.graph.nodes if node.target == conv.target]
        return Refusal("the convolution is called once") if len(calls) < 2 else None


class FoldOnce(FoldShared):
    """Wrong: every caller gets the convolution that was folded for the first."""

    def __init__(self) -> None:
        self.folded: dict[str, nn.Module] = {}

    def replace(self, match: PatternMatch) -> Node:
        made = self.folded.setdefault(str(match["conv"].target), folded(match))
        return match.call_module(made, *match.inputs)


class FoldIntoLayer(FoldShared):
    """Wrong: the layer that the other caller runs gets the folded parameters."""

    def replace(self, match: PatternMatch) -> Node:
        conv, made = match.module("conv", Convolution), folded(match)
        conv.weight, conv.bias = made.weight, made.bias
        return match["conv"]


def _by_four(node: Node) -> bool:
    return 4.0 in node.args


def _by_a_quarter(node: Node) -> bool:
    return 0.25 in node.args


class DoubleOnly(Pattern):
    """Wrong: doubles what is to be quadrupled."""

    phase = Phase.FUSION
    tree = Chain(mul=Op(ATEN.mul.Tensor, where=_by_four))

    def replace(self, match: PatternMatch) -> Node:
        return match.call_function(ATEN.mul.Tensor, match.root.args[0], 2.0)


class HalveOnly(Pattern):
    """Wrong: divides by a half what is to be divided by a quarter."""

    phase = Phase.FUSION
    tree = Chain(div=Op(ATEN.div.Tensor, where=_by_a_quarter))

    def replace(self, match: PatternMatch) -> Node:
        return match.call_function(ATEN.div.Tensor, match.root.args[0], 0.5)


PLANTED = (FoldIntoLayer, FoldOnce, DropNorm, DropLayerNorm, SwapSubtraction)


def larger_of_equals(y: Tensor) -> Tensor:
    """Four times a positive number, computed twice: wrong only where both are."""
    positive = y.abs() + 1.0
    return torch.maximum(positive * 4.0, positive / 0.25)


class Vision(nn.Module):
    """A net behind a difference and a convolution that two norms share."""

    mean: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.rand(3, 1, 1))
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.left, self.right = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, image: Tensor) -> Tensor:
        x = image - self.mean
        views = torch.maximum(self.left(self.conv(x)), self.right(self.conv(x.flip(-1))))
        return larger_of_equals(self.net(views))


class Text(nn.Module):
    """A text encoder before a convolution that two norms share; it subtracts its mask from 1."""

    def __init__(self, net: nn.Module, width: int) -> None:
        super().__init__()
        self.net = net
        self.conv = nn.Conv1d(width, 8, 3)
        self.left, self.right = nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        rows = self.net(input_ids=input_ids, attention_mask=attention_mask)["last_hidden_state"]
        x = rows.transpose(1, 2)
        views = torch.maximum(self.left(self.conv(x)), self.right(self.conv(x.flip(-1))))
        return larger_of_equals(views)


class SmallNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 5), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        y = (self.norm2(self.conv2(y)) + y).relu()
        return self.head(y.mean((2, 3)))


@dataclass(frozen=True)
class Net:
    """A model with places for the wrong patterns, and what it takes."""

    model: nn.Module
    args: tuple[Tensor, ...]
    graph: GraphModule
    counts: Mapping[str, int]
    """How often each pattern of the backend is applied where nothing is planted."""


@lru_cache(maxsize=1)  # the real ones take half a gigabyte
def net(name: str) -> Net:
    torch.manual_seed(0)
    if "bert" in name:
        loaded = load_model(f"transformers:{name.replace('small-bert', 'bert-tiny')}").model
        width = loaded.get_parameter("embeddings.LayerNorm.weight").shape[0]
        ids, mask = torch.randint(1, 99, (2, 12)), torch.ones(2, 12, dtype=torch.int64)
        mask[1, 7:] = 0
        model, args = Text(loaded, width), (ids, mask)
    else:
        size = {"small-conv": 8, "resnet50": 64}.get(name, 224)
        body = SmallNet() if name == "small-conv" else load_model(f"torchvision:{name}").model
        model, args = Vision(body), (torch.randn(2, 3, size, size),)
    graph = trace(with_statistics(model).eval(), args)
    right = transform(graph, args, patterns=BUILT_IN, verify=True)
    assert right.report.applied_count > 0
    return Net(model, args, graph, right.report.counts())


def with_statistics(model: nn.Module) -> nn.Module:
    """Gives norms numbers that matter; new ones nearly do nothing."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
    for norm in (module for module in model.modules() if isinstance(module, norms)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.1)
        for name, statistic in norm.named_buffers():
            if name.startswith("running"):
                nn.init.uniform_(statistic, 0.5, 1.5)
    return model


@pytest.mark.parametrize("name", NETS)
def test_wrong_patterns_are_rolled_back_and_named_and_the_rest_is_applied(name: str) -> None:
    here = net(name)
    before = here.model(*here.args)

    result = transform(here.graph, here.args, patterns=(*PLANTED, *BUILT_IN), verify=True)

    counts = result.report.counts()
    # The first caller of a fold is right about it.
    assert counts.pop("fold-once") == 1
    assert counts.pop("fuse-conv-norm") == here.counts["fuse-conv-norm"] - 1
    assert counts == {key: n for key, n in here.counts.items() if key != "fuse-conv-norm"}
    wrong = {rule.name for rule in PLANTED}
    refused = [site for site in result.report.refusals() if site.pattern in wrong]
    found = {site.pattern for site in refused if (site.reason or "").startswith("rolled back")}
    missing = {"drop-layer-norm" if name == "resnet50" else "drop-norm"}
    assert found == wrong - {"fold-into-layer"} - (missing if name != "small-conv" else set())
    shared = [site for site in refused if site.pattern == "fold-into-layer"]
    assert len([site for site in shared if "changed conv.weight" in (site.reason or "")]) == 2
    assert all((site.source or "").rpartition(":")[2].isdigit() for site in refused)
    assert relative_error(result.model(*here.args), before) < 1e-4
    assert torch.equal(here.model(*here.args), before)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("rules", [(DropNorm, DropLayerNorm), (SwapSubtraction,), (FoldOnce,)])
def test_raise_names_pattern_node_line_and_both_values(
    name: str, rules: tuple[type[Pattern], ...]
) -> None:
    here = net(name)
    names = "|".join(rule.name for rule in rules)
    message = rf"^({names}) at %\w+ \(\S+\.py:\d+\): .* moved by .*\(\[.*\] became \[.*\]\)"

    with pytest.raises(VerificationError, match=message):
        transform(here.graph, here.args, patterns=(*rules, *BUILT_IN), verify="raise")


@pytest.mark.parametrize("name", NETS)
def test_two_that_are_wrong_only_together_are_bisected(name: str, tmp_path: Path) -> None:
    here = net(name)
    alone = get_transformation_plan(here.graph, patterns=(DoubleOnly, *BUILT_IN))
    plan = get_transformation_plan(here.graph, patterns=(DoubleOnly, HalveOnly, *BUILT_IN))

    result = bisect(plan, here.args, script=tmp_path / "wrong.py")

    assert bisect(alone, here.args).guilty == ()
    assert [site.pattern for site in result.guilty] == ["double-only", "halve-only"]
    assert result.needed == ()
    assert all((site.source or "").rpartition(":")[2].isdigit() for site in result.guilty)
    script = tmp_path / "wrong.py"
    assert len(script.read_text().splitlines()) < 40
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    assert "the output moved by" in run.stderr
