"""OpenVINO, Intel's runtime, with int8 kernels for quantized graphs."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast, get_args

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from embedl_deploy.engines.config import EngineConfig
from embedl_deploy.engines.file_engine import FileEngine, exchanges_bfloat16
from embedl_deploy.engines.inductor_build import first_line
from embedl_deploy.engines.integer_graph import FLOAT_AT_RUN_TIME, is_scaled_at_run_time
from embedl_deploy.errors import BuildError, MissingDependencyError
from embedl_deploy.rewriting.refusal import Refusal

Hint = Literal["LATENCY", "THROUGHPUT"]
_PRODUCTS = ("Convolution", "FullyConnected", "MatMul", "GroupConvolution", "Deconvolution")
_INTEGERS = ("u8", "i8")
_SNIPPETS = "SNIPPETS_MODE"
"""Whether OpenVINO makes one kernel of several small operations."""


@dataclass(frozen=True)
class OpenVINOEngineConfig(EngineConfig):
    """How OpenVINO compiles a model."""

    hint: Hint = "LATENCY"
    rest_dtype: torch.dtype = torch.float32
    """What is not int8 runs in: float32, or bfloat16 where the processor has it."""

    threads: int | None = None
    """None: as many as torch uses."""

    properties: dict[str, str] | None = None
    """Further properties of the compiled model by name."""

    allow_simulated: bool = False
    """Whether quantized products may run as float arithmetic."""

    def __post_init__(self) -> None:
        if self.hint not in get_args(Hint):
            raise ValueError(f"hint must be LATENCY or THROUGHPUT, got {self.hint!r}")
        if self.rest_dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"rest_dtype must be float32 or bfloat16, got {self.rest_dtype}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")


class OpenVINOEngine(FileEngine):
    """Runs a module in OpenVINO on the CPU; every thread has an infer request of its own."""

    config_class = OpenVINOEngineConfig
    config: OpenVINOEngineConfig
    device_types = ("cpu",)
    libraries = ("openvino", "onnx", "onnxscript")

    _compiled: "_Compiled | None" = None
    _threads: "threading.local | None" = None

    def supports(self, node: Node) -> Refusal | None:
        if is_scaled_at_run_time(node) and not self.config.allow_simulated:
            return Refusal(f"OpenVINO {FLOAT_AT_RUN_TIME}", node)
        if exchanges_bfloat16(node):
            return Refusal("OpenVINO exchanges tensors as numpy arrays, which lack bf16", node)
        return None

    def _open(self, path: Path, device: torch.device) -> None:
        del device
        try:
            core = _core()
            model = core.read_model(str(path))
            properties = self._properties()
            compiled = core.compile_model(model, "CPU", properties)
            if _SNIPPETS not in properties and _fuses_integer_products(compiled):
                compiled = core.compile_model(model, "CPU", {**properties, _SNIPPETS: "DISABLE"})
            self._compiled = compiled
        except MissingDependencyError:
            raise
        except Exception as error:
            raise BuildError(f"OpenVINO cannot compile the model: {first_line(error)}") from error
        self._threads = threading.local()

    def _properties(self) -> dict[str, object]:
        precision = "bf16" if self.config.rest_dtype is torch.bfloat16 else "f32"
        return {
            "PERFORMANCE_HINT": self.config.hint,
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": self.config.threads or torch.get_num_threads(),
            **(self.config.properties or {}),
        }

    def _close(self) -> None:
        self._compiled = self._threads = None

    def _run(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        assert self._compiled is not None, "an active engine has a compiled model"
        assert self._threads is not None
        request = cast("_Request | None", getattr(self._threads, "request", None))
        if request is None:
            request = self._compiled.create_infer_request()
            self._threads.request = request
        arrays = [tensor.detach().numpy() for tensor in inputs]
        # The request owns its outputs and overwrites them at the next call.
        found = request.infer(arrays, share_inputs=True, share_outputs=True)
        return [
            torch.from_numpy(np.array(found[index])) for index in range(len(self._compiled.outputs))
        ]

    def _count_kernels(self) -> dict[str, int]:
        assert self._compiled is not None
        counted: dict[str, int] = {}
        for operation in self._compiled.get_runtime_model().get_ops():
            kind, precision = _kind_and_precision(operation)
            if kind in _PRODUCTS and precision in _INTEGERS:
                counted[kind] = counted.get(kind, 0) + 1
        return counted

    def _may_simulate(self) -> bool:
        return self.config.allow_simulated


class _Value(Protocol):
    def astype(self, kind: type) -> object: ...


class _Output(Protocol):
    def get_node(self) -> "_Operation": ...


class _Operation(Protocol):
    def get_rt_info(self) -> Mapping[str, _Value]: ...
    def input_values(self) -> list[_Output]: ...


class _RuntimeModel(Protocol):
    def get_ops(self) -> list[_Operation]: ...


class _Request(Protocol):
    def infer(
        self, inputs: list[np.ndarray], *, share_inputs: bool, share_outputs: bool
    ) -> Mapping[int, np.ndarray]: ...


class _Compiled(Protocol):
    outputs: Sequence[object]

    def create_infer_request(self) -> _Request: ...
    def get_runtime_model(self) -> _RuntimeModel: ...


class _Core(Protocol):
    def read_model(self, path: str) -> object: ...
    def compile_model(
        self, model: object, device: str, properties: Mapping[str, object]
    ) -> _Compiled: ...


def _kind_and_precision(operation: _Operation) -> tuple[str, str]:
    """Returns what the runtime calls an operation and computes it in; empty where it is silent."""
    info = operation.get_rt_info()
    kind, precision = (
        str(info[key].astype(str)) if key in info else ""
        for key in ("layerType", "runtimePrecision")
    )
    return kind, precision


def _fuses_integer_products(compiled: _Compiled) -> bool:
    """Whether small quantized linear layers in a row became one kernel.

    OpenVINO 2026.4 computes it wrongly: two layers of 64 by 128 were off by 3e5, relative.
    """
    return any(
        _kind_and_precision(read.get_node()) in [("Const", precision) for precision in _INTEGERS]
        for operation in compiled.get_runtime_model().get_ops()
        if _kind_and_precision(operation)[0] == "Subgraph"
        for read in operation.input_values()
    )


def _core() -> _Core:
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(
            "OpenVINOEngine needs openvino: pip install 'embedl-deploy[openvino]'"
        ) from error
    return cast("_Core", openvino.Core())
