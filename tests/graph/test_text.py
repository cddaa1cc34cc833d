import torch
from torch import Tensor, nn

from embedl_deploy.graph import graph_text
from embedl_deploy.tracing import trace

ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        return y + 1, torch.cat([x, y], dim=0)


def test_prints_name_type_shape_call_and_arguments() -> None:
    text = graph_text(trace(Model().eval(), (ROW,)))

    assert text.splitlines() == [
        "%x: f32[2, 4] = input x",
        "%linear: f32[2, 4] = Linear(in_features=4, out_features=4, bias=True)[linear](%x)",
        "%add: f32[2, 4] = aten.add.Tensor(%linear, 1)",
        "%cat: f32[4, 4] = aten.cat.default([%x, %linear])",
        "return (%add, %cat)",
    ]


def test_symbols_are_numbered_in_order_of_appearance() -> None:
    rows = torch.export.Dim("rows", min=2, max=9)
    graph_module = trace(Model().eval(), (ROW,), dynamic_shapes=({0: rows},))

    text = graph_text(graph_module)

    assert text.splitlines()[0] == "%x: f32[d0, 4] = input x"
    assert "f32[2*d0, 4]" in text
