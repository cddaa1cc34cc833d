from pathlib import Path

import pytest
import torch
from torch import nn

from embedl_deploy.errors import OutputPathError, PlanError
from embedl_deploy.patterns import FuseConvNorm, FuseConvNormActivation
from embedl_deploy.rewriting.manifest import Manifest
from embedl_deploy.tracing import trace
from embedl_deploy.transformation import transform

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PATTERNS = (FuseConvNormActivation, FuseConvNorm)


def net(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), activation).eval()


def recorded() -> Manifest:
    manifest = Manifest()
    manifest.record("net", transform(net(nn.ReLU()), (IMAGE,), patterns=PATTERNS).report)
    return manifest


def test_an_unchanged_model_does_not_deviate() -> None:
    manifest = recorded()

    assert manifest.models == {"net": {"fuse-conv-norm-activation": 1}}
    assert manifest.check("net", trace(net(nn.ReLU()), (IMAGE,)), PATTERNS) == ()


def test_a_loss_is_explained() -> None:
    changed = trace(net(nn.Softmax(dim=1)), (IMAGE,))

    gained, lost = recorded().check("net", changed, PATTERNS)

    assert (gained.pattern, gained.is_loss) == ("fuse-conv-norm", False)
    assert (lost.pattern, lost.expected, lost.found) == ("fuse-conv-norm-activation", 1, 0)
    assert "aten.softmax.int" in str(lost)


def test_survives_saving(tmp_path: Path) -> None:
    path = tmp_path / "expected.json"

    recorded().save(path)

    assert Manifest.load(path) == recorded()
    assert '"fuse-conv-norm-activation": 1' in path.read_text()


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1, "models": {"net": 3}}'])
def test_refuses_what_is_no_manifest(text: str, tmp_path: Path) -> None:
    path = tmp_path / "expected.json"
    path.write_text(text)

    with pytest.raises(PlanError, match=r"expected\.json"):
        Manifest.load(path)


def test_an_unwritable_path_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(OutputPathError, match="cannot be written"):
        recorded().save(tmp_path / "missing" / "expected.json")
