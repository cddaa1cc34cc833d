"""TensorRT's Python packages, imported when they are needed; and what TensorRT cannot take."""

from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.fx import Node

from embedl_deploy.engines.integer_graph import (
    is_quantization,
    is_scaled_at_run_time,
    operation,
)
from embedl_deploy.errors import MissingDependencyError
from embedl_deploy.graph.nodes import dtype_of, value_of

PACKAGES = {
    "onnx": ("tensorrt", "polygraphy", "onnx", "onnxscript"),
    "torch-tensorrt": ("tensorrt", "torch_tensorrt"),
    "torch-tensorrt-jit": ("tensorrt", "torch_tensorrt"),
}
"""What each route needs."""

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
NO_CODES = (
    "torch-tensorrt has no layers for the quantize and dequantize operations of a converted graph, "
    "and would leave them to torch as float arithmetic: use route='onnx'"
)
_TYPES = (torch.float64, torch.complex64, torch.complex128, torch.int16, torch.uint16)


def missing_packages(route: str) -> str | None:
    """Returns what is not installed and how to install it, None if nothing is missing."""
    missing = [name for name in PACKAGES[route] if find_spec(name) is None]
    if not missing:
        return None
    return f"{' and '.join(missing)} not installed: pip install 'embedl-deploy[tensorrt]'"


def require_packages(route: str) -> None:
    """Checks that a route can be taken.

    Raises:
        MissingDependencyError: A package is not installed; the message names the extra.
    """
    missing = missing_packages(route)
    if missing is not None:
        raise MissingDependencyError(f"TensorRTEngine with route={route!r} needs {missing}")


def why_not(node: Node, route: str = "onnx") -> str | None:
    """Returns why a route cannot take a node, for the reasons known before a build."""
    value = value_of(node)
    if route != "onnx" and (is_quantization(node) or dtype_of(node) in FLOAT8):
        return NO_CODES
    if is_scaled_at_run_time(node):
        return "TensorRT takes constant scales of activations, this one is computed at run time"
    if isinstance(value, Tensor):
        if value.device.type != "cuda":
            return f"TensorRT runs on CUDA devices, this tensor is on {value.device}"
        if value.dtype in _TYPES:
            return f"TensorRT has no tensors of type {value.dtype}"
    if is_quantization(node) and "per_tensor" in operation(node):
        return _why_not_quantized(node)
    return None


def _why_not_quantized(node: Node) -> str | None:
    zero_point, dtype = node.args[2], node.args[5]
    if dtype not in (torch.int8, torch.float8_e4m3fn):
        return f"TensorRT quantizes to int8 or float8_e4m3fn, these codes are {dtype}"
    if zero_point != 0:
        return f"TensorRT quantizes symmetrically, this zero point is {zero_point}"
    return None


class Library(Protocol):
    """The names of the package ``tensorrt`` that are used here."""

    __version__: str
    Logger: "_LoggerClass"
    Runtime: "_RuntimeClass"
    Refitter: "_RefitterClass"
    OnnxParserRefitter: "_ParserRefitterClass"
    MemoryPoolType: "_MemoryPools"
    TensorIOMode: "_Modes"


class _Severity(Protocol):
    ERROR: object


class _LoggerClass(Protocol):
    Severity: _Severity

    def __call__(self, severity: object) -> object: ...


class Context(Protocol):
    """A TensorRT execution context: the memory of one call at a time."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...
    def set_tensor_address(self, name: str, address: int) -> bool: ...
    def infer_shapes(self) -> list[str]: ...
    def get_tensor_shape(self, name: str) -> tuple[int, ...]: ...
    def execute_async_v3(self, stream: int) -> bool: ...


class _DataType(Protocol):
    name: str


class CudaEngine(Protocol):
    """A built engine."""

    num_io_tensors: int

    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> object: ...
    def get_tensor_dtype(self, name: str) -> _DataType: ...
    def create_execution_context(self) -> Context | None: ...
    def serialize(self) -> bytes: ...


class _Runtime(Protocol):
    def deserialize_cuda_engine(self, content: bytes) -> CudaEngine | None: ...


class _RuntimeClass(Protocol):
    def __call__(self, logger: object) -> _Runtime: ...


class _Refitter(Protocol):
    def get_missing_weights(self) -> list[str]: ...
    def refit_cuda_engine(self) -> bool: ...


class _RefitterClass(Protocol):
    def __call__(self, engine: CudaEngine, logger: object) -> _Refitter: ...


class _ParserRefitter(Protocol):
    def refit_from_file(self, path: str) -> bool: ...


class _ParserRefitterClass(Protocol):
    def __call__(self, refitter: _Refitter, logger: object) -> _ParserRefitter: ...


class _MemoryPools(Protocol):
    WORKSPACE: object


class _Modes(Protocol):
    INPUT: object


def tensorrt() -> Library:
    """Returns the package ``tensorrt``."""
    return cast("Library", import_module("tensorrt"))


class Polygraphy(Protocol):
    """The loaders of Polygraphy that are used here, under their own names."""

    def NetworkFromOnnxPath(self, path: str, *, strongly_typed: bool) -> object: ...  # noqa: N802
    def CreateConfig(self, **settings: object) -> object: ...  # noqa: N802
    def EngineBytesFromNetwork(self, network: object, config: object) -> object: ...  # noqa: N802
    def Profile(self) -> object: ...  # noqa: N802


def polygraphy() -> Polygraphy:
    """Returns the package ``polygraphy.backend.trt``."""
    return cast("Polygraphy", import_module("polygraphy.backend.trt"))


@contextmanager
def quiet_polygraphy() -> Generator[None]:
    """Lets Polygraphy report errors only."""
    logger = import_module("polygraphy.logger").G_LOGGER
    with logger.verbosity(logger.ERROR):
        yield
