import re
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.deployment import lower
from embedl_deploy.engines.recording import RecordingConfig, RecordingEngine
from embedl_deploy.report.partition_picture import partition_svg


class Fork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.left(x)) + self.right(x)


@pytest.fixture
def svg() -> str:
    engine = RecordingEngine(RecordingConfig("<linears>", takes=["linear"]))
    return partition_svg(lower(Fork().eval(), (torch.ones(2, 4),), engines=engine))


def test_every_node_that_runs_is_a_box_in_its_engines_colour(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    boxes = {
        "".join(group.find("{*}text").itertext()): group.find("{*}rect").get("fill")  # type: ignore[union-attr]
        for group in root.findall("{*}g")
    }

    assert set(boxes) == {"x", "linear", "sin", "add.Tensor", "output"}
    assert boxes["linear"] not in (boxes["sin"], boxes["x"])
    assert boxes["sin"] == boxes["add.Tensor"] != boxes["x"]
    assert "&lt;linears&gt;" in svg
    assert "weight" not in svg


def test_edges_between_engines_are_thick(svg: str) -> None:
    widths = re.findall(r'stroke-width="(\d)"', svg)

    assert sorted(widths) == ["1", "3", "3", "3", "3", "3"]


def test_no_two_boxes_lie_on_each_other(svg: str) -> None:
    places = re.findall(r'<rect x="(\d+)" y="(\d+)" width="190"', svg)

    assert len(places) == len(set(places)) == 6


def test_the_picture_is_the_same_every_time(svg: str) -> None:
    engine = RecordingEngine(RecordingConfig("<linears>", takes=["linear"]))

    assert partition_svg(lower(Fork().eval(), (torch.ones(2, 4),), engines=engine)) == svg
