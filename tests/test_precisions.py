"""Every precision that a configuration can ask for: rounded, converted, exported, or refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.backend import Backend
from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.backends.torchao import TORCHAO
from embedl_deploy.errors import QuantizationError
from embedl_deploy.passes.quantization import placement_of
from embedl_deploy.quantize import (
    Precision,
    QuantConfig,
    TensorQuantConfig,
    convert,
    insert_qdq,
    quantize,
)
from embedl_deploy.transformation import transform

IMAGES = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
BACKENDS = (INDUCTOR, TENSORRT, TORCHAO)
BOUNDS = {
    Precision.INT4: 0.3,
    Precision.INT8: 0.02,
    Precision.INT16: 2e-4,
    Precision.FP8_E4M3: 0.1,
    Precision.FP8_E5M2: 0.2,
}
"""Largest relative error that rounding to each may leave in the net below."""


class Net(nn.Module):
    """A convolution with norm, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    for _ in range(10):
        model(IMAGES)
    return model.eval()


def taking_everything(dtype: torch.dtype) -> Backend:
    """Returns a target with kernels for every precision."""
    precisions = tuple(Precision)
    placement = replace(
        placement_of(INDUCTOR),
        activation_dtype=dtype,
        activation_precisions=precisions,
        weight_precisions=precisions,
    )
    return replace(INDUCTOR, name="takes everything", placement=placement)


@pytest.mark.parametrize(
    ("activation", "weight", "dtype"),
    [
        (Precision.INT8, Precision.INT4, torch.uint8),
        (Precision.INT4, Precision.INT4, torch.uint8),
        (Precision.INT16, Precision.INT8, torch.int8),
        (Precision.INT16, Precision.INT8, torch.uint8),
        (Precision.FP8_E4M3, Precision.FP8_E4M3, torch.int8),
        (Precision.FP8_E5M2, Precision.FP8_E5M2, torch.uint8),
        (None, Precision.INT4, torch.uint8),
        (Precision.INT16, None, torch.int8),
    ],
)
def test_rounded_converted_and_exported_agree(
    activation: Precision | None, weight: Precision | None, dtype: torch.dtype
) -> None:
    asked = {
        "activation": None if activation is None else TensorQuantConfig(activation),
        "weight": None if weight is None else TensorQuantConfig(weight),
    }
    model = net()

    rounded = quantize(
        model,
        (IMAGES,),
        QuantConfig(asked["activation"], asked["weight"], smooth=None),
        forward_loop=[IMAGES],
        backend=taking_everything(dtype),
    )

    with torch.no_grad():
        converted = convert(rounded)
        exported = torch.export.export(converted, (IMAGES,), strict=False).module()
        exact, found = model(IMAGES), rounded(IMAGES)
        bound = sum(BOUNDS[kind] for kind in (activation, weight) if kind is not None)
        assert 0 < float((found - exact).norm() / exact.norm()) < bound
        torch.testing.assert_close(converted(IMAGES), found, rtol=0, atol=1e-5)
        torch.testing.assert_close(exported(IMAGES), found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("role", ["activation", "weight"])
def test_what_a_backend_cannot_run_is_an_error_that_names_what_it_can(
    role: str, backend: Backend
) -> None:
    known: tuple[Precision, ...] = getattr(placement_of(backend), f"{role}_precisions")
    graph = transform(net(), (IMAGES,), backend=backend).model
    listed = ", ".join(one.name for one in known)

    for precision in [one for one in Precision if one not in known]:
        asked = TensorQuantConfig(precision)
        config = QuantConfig(asked) if role == "activation" else QuantConfig(weight=asked)
        with pytest.raises(QuantizationError) as raised:
            insert_qdq(graph, config=config, backend=backend)

        assert str(raised.value) == (
            f"backend {backend.name!r} has no kernels for {role} precision {precision.name} "
            f"(known: {listed})"
        )
