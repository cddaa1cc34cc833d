"""From a saved ``.pt2`` to a calibrated int8 one, the way an export script does it."""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from embedl_deploy import transform
from embedl_deploy.backend import set_backend
from embedl_deploy.quantize import (
    CalibrationMethod,
    ModulesToSkip,
    Precision,
    QuantConfig,
    TensorQuantConfig,
    quantize,
)


class ImageAndText(nn.Module):
    """Patches of an image and token ids through one small transformer encoder."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, stride=4)
        self.token_embed = nn.Embedding(100, width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm1 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)
        self.norm2 = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        """Returns logits, shape (batch, 10)."""
        patches = self.patch_embed(image).flatten(2).transpose(1, 2)
        x = torch.cat([patches, self.token_embed(ids)], dim=1)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
        return self.head(x.mean(1))


def save_float_model(path: Path) -> None:
    """Writes the float model that the script starts from."""
    torch.manual_seed(0)
    image, ids = torch.randn(2, 3, 16, 16), torch.randint(0, 100, (2, 5))
    torch.export.save(torch.export.export(ImageAndText().eval(), (image, ids)), path)


def quantize_program(source: Path, target: Path) -> None:
    """Reads ``source``, quantizes it for TensorRT and writes ``target``."""
    gm = torch.export.load(source).module()
    image, ids = torch.randn(2, 3, 16, 16), torch.randint(0, 100, (2, 5))

    set_backend("tensorrt")
    fused = transform(gm, (image, ids)).model.eval()
    patch_embed = next(m for m in fused.modules() if isinstance(m, nn.Conv2d))

    def calibrate_fn(model: nn.Module) -> None:
        for _ in range(8):
            model(torch.randn(2, 3, 16, 16), torch.randint(0, 100, (2, 5)))

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
    program = torch.export.export(q, (image, ids), strict=False)
    torch.export.save(program, target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    if not arguments.source.exists():
        save_float_model(arguments.source)
    quantize_program(arguments.source, arguments.target)
