import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.graph import graph_text
from embedl_deploy.patterns import ReplaceEinsumWithMatmul
from embedl_deploy.rewriting import apply_patterns
from embedl_deploy.tracing import trace

SIZES = {"b": 2, "h": 3, "i": 5, "j": 7, "d": 4}


class Einsum(nn.Module):
    """Multiplies two tensors."""

    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.einsum(self.equation, left, right)


def operands(equation: str) -> tuple[Tensor, Tensor]:
    left, right = equation.partition("->")[0].replace(" ", "").split(",")
    generator = torch.Generator().manual_seed(0)
    first = torch.randn([SIZES[letter] for letter in left], generator=generator)
    return first, torch.randn([SIZES[letter] for letter in right], generator=generator)


@pytest.mark.parametrize(
    "equation",
    [
        "bhid,bhjd->bhij",
        "b h i j, b h j d -> b h i d",
        "bihd,bjhd->bhij",
        "id,dj->ji",
        "bhij,bjhd->bihd",
    ],
)
def test_replaces_a_product_of_matrices(equation: str) -> None:
    example = operands(equation)
    graph = trace(Einsum(equation), example)

    record = apply_patterns(graph, [ReplaceEinsumWithMatmul])
    graph.recompile()

    assert len(record.applied) == 1
    assert "einsum" not in graph_text(graph)
    torch.testing.assert_close(graph(*example), Einsum(equation)(*example))


@pytest.mark.parametrize(
    "equation", ["bhid,bhd->bhi", "bij,bji->b", "bhid,bhid->bhid", "id,jh->idjh"]
)
def test_leaves_what_is_no_product_of_matrices(equation: str) -> None:
    graph = trace(Einsum(equation), operands(equation))

    assert not apply_patterns(graph, [ReplaceEinsumWithMatmul]).applied


def test_leaves_a_summed_index_that_is_broadcast() -> None:
    example = (torch.randn(5, 1), torch.randn(7, 4))
    graph = trace(Einsum("id,jd->ij"), example)

    assert not apply_patterns(graph, [ReplaceEinsumWithMatmul]).applied
