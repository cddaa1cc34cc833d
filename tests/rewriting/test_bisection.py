import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy.errors import OutputPathError
from embedl_deploy.patterns import FuseConvNorm
from embedl_deploy.rewriting import Chain, Op, Pattern, PatternMatch, Phase, TransformationPlan
from embedl_deploy.rewriting.bisection import bisect
from embedl_deploy.rewriting.ddmin import ddmin
from embedl_deploy.testing import randomize
from embedl_deploy.transformation import get_transformation_plan

ATEN = torch.ops.aten
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class DropNorm(Pattern):
    """Wrong where the activation is a GELU."""

    phase = Phase.FUSION
    tree = Chain(conv=nn.Conv2d, norm=nn.BatchNorm2d, act=nn.GELU)

    def replace(self, match: PatternMatch) -> Node:
        return match.call_module(nn.GELU(), match["conv"])


class Net(nn.Module):
    """Six blocks; only the fourth ends in a GELU."""

    def __init__(self) -> None:
        super().__init__()
        acts = [nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.GELU(), nn.ReLU(), nn.ReLU()]
        sizes = [3, 4, 4, 4, 4, 4]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(size, 4, 1), nn.BatchNorm2d(4), act)
                for size, act in zip(sizes, acts, strict=True)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class MaxOfBoth(nn.Module):
    """The larger of two equal values: wrong only if both of them are."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.abs() + 1.0
        return torch.maximum(y * 3.0, y * 3.0)


def _triples(node: Node) -> bool:
    return 3.0 in node.args


class Shrink(Pattern):
    """Wrong: what is multiplied by three is multiplied by two."""

    phase = Phase.FUSION
    tree = Chain(scale=Op(ATEN.mul.Tensor, where=_triples))

    def replace(self, match: PatternMatch) -> Node:
        return match.call_function(ATEN.mul.Tensor, match.root.args[0], 2.0)


def net() -> nn.Module:
    return randomize(Net()).eval()


def test_finds_one_guilty_site_among_many() -> None:
    plan = get_transformation_plan(net(), (IMAGE,), patterns=[DropNorm, FuseConvNorm])

    result = bisect(plan, (IMAGE,))

    assert [site.pattern for site in result.guilty] == ["drop-norm"]
    assert result.guilty[0].module == "blocks.3.2"
    assert result.needed == ()
    assert result.moved.error > 0.1
    assert "drop-norm at %" in str(result)


def test_finds_two_sites_that_are_wrong_only_together() -> None:
    plan = get_transformation_plan(MaxOfBoth().eval(), (IMAGE,), patterns=[Shrink])

    result = bisect(plan, (IMAGE,))

    assert [site.site for site in result.guilty] == ["mul", "mul_1"]


def test_finds_nothing_in_a_right_plan() -> None:
    plan = get_transformation_plan(net(), (IMAGE,), patterns=[FuseConvNorm])

    result = bisect(plan, (IMAGE,))

    assert result.guilty == ()
    assert "no rewrite is guilty" in str(result)


@pytest.mark.parametrize("model", [net(), MaxOfBoth().eval()], ids=["modules", "functions"])
def test_the_script_reproduces_the_error_by_itself(model: nn.Module, tmp_path: Path) -> None:
    plan = get_transformation_plan(model, (IMAGE,), patterns=[DropNorm, FuseConvNorm, Shrink])

    result = bisect(plan, (IMAGE,), script=tmp_path / "wrong.py")

    assert result.script is not None
    text = result.script.read_text()
    run = subprocess.run([sys.executable, str(result.script)], capture_output=True, text=True)
    assert run.returncode == 1, run.stderr + text
    assert "the output moved by" in run.stderr
    assert len(text.splitlines()) < 40
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.py"]


def test_a_pattern_that_cannot_be_imported_is_written_out(tmp_path: Path) -> None:
    class Halve(Pattern):
        """Wrong: what is multiplied by three is multiplied by one."""

        phase = Phase.FUSION
        tree = Chain(scale=torch.ops.aten.mul.Tensor)

        def replace(self, match: PatternMatch) -> Node:
            return match.call_function(torch.ops.aten.mul.Tensor, match.root.args[0], 1.5)

    plan = get_transformation_plan(MaxOfBoth().eval(), (IMAGE,), patterns=[Halve])

    script = bisect(plan, (IMAGE,), script=tmp_path / "wrong.py").script

    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert run.returncode == 1
    assert "the output moved by" in run.stderr, run.stderr


def test_an_unwritable_script_is_an_error_of_ours(tmp_path: Path) -> None:
    plan = get_transformation_plan(net(), (IMAGE,), patterns=[DropNorm])

    with pytest.raises(OutputPathError, match="cannot be written"):
        bisect(plan, (IMAGE,), script=tmp_path / "missing" / "wrong.py")


def test_ddmin_finds_what_fails_together_in_few_tests() -> None:
    tests: list[int] = []

    def fails(part: tuple[int, ...]) -> bool:
        tests.append(len(part))
        return {17, 61} <= set(part)

    assert ddmin(range(100), fails) == (17, 61)
    assert len(tests) < 60


def test_what_is_no_plan_and_no_tuple_of_inputs_is_named() -> None:
    plan = get_transformation_plan(nn.ReLU().eval(), (torch.ones(2),), patterns=[])

    with pytest.raises(ValueError, match="bisect takes a plan, got NoneType: write bisect"):
        bisect(cast("TransformationPlan", None))
    with pytest.raises(ValueError, match=r"args is a tuple of inputs, got Tensor: write \(x,\)"):
        bisect(plan, cast("tuple[object, ...]", torch.ones(2)))
