"""What the engine benchmark measures, as data."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from embedl_deploy.engines import (
    EagerEngineConfig,
    EngineConfig,
    InductorEngineConfig,
    OnnxRuntimeEngineConfig,
    OpenVINOEngineConfig,
    TorchAOEngineConfig,
)
from embedl_deploy.engines.torchao_presets import Preset
from embedl_deploy.quantize import CalibrationMethod

BATCHES = (1, 8)
PRECISIONS = {"cpu": ("fp32", "bf16", "int8"), "cuda": ("fp32", "fp16", "int8dq", "fp8dq")}


@dataclass(frozen=True)
class EngineModel:
    """One model, named as on the command line."""

    name: str
    source: str
    ranges: CalibrationMethod = CalibrationMethod.MINMAX
    """How ranges of activations are found."""

    only: tuple[str, ...] | None = None
    """The precisions it is run in; None: all."""


@dataclass(frozen=True)
class Candidate:
    """One engine, and the engine of what it leaves."""

    name: str
    engines: tuple[EngineConfig, ...]
    quantizes: bool = False
    """Whether it quantizes linear layers itself: it is given the float graph."""


@dataclass(frozen=True)
class EngineCase:
    """One model at one batch size in one precision on one kind of device."""

    model: EngineModel
    batch: int
    precision: str
    device: str = "cpu"

    @property
    def name(self) -> str:
        where = "" if self.device == "cpu" else f", {self.device}"
        return f"{self.model.name}, batch {self.batch}, {self.precision}{where}"

    @property
    def is_quantized(self) -> bool:
        """Whether the graph is quantized before it is lowered."""
        return self.precision == "int8"

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The engines that run a graph of this precision."""
        return CANDIDATES[self.device][self.precision]


MODELS = (
    EngineModel("ResNet-50", "torchvision:resnet50", CalibrationMethod.HISTOGRAM),
    EngineModel("MobileNetV3-L", "torchvision:mobilenet_v3_large", CalibrationMethod.HISTOGRAM),
    EngineModel("ViT-B/16", "torchvision:vit_b_16"),
    EngineModel("BERT-base, 128 tokens", "transformers:bert-base"),
    EngineModel("MiniLM", "all-MiniLM-L6-v2"),
    EngineModel("stem and bf16 head", "benchmarks.partition_picture:stem_and_head", only=("fp32",)),
)

_BF16 = torch.bfloat16
_INDUCTOR = InductorEngineConfig()
_INDUCTOR_BF16 = InductorEngineConfig(autocast_enabled=True, autocast_dtype=_BF16)
_RECORDED = InductorEngineConfig(ahead_of_time=False, mode="reduce-overhead")
_HALF = InductorEngineConfig(autocast_enabled=True, autocast_dtype=torch.float16)


def _torchao(preset: Preset, rest: InductorEngineConfig) -> Candidate:
    recorded = rest.mode == "reduce-overhead"
    name = f"torchao {preset}{', CUDA graphs' if recorded else ', rest fp32'}"
    config = TorchAOEngineConfig(quantization=preset, mode=rest.mode)
    return Candidate(name, (config, rest), quantizes=True)


CANDIDATES: dict[str, dict[str, tuple[Candidate, ...]]] = {
    "cpu": {
        "fp32": (
            Candidate("eager", (EagerEngineConfig(),)),
            Candidate("inductor", (_INDUCTOR,)),
            Candidate("openvino", (OpenVINOEngineConfig(),)),
            Candidate("onnxruntime", (OnnxRuntimeEngineConfig(),)),
        ),
        "bf16": (
            Candidate("inductor", (_INDUCTOR_BF16,)),
            Candidate("openvino", (OpenVINOEngineConfig(rest_dtype=_BF16),)),
        ),
        "int8": (
            Candidate("inductor, rest fp32", (_INDUCTOR,)),
            Candidate("inductor, rest bf16", (_INDUCTOR_BF16,)),
            Candidate("openvino, rest fp32", (OpenVINOEngineConfig(),)),
            Candidate("openvino, rest bf16", (OpenVINOEngineConfig(rest_dtype=_BF16),)),
            Candidate("onnxruntime, rest fp32", (OnnxRuntimeEngineConfig(),)),
            _torchao("int8dq", _INDUCTOR),
        ),
    },
    "cuda": {
        "fp32": (
            Candidate("eager", (EagerEngineConfig(),)),
            Candidate("inductor", (_INDUCTOR,)),
            Candidate("inductor, CUDA graphs", (_RECORDED,)),
        ),
        "fp16": (
            Candidate("inductor", (_HALF,)),
            Candidate(
                "inductor, CUDA graphs",
                (replace(_RECORDED, autocast_enabled=True, autocast_dtype=torch.float16),),
            ),
        ),
        "int8dq": (_torchao("int8dq", _INDUCTOR), _torchao("int8dq", _RECORDED)),
        "fp8dq": (_torchao("fp8dq", _INDUCTOR), _torchao("fp8dq", _RECORDED)),
    },
}
"""By kind of device and precision; ONNX Runtime has no bf16 on processors."""


def cases(only: str, device: str = "cpu") -> Iterator[EngineCase]:
    """Yields the cases whose names hold every word of ``only``, the small batches first."""
    words = only.lower().split()
    for batch in BATCHES:
        for model in MODELS:
            for precision in model.only or PRECISIONS[device]:
                case = EngineCase(model, batch, precision, device)
                if all(word in case.name.lower() for word in words):
                    yield case
