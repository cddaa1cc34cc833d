import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.graph import graph_text
from embedl_deploy.patterns import ReplaceEinsumWithMatmul
from embedl_deploy.rewriting import apply_patterns
from embedl_deploy.testing import check_refusal
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
    left, right = equation.partition("->")[0].replace(" ", "").replace("...", "bh").split(",")
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
        "...id,...jd->...ij",
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


REFUSED = {
    "bhid,bhd->bhi": "no product of matrices",
    "bij,bji->b": "no product of matrices",
    "bhid,bhid->bhid": "no product of matrices",
    "id,jh->idjh": "no product of matrices",
    "...id,jd->...ij": "leaves its result open",
    "ii,ij->ij": "repeats an index",
}


@pytest.mark.parametrize("equation", REFUSED)
def test_refuses_what_is_no_product_of_matrices(equation: str) -> None:
    graph = trace(Einsum(equation), operands(equation))

    record = apply_patterns(graph, [ReplaceEinsumWithMatmul])

    assert not record.applied
    assert REFUSED[equation] in str(record.refused[0].reason)


def test_refuses_three_operands() -> None:
    class Three(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("ij,jk,kl->il", x, x, x)

    check_refusal(
        ReplaceEinsumWithMatmul(), Three(), because="3 tensors", example=torch.randn(4, 4)
    )


def test_refuses_a_summed_index_that_is_broadcast() -> None:
    example = (torch.randn(5, 1), torch.randn(7, 4))

    check_refusal(
        ReplaceEinsumWithMatmul(), Einsum("id,jd->ij"), because="is broadcast", example=example
    )


def test_refuses_dots_that_stand_for_different_dimensions() -> None:
    example = (torch.randn(2, 5, 4), torch.randn(3, 2, 7, 4))

    check_refusal(
        ReplaceEinsumWithMatmul(), Einsum("...id,...jd->...ij"), because="open", example=example
    )
