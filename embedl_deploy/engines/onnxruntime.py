"""ONNX Runtime, with int8 kernels where both sides of a product are quantized."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from embedl_deploy.engines.config import EngineConfig
from embedl_deploy.engines.file_engine import FileEngine, exchanges_bfloat16
from embedl_deploy.engines.inductor_build import first_line
from embedl_deploy.engines.integer_graph import FLOAT_AT_RUN_TIME, is_scaled_at_run_time
from embedl_deploy.engines.onnx_providers import (
    chosen_providers,
    compiling_providers,
    provider_options,
)
from embedl_deploy.engines.placing import whole_device
from embedl_deploy.engines.scratch import run_folder
from embedl_deploy.errors import BuildError, LoweringError, MissingDependencyError
from embedl_deploy.rewriting.refusal import Refusal

_INTEGER_PRODUCTS = (
    "QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "ConvInteger", "MatMulInteger",
    "DynamicQuantizeMatMul", "QAttention",
)  # fmt: skip
_AS_WRITTEN = {"session.qdq_matmulnbits_accuracy_level": "1"}
"""Else a product with weights alone in low precision rounds its float inputs to int8, in blocks."""

_SPOIL_INTEGERS = ["MatMulAddFusion"]
"""It takes a product with its float bias before the integer kernels get it, which then cannot."""


@dataclass(frozen=True)
class OnnxRuntimeEngineConfig(EngineConfig):
    """How ONNX Runtime builds a session."""

    providers: list[str] | None = None
    """Execution providers in order, on the engine's device; None: the one of that device."""

    threads: int | None = None
    """Threads within an operation; None: as many as torch uses."""

    session_options: dict[str, str] | None = None
    """Session configuration entries by name; they go before the engine's own, which keep the float
    inputs of weight-only products in float32."""

    allow_simulated: bool = False
    """Whether quantized products may run as float arithmetic."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")


class _Input(Protocol):
    name: str


class _Session(Protocol):
    def run(self, names: None, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]: ...
    def get_inputs(self) -> list[_Input]: ...


class OnnxRuntimeEngine(FileEngine):
    """Runs a module as ONNX in ONNX Runtime; one session serves all threads."""

    config_class = OnnxRuntimeEngineConfig
    config: OnnxRuntimeEngineConfig
    libraries = ("onnxruntime", "onnx", "onnxscript")
    splits_linears = True

    _session: _Session | None = None
    _names: Sequence[str] = ()
    _placed: torch.device = torch.device("cpu")
    _optimized: Mapping[str, int] | None = None

    def supports(self, node: Node) -> Refusal | None:
        if is_scaled_at_run_time(node) and not self.config.allow_simulated:
            return Refusal(f"ONNX Runtime {FLOAT_AT_RUN_TIME}", node)
        if exchanges_bfloat16(node):
            return Refusal("ONNX Runtime exchanges tensors as numpy arrays, which lack bf16", node)
        return None

    def _open(self, path: Path, device: torch.device) -> None:
        self._start(path, device, None)

    def _open_counting(self, path: Path, device: torch.device) -> None:
        compiling = compiling_providers(chosen_providers(self.config.providers, device))
        if not compiling:
            with tempfile.TemporaryDirectory(dir=run_folder()) as folder:
                self._start(path, device, Path(folder) / "optimized.onnx")
        elif self.config.allow_simulated:
            self._open(path, device)
        else:
            raise BuildError(
                f"ONNX Runtime does not tell whether {' and '.join(compiling)} runs quantized "
                "products on integers: leave it out, or set allow_simulated=True"
            )

    def _start(self, path: Path, device: torch.device, optimized: Path | None) -> None:
        """Opens a session and notes the operations that it made, if told where to write them."""
        runtime = _import_runtime()
        providers = chosen_providers(self.config.providers, device)
        missing = [name for name in providers if name not in runtime.get_available_providers()]
        if missing:
            raise BuildError(
                f"this ONNX Runtime has no {', '.join(missing)}; it has "
                f"{', '.join(runtime.get_available_providers())}"
            )
        try:
            session = runtime.InferenceSession(
                str(path),
                self._options(runtime, optimized),
                providers=providers,
                provider_options=provider_options(providers, device),
                disabled_optimizers=_SPOIL_INTEGERS if self._is_quantized else [],
                enable_fallback=0,  # a provider that fails is an error, not another provider
            )
            self._optimized = {} if optimized is None else _operations_in(optimized)
        except Exception as error:
            raise BuildError(f"ONNX Runtime cannot load the file: {first_line(error)}") from error
        self._session = cast("_Session", session)
        self._names = [given.name for given in self._session.get_inputs()]
        self._placed = whole_device(device)

    def _options(self, runtime: "_Runtime", optimized: Path | None) -> object:
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.config.threads or torch.get_num_threads()
        options.log_severity_level = 3
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        entries = {**_AS_WRITTEN, **(self.config.session_options or {})}
        for name, value in entries.items():
            options.add_session_config_entry(name, value)
        return options

    def _close(self) -> None:
        self._session = None

    def _run(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        assert self._session is not None, "an active engine has a session"
        arrays = [tensor.detach().cpu().numpy() for tensor in inputs]
        feed = dict(zip(self._names, arrays, strict=True))
        try:
            found = self._session.run(None, feed)
        except Exception as error:  # those of ONNX Runtime share no base but Exception
            raise LoweringError(
                f"ONNX Runtime cannot run the file on this input: {first_line(error)}"
            ) from error
        outputs = [torch.from_numpy(array) for array in found]
        return [output.to(self._placed) for output in outputs]

    def _count_kernels(self) -> dict[str, int]:
        found = self._optimized or {}
        return {name: found[name] for name in _INTEGER_PRODUCTS if name in found}

    def _may_simulate(self) -> bool:
        return self.config.allow_simulated


class _Options(Protocol):
    intra_op_num_threads: int
    log_severity_level: int
    optimized_model_filepath: str

    def add_session_config_entry(self, name: str, value: str) -> None: ...


class _Runtime(Protocol):
    def get_available_providers(self) -> list[str]: ...
    def SessionOptions(self) -> _Options: ...  # noqa: N802  # the library's name
    def InferenceSession(  # noqa: N802
        self,
        path: str,
        options: object,
        *,
        providers: Sequence[str],
        provider_options: Sequence[Mapping[str, str]],
        disabled_optimizers: Sequence[str],
        enable_fallback: int,
    ) -> object: ...


def _import_runtime() -> _Runtime:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "OnnxRuntimeEngine needs onnxruntime: pip install 'embedl-deploy[onnx]'"
        ) from error
    return cast("_Runtime", onnxruntime)


def _operations_in(path: Path) -> dict[str, int]:
    import onnx

    counted: dict[str, int] = {}
    for node in onnx.load(str(path), load_external_data=False).graph.node:
        counted[node.op_type] = counted.get(node.op_type, 0) + 1
    return counted
