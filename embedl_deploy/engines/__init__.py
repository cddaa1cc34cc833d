"""Engines: what builds a subgraph and runs it. Each optional library is imported in one file."""

from embedl_deploy.engines.config import EngineConfig
from embedl_deploy.engines.eager import EagerEngine, EagerEngineConfig
from embedl_deploy.engines.engine import Engine, EngineState
from embedl_deploy.engines.inductor import InductorEngine, InductorEngineConfig
from embedl_deploy.engines.inductor_build import count_int8_kernels
from embedl_deploy.engines.onnxruntime import OnnxRuntimeEngine, OnnxRuntimeEngineConfig
from embedl_deploy.engines.openvino import OpenVINOEngine, OpenVINOEngineConfig
from embedl_deploy.engines.tensorrt import TensorRTEngine
from embedl_deploy.engines.tensorrt_config import TensorRTEngineConfig
from embedl_deploy.engines.torchao import TorchAOEngine, TorchAOEngineConfig

# The names that users of other tuning tools come with.
Backend = Engine
BackendConfig = EngineConfig
BackendState = EngineState
TorchInductorBackend = InductorEngine
TorchInductorBackendConfig = InductorEngineConfig
TorchAOBackend = TorchAOEngine
TorchAOBackendConfig = TorchAOEngineConfig
TensorRTBackend = TensorRTEngine
TensorRTBackendConfig = TensorRTEngineConfig

__all__ = [
    "Backend",
    "BackendConfig",
    "BackendState",
    "EagerEngine",
    "EagerEngineConfig",
    "Engine",
    "EngineConfig",
    "EngineState",
    "InductorEngine",
    "InductorEngineConfig",
    "OnnxRuntimeEngine",
    "OnnxRuntimeEngineConfig",
    "OpenVINOEngine",
    "OpenVINOEngineConfig",
    "TensorRTBackend",
    "TensorRTBackendConfig",
    "TensorRTEngine",
    "TensorRTEngineConfig",
    "TorchAOBackend",
    "TorchAOBackendConfig",
    "TorchAOEngine",
    "TorchAOEngineConfig",
    "TorchInductorBackend",
    "TorchInductorBackendConfig",
    "count_int8_kernels",
]
