"""What explain says of runs of nodes, of repeated literals and of conditions that fail."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy import explain
from embedl_deploy.errors import PatternError
from embedl_deploy.rewriting import (
    Chain,
    Input,
    Literal,
    Op,
    Pattern,
    Phase,
    Tree,
    Wildcard,
)
from embedl_deploy.rewriting.conditions import HasOptions, IsEval, IsParameter
from embedl_deploy.rewriting.explain import Explanation
from embedl_deploy.rewriting.matchable import require_matchable

ATEN = torch.ops.aten
ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def asked(wanted: Tree, model: nn.Module) -> Explanation:
    class Asked(Pattern):
        phase = Phase.FUSION
        tree = wanted

    return explain(model, Asked, args=(ROWS,))


@pytest.mark.parametrize("quantifier", ["+", "*", "{2}"])
@pytest.mark.parametrize("modes", [(True, True), (False, True), (True, False)])
def test_a_run_names_the_condition_that_ends_it(quantifier: str, modes: tuple[bool, bool]) -> None:
    drops = [nn.Dropout().train(mode) for mode in modes]
    model = nn.Sequential(nn.Linear(6, 6).eval(), *drops, nn.ReLU().eval())
    run = Wildcard((nn.Identity, nn.Dropout), quantifier, where=IsEval())
    first = asked(Chain(layer=nn.Linear, run=run, act=nn.ReLU), model).first

    assert first is not None
    (difference,) = first.differences
    assert difference.aspect == "training"
    assert difference.node == ("_2" if modes[1] else "_1")
    assert difference.found == "Dropout in training mode"


def test_a_run_alone_names_its_condition() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout()).train()
    first = asked(Wildcard(nn.Dropout, "+", where=IsEval()), model).first

    assert first is not None
    assert first.first.expected == "a module in eval mode"


def test_a_run_that_is_too_short_names_what_ends_it() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5), nn.Linear(5, 5)).eval()
    first = asked(Wildcard(nn.Linear, "{3,5}"), model).first

    assert first is not None
    difference = first.first
    assert (difference.node, difference.found) == ("_1", "ReLU [1]")
    assert difference.expected == "Linear, in a run of at least 3 that ends at %_3"
    assert difference.cure.startswith("the run has 2: let the quantifier admit that")


def test_a_run_of_other_nodes_is_told_by_its_targets() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.ReLU()).eval()
    run = Wildcard(nn.Dropout, "+", where=IsEval())
    first = asked(Chain(nn.Linear, run, nn.ReLU), model).first

    assert first is not None
    assert (first.first.expected, first.first.found) == ("Dropout", "Tanh [1]")


class Products(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 * 3


def test_a_literal_met_twice_must_be_the_same() -> None:
    twice = Op(ATEN.mul.Tensor, Op(ATEN.mul.Tensor, Input(), Literal("c")), Literal("c"))
    first = asked(twice, Products()).first

    assert first is not None
    assert first.first.aspect == "same value"
    assert first.first.expected == "the literal 'c' to be 2 again"
    assert first.first.found == "the literal 3"


def fails(node: Node) -> bool:
    raise ZeroDivisionError(node.name)


@pytest.mark.parametrize(
    "wanted",
    [
        Op(nn.Linear, where=fails),
        Op(nn.Linear, Input(where=fails)),
        Chain(nn.GELU, Op(nn.Dropout, where=fails)),
        Chain(nn.GELU, Wildcard(nn.Dropout, "+", where=fails), nn.ReLU),
    ],
)
def test_a_condition_that_raises_is_told_once(wanted: Tree) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(), nn.ReLU()).eval()
    explanation = asked(wanted, model)
    found = [miss.first for miss in (*explanation.refused, *explanation.near_misses)]
    faults = [difference for difference in found if difference.aspect == "fault"]

    assert faults
    assert all("raised ZeroDivisionError" in difference.found for difference in faults)
    assert all("test_near_runs.py" in difference.found for difference in faults)
    assert sum(miss.first.aspect == "fault" for miss in explanation.near_misses) <= 1


@pytest.mark.parametrize(
    ("name", "says"),
    [("keepdims", "dtype. Write 'keepdim'"), ("zzz", "it has self, dim, keepdim, dtype")],
)
def test_a_misspelt_literal_gets_the_nearest_name(name: str, says: str) -> None:
    with pytest.raises(PatternError) as caught:
        require_matchable("p", Op(ATEN.mean.dim, literals={name: True}))

    assert str(caught.value).endswith(says)


def test_options_of_a_layer_are_asked_for_by_name() -> None:
    where = HasOptions(beta=1.0, threshold=20.0)
    steep = nn.Sequential(nn.Linear(6, 6), nn.Softplus(2.0, 10.0)).eval()
    plain = nn.Sequential(nn.Linear(6, 6), nn.Softplus()).eval()
    first = asked(Op(nn.Softplus, where=where), steep).first

    assert first is not None
    assert (first.first.node, first.first.aspect) == ("_1", "literal")
    assert first.first.expected == "beta=1.0, threshold=20.0"
    assert first.first.found == "beta=2.0, threshold=10.0"
    assert [miss.site for miss in asked(Op(nn.Softplus, where=where), plain).refused] == ["_1"]
    missing = asked(Op(nn.ReLU, where=HasOptions(slope=1)), nn.Sequential(nn.ReLU()).eval()).first
    assert missing is not None
    assert missing.first.found == "slope='none of that name'"
    with pytest.raises(PatternError, match=r"takes the options of a layer by name, got none"):
        HasOptions()


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma * (x + 1.0)


def test_a_parameter_is_told_from_what_is_computed() -> None:
    tree = Op(ATEN.mul.Tensor, Input(), Input(where=IsParameter()))
    explanation = asked(tree, Scaled().eval())

    assert [miss.site for miss in explanation.refused] == ["mul"]  # it fits; nothing replaces it
    (near,) = explanation.near_misses
    assert near.site == "mul_1"
    assert near.first.expected.startswith("a parameter or buffer")
    assert near.first.found == "a computed value"
