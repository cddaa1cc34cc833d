"""What the engine benchmark measures, as data."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from embedl_deploy.engines import (
    EagerEngineConfig,
    EngineConfig,
    InductorEngineConfig,
    OnnxRuntimeEngineConfig,
    OpenVINOEngineConfig,
    TorchAOEngineConfig,
)
from embedl_deploy.quantize import CalibrationMethod

BATCHES = (1, 8)
PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class EngineModel:
    """One model, named as on the command line."""

    name: str
    source: str
    ranges: CalibrationMethod = CalibrationMethod.MINMAX
    """How ranges of activations are found."""

    precisions: tuple[str, ...] = PRECISIONS


@dataclass(frozen=True)
class EngineCase:
    """One model at one batch size in one precision."""

    model: EngineModel
    batch: int
    precision: str

    @property
    def name(self) -> str:
        return f"{self.model.name}, batch {self.batch}, {self.precision}"


MODELS = (
    EngineModel("ResNet-50", "torchvision:resnet50", CalibrationMethod.HISTOGRAM),
    EngineModel("MobileNetV3-L", "torchvision:mobilenet_v3_large", CalibrationMethod.HISTOGRAM),
    EngineModel("ViT-B/16", "torchvision:vit_b_16"),
    EngineModel("BERT-base, 128 tokens", "transformers:bert-base"),
    EngineModel("MiniLM", "all-MiniLM-L6-v2"),
    EngineModel(
        "stem and bf16 head", "benchmarks.partition_picture:stem_and_head", precisions=("fp32",)
    ),
)

_BF16 = torch.bfloat16
ENGINES: dict[str, dict[str, EngineConfig]] = {
    "fp32": {
        "eager": EagerEngineConfig(),
        "inductor": InductorEngineConfig(),
        "openvino": OpenVINOEngineConfig(),
        "onnxruntime": OnnxRuntimeEngineConfig(),
    },
    "bf16": {
        "inductor": InductorEngineConfig(autocast_enabled=True, autocast_dtype=_BF16),
        "openvino": OpenVINOEngineConfig(rest_dtype=_BF16),
    },
    "int8": {
        "inductor, rest fp32": InductorEngineConfig(),
        "inductor, rest bf16": InductorEngineConfig(autocast_enabled=True, autocast_dtype=_BF16),
        "openvino, rest fp32": OpenVINOEngineConfig(),
        "openvino, rest bf16": OpenVINOEngineConfig(rest_dtype=_BF16),
        "onnxruntime, rest fp32": OnnxRuntimeEngineConfig(),
    },
}
"""The engines that run a graph of each precision; ONNX Runtime has no bf16 on processors."""

TORCHAO = ("torchao int8dq, rest fp32", TorchAOEngineConfig(quantization="int8dq"))
"""Quantizes linear layers itself: it is given the float graph, and Inductor what it leaves."""


def cases(only: str) -> Iterator[EngineCase]:
    """Yields the cases whose names hold every word of ``only``, the small batches first."""
    words = only.lower().split()
    for batch in BATCHES:
        for model in MODELS:
            for precision in model.precisions:
                case = EngineCase(model, batch, precision)
                if all(word in case.name.lower() for word in words):
                    yield case
