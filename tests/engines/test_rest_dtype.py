from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy.engines.program import flat_program
from embedl_deploy.engines.rest_dtype import cast_rest


class Attention(nn.Module):
    """Attention with a mask that holds the lowest float32, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.project = nn.Linear(8, 24)

    def forward(self, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.project(self.norm(x)).chunk(3, dim=-1)
        mask = torch.where(kept[:, None, :], 0.0, torch.finfo(torch.float32).min)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask), kept


def arranged() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    kept = torch.tensor([[True, True, False, True], [False, False, False, False]])
    return Attention().eval(), torch.randn(2, 4, 8), kept


def test_products_run_in_the_short_type_and_outputs_keep_theirs() -> None:
    module, x, kept = arranged()
    program = flat_program(module, (x, kept))

    cast_rest(program, torch.bfloat16)

    types = {
        str(node.target): node.meta["val"].dtype
        for node in program.graph.nodes
        if node.op == "call_function" and isinstance(node.meta["val"], Tensor)
    }
    assert types["aten.linear.default"] is torch.bfloat16
    assert types["aten.layer_norm.default"] is torch.bfloat16
    assert types["aten.scaled_dot_product_attention.default"] is torch.bfloat16
    expected = module(x, kept)
    result = program(x, kept)
    assert result[0].dtype is torch.float32
    assert result[1].dtype is torch.bool
    assert torch.allclose(result[0], expected[0], atol=3e-2)


def test_a_row_that_is_masked_entirely_stays_finite() -> None:
    module, x, kept = arranged()
    program = flat_program(module, (x, kept))

    cast_rest(program, torch.bfloat16)

    assert program(x, kept)[0].isfinite().all()


def test_what_the_short_type_does_not_admit_stays_float32() -> None:
    class Decomposition(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return cast("Tensor", torch.linalg.eigvalsh(self.linear(x)))

    torch.manual_seed(0)
    module, x = Decomposition().eval(), torch.randn(2, 4, 4)
    program = flat_program(module, (x,))

    cast_rest(program, torch.bfloat16)

    assert torch.allclose(program(x), module(x), atol=3e-2)
