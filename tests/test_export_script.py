"""An export script written for another tool, run as it stands."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy import transform
from embedl_deploy.backend import reset_backends, set_backend
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.quantize import (
    CalibrationMethod,
    ModulesToSkip,
    Precision,
    QuantConfig,
    QuantStub,
    TensorQuantConfig,
    quantize,
)


class ImageAndText(nn.Module):
    """Patches of an image and tokens of a text, read by one encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.words = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        patches = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([patches, self.words(ids)], dim=1)
        return self.head(self.encoder(tokens).mean(dim=1))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(ImageAndText().eval(), _inputs(0), strict=False), path)
    return path


def _inputs(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, 3, 32, 32, generator=generator)
    return image, torch.randint(0, 50, (1, 7), generator=generator)


def test_the_script_of_another_tool_runs_as_it_stands(saved: Path, tmp_path: Path) -> None:
    image, ids = _inputs(0)
    gm = torch.export.load(saved).module()

    set_backend("tensorrt")
    fused = transform(gm, (image, ids)).model.eval()
    patch_embed = next(m for m in fused.modules() if isinstance(m, nn.Conv2d))

    def calibrate_fn(model: nn.Module) -> None:
        for seed in range(8):
            model(*_inputs(seed))

    cfg = QuantConfig(
        activation=TensorQuantConfig(
            Precision.INT8,
            symmetric=True,
            per_channel=False,
            calibration_method=CalibrationMethod.MINMAX,
        ),
        weight=TensorQuantConfig(Precision.INT8, symmetric=True, per_channel=True),
        skip=ModulesToSkip(stub={patch_embed}, weight={patch_embed}, smooth={nn.LayerNorm}),
    )
    q = quantize(
        fused, args=(image, ids), config=cfg, forward_loop=calibrate_fn, freeze_weights=True
    )
    exported = torch.export.export(q, (image, ids), strict=False)
    torch.export.save(exported, tmp_path / "quantized.pt2")
    reset_backends()

    loaded = torch.export.load(tmp_path / "quantized.pt2").module()
    torch.testing.assert_close(loaded(image, ids), q(image, ids))
    error = relative_error(q(image, ids), gm(image, ids))
    assert 0 < error < 0.1
    stubs = [node for node in q.graph.nodes if _is_stub(q, node)]
    assert stubs
    assert all(node.args[0].name != "image" for node in stubs)


def _is_stub(model: nn.Module, node: torch.fx.Node) -> bool:
    is_module = node.op == "call_module"
    return is_module and isinstance(model.get_submodule(str(node.target)), QuantStub)
