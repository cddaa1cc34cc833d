"""Numbers of quantization: formats, configurations, observers, scales and fake quantizers."""

from embedl_deploy.quantization.config import QuantConfig, SmoothQuantConfig, TensorQuantConfig
from embedl_deploy.quantization.grid import QuantGrid
from embedl_deploy.quantization.placement import Decision, Placement
from embedl_deploy.quantization.precision import (
    CalibrationMethod,
    Dynamic,
    Precision,
    WeightRounding,
)
from embedl_deploy.quantization.skipping import ModulesToSkip
from embedl_deploy.quantization.stub import QuantStub
from embedl_deploy.quantization.weights import WeightFakeQuantize

__all__ = [
    "CalibrationMethod",
    "Decision",
    "Dynamic",
    "ModulesToSkip",
    "Placement",
    "Precision",
    "QuantConfig",
    "QuantGrid",
    "QuantStub",
    "SmoothQuantConfig",
    "TensorQuantConfig",
    "WeightFakeQuantize",
    "WeightRounding",
]
