from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from embedl_deploy import transform
from embedl_deploy.backend import use_backend
from embedl_deploy.errors import OutputPathError, PreconditionError
from embedl_deploy.export import export_onnx
from embedl_deploy.quantize import quantize

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, *, gain: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3))) * gain}


def operations(path: Path) -> list[str]:
    onnx = pytest.importorskip("onnx")
    return [node.op_type for node in onnx.load(str(path)).graph.node]


def test_writes_a_quantized_model_with_its_scales_and_dynamic_batch(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, gain = Network().eval(), torch.tensor([2.0])
    shapes = {"x": {0: Dim("batch", min=2, max=16)}, "gain": None}
    with use_backend("inductor"):
        fused = transform(model, (X,), {"gain": gain}, dynamic_shapes=shapes).model.eval()
        quantized = quantize(
            fused, (X,), kwargs={"gain": gain}, forward_loop=lambda m: m(X, gain=gain)
        )

    path = export_onnx(quantized, (X,), tmp_path / "model.onnx", {"gain": gain})

    assert operations(path).count("QuantizeLinear") == 2
    other = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": other.numpy(), "gain": gain.numpy()})
    with torch.no_grad():
        expected = quantized(other, gain=gain)["logits"]
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-2)


def test_needs_eval_mode() -> None:
    with pytest.raises(PreconditionError, match=r"call model.eval\(\)"):
        export_onnx(nn.Linear(2, 2).train(), (torch.randn(1, 2),), "never.onnx")


def test_names_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "model.onnx"

    with pytest.raises(OutputPathError, match="cannot write"):
        export_onnx(nn.Linear(2, 2).eval(), (torch.randn(1, 2),), path)
