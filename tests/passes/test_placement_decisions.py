from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.backends.torchao import TORCHAO
from embedl_deploy.graph.nodes import module_of
from embedl_deploy.passes.placement_decisions import layer_decisions
from embedl_deploy.quantization.placement import (
    LAYER_DECISIONS,
    NAMED_DECISIONS,
    Decision,
    Placement,
)
from embedl_deploy.quantize import QuantConfig, QuantStub, check_qdq, quantize
from embedl_deploy.rewriting.backend import Backend
from embedl_deploy.rewriting.records import report_of
from embedl_deploy.tracing import trace

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[1, 2, 3], [3, 0, 1]])
ADDRESSES = {
    "stem": ("first-layer",),
    "block.0": (),
    "block.1": ("depthwise-conv",),
    "squeeze": ("head-1x1",),
    "gate": ("product-with-a-dimension-of-1",),
    "mix": (),
    "head": ("last-layer",),
}


class Everything(nn.Module):
    """One site of each named decision."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 1), depthwise, nn.BatchNorm2d(8))
        self.squeeze, self.words = nn.Conv2d(8, 8, 1), nn.Embedding(5, 8)
        self.gate, self.mix = nn.Linear(8, 1), nn.Linear(16, 8)
        self.attention_norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)
        self.reader = nn.GRUCell(8, 8)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        x = self.norm(self.stem(image))
        x = self.block(x) + x
        x = x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid()
        rows = self.attention_norm(x.flatten(2).transpose(1, 2))
        rows = rows + nn.functional.scaled_dot_product_attention(rows, rows, rows)
        weights = self.gate(rows).softmax(1)
        words = self.reader(self.words(ids).mean(1))
        pooled = torch.cat([(weights * rows).sum(1), words], 1)
        return self.head(self.mix(pooled))


def everything() -> nn.Module:
    torch.manual_seed(0)
    return Everything().eval()


def notes_about(backend: Backend) -> dict[str, str]:
    """Returns what the report says of each named decision."""
    model = quantize(everything(), (IMAGE, IDS), forward_loop=[(IMAGE, IDS)], backend=backend)
    notes = [note for record in report_of(model).passes for note in record.notes]
    return {name: note for note in notes if (name := note.split(" ")[0]) in NAMED_DECISIONS}


@pytest.mark.parametrize("backend", [INDUCTOR, TENSORRT, TORCHAO], ids=lambda known: known.name)
def test_every_table_decides_each_of_them_by_name_with_a_reason(backend: Backend) -> None:
    assert isinstance(backend.placement, Placement)

    decisions = backend.placement.decisions

    assert [name for name in NAMED_DECISIONS if name not in decisions] == []
    assert all(len(decision.reason) > 20 for decision in decisions.values())


def test_layers_are_known_by_their_place_and_shape() -> None:
    graph = trace(everything(), (IMAGE, IDS))

    decisions = layer_decisions(graph)

    assert {str(node.target): names for node, names in decisions.items()} == ADDRESSES


@pytest.mark.parametrize("backend", [INDUCTOR, TENSORRT], ids=lambda known: known.name)
def test_the_report_gives_the_reason_of_each(backend: Backend) -> None:
    assert isinstance(backend.placement, Placement)

    notes = notes_about(backend)

    assert list(notes) == list(NAMED_DECISIONS)
    for name, note in notes.items():
        decision = backend.placement.decisions[name]
        assert note.endswith(f", {decision.reason}")
        assert (", 1 here): in low precision" in note) is decision.quantized
    assert notes["first-layer"].startswith("first-layer (layers with a weight that no")


@pytest.mark.parametrize("name", LAYER_DECISIONS)
def test_a_table_that_says_float_leaves_those_layers_in_float_and_the_check_agrees(
    name: str,
) -> None:
    assert isinstance(INDUCTOR.placement, Placement)
    decision = Decision(quantized=False, reason="its kernel is slow there")
    decisions = {**INDUCTOR.placement.decisions, name: decision}
    backend = replace(INDUCTOR, placement=replace(INDUCTOR.placement, decisions=decisions))

    model = quantize(
        everything(),
        (IMAGE, IDS),
        QuantConfig(smooth=None),
        [(IMAGE, IDS)],
        backend=backend,
    )

    read = {
        str(node.meta["nn_module_stack"][next(reversed(node.meta["nn_module_stack"]))][0])
        for node in model.graph.nodes
        if any(isinstance(module_of(source), QuantStub) for source in node.all_input_nodes)
    }
    (alone,) = (path for path, names in ADDRESSES.items() if name in names)
    assert read == set(ADDRESSES) - {alone}
    assert [r for r in report_of(model).refusals() if r.reason == decision.reason]
    assert check_qdq(model, backend) == ()
