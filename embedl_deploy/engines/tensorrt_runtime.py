"""Runs a built engine on torch tensors, in a stream of its own ordered after the caller's."""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from embedl_deploy.engines.placing import whole_device
from embedl_deploy.engines.tensorrt_execution import Execution, readable
from embedl_deploy.engines.tensorrt_library import Context, CudaEngine, Library, tensorrt
from embedl_deploy.errors import BuildError, LoweringError

_TYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
    "FP8": torch.float8_e4m3fn,
}
"""Members of ``tensorrt.DataType`` that torch has tensors of."""

_MOST_GRAPHS = 8
"""CUDA graphs kept, the oldest goes first; each holds its own context, inputs and outputs."""


class TensorRTProgram:
    """An engine on one device; calls from several threads take turns."""

    def __init__(
        self, content: bytes, names: Sequence[str], device: torch.device, cuda_graphs: bool
    ) -> None:
        """Loads a built engine.

        Args:
            content: The engine.
            names: What the inputs of a call are called, in order.
            device: Where it runs.
            cuda_graphs: Whether calls are captured and replayed.

        Raises:
            BuildError: It is no engine of this version for this device.
        """
        library = tensorrt()
        self._device = whole_device(device)
        self._logger = library.Logger(library.Logger.Severity.ERROR)
        self._runtime = library.Runtime(self._logger)
        with torch.cuda.device(self._device):
            engine = self._runtime.deserialize_cuda_engine(content)
            context = None if engine is None else engine.create_execution_context()
        if engine is None or context is None:
            raise BuildError(
                f"TensorRT {library.__version__} cannot load the engine on {device}: it was built "
                "for another version or kind of device, or memory is short; build it again"
            )
        self._engine: CudaEngine = engine
        self._stream = torch.cuda.Stream(self._device)
        self._turn = threading.Lock()
        known, outputs = _tensor_names(engine, library)
        self._inputs = [(name if name in known else None) for name in names]
        self._outputs = {name: _type_of(engine, name) for name in outputs}
        self._first: Execution | None = self._execution(context)
        self._graphs: dict[tuple[torch.Size, ...], _Captured] | None = {} if cuda_graphs else None

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Returns the outputs for the tensors of a call, in the caller's stream's order."""
        caller = torch.cuda.current_stream(self._device)
        with self._turn, torch.cuda.device(self._device):
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                outputs = self._run(inputs)
            caller.wait_stream(self._stream)
        # The allocator must not hand out this memory while the other stream still works on it.
        for tensor in inputs:
            if tensor.device == self._device:
                tensor.record_stream(self._stream)
        for tensor in outputs:
            tensor.record_stream(caller)
        return outputs

    def _run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if self._graphs is None:
            assert self._first is not None, "only captured shapes take it away"
            # Copies live until the start: else an output would get their memory. Later uses of it
            # come after the run, in the same stream.
            given = readable(inputs, self._device)
            outputs = self._first.bind(given)
            self._first.start(self._stream.cuda_stream)
            return outputs
        key = tuple(tensor.shape for tensor in inputs)
        captured = self._graphs.get(key)
        if captured is None:
            while len(self._graphs) >= _MOST_GRAPHS:
                self._stream.synchronize()  # what goes must not be running
                self._graphs.pop(next(iter(self._graphs)))
            captured = self._graphs[key] = self._captured(inputs)
        return captured.replay(inputs)

    def _captured(self, inputs: Sequence[Tensor]) -> "_Captured":
        """Captures a shape, in a context of its own: the graph goes on using its memory."""
        execution, self._first = self._first, None
        if execution is None:
            execution = self._execution(self._engine.create_execution_context())
        held = [tensor.clone() for tensor in readable(inputs, self._device)]
        outputs = execution.bind(held)
        execution.start(self._stream.cuda_stream)  # allocates, which a capture must not
        graph = torch.cuda.CUDAGraph()
        self._stream.synchronize()
        # Other threads may use CUDA meanwhile: only this one's calls are held to the capture.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            execution.start(self._stream.cuda_stream)
        return _Captured(graph, execution, held, outputs)

    def _execution(self, context: Context | None) -> Execution:
        if context is None:
            raise LoweringError(
                f"TensorRT has no memory left on {self._device} for inputs of another shape: each "
                "takes a context of its own with cuda_graphs=True"
            )
        return Execution(context, self._inputs, self._outputs, self._device)


class _Captured:
    """A CUDA graph, and the memory that it works on."""

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        execution: Execution,
        inputs: list[Tensor],
        outputs: list[Tensor],
    ) -> None:
        self._graph = graph
        self._execution = execution
        self._inputs = inputs
        self._outputs = outputs

    def replay(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        for held, given in zip(self._inputs, inputs, strict=True):
            held.copy_(given)
        self._graph.replay()
        return [output.clone() for output in self._outputs]


def _tensor_names(engine: CudaEngine, library: Library) -> tuple[list[str], list[str]]:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == library.TensorIOMode.INPUT]
    return inputs, [name for name in names if name not in inputs]


def _type_of(engine: CudaEngine, name: str) -> torch.dtype:
    kind = engine.get_tensor_dtype(name).name
    if kind not in _TYPES:
        raise BuildError(f"output {name!r} is of TensorRT's type {kind}, which torch has not")
    return _TYPES[kind]
