"""What a TensorRT engine is handed and what is kept of it, by one that reads it on the CPU."""

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Generator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from embedl_deploy.engines import tensorrt_runtime
from embedl_deploy.engines.tensorrt_execution import Execution, readable
from embedl_deploy.engines.tensorrt_runtime import TensorRTProgram
from embedl_deploy.errors import LoweringError

CPU = torch.device("cpu")
CAPTURED: list[Callable[[], None]] = []
"""What runs that are being captured do; replayed by the graph."""


class Doubling:
    """A context that doubles what lies at an address, row after row, as many as the shape says."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        del name
        self.shape = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        del name
        return self.shape

    def execute_async_v3(self, stream: int) -> bool:
        del stream
        if STATE.capturing:
            CAPTURED.append(self.run)
        else:
            self.run()
        return True

    def run(self) -> None:
        """Works on what the context is set to now, as a graph works in its context's memory."""
        count = torch.Size(self.shape).numel()
        floats = ctypes.c_float * count
        read = floats.from_address(self.addresses["x"])
        floats.from_address(self.addresses["y"])[:] = [2 * value for value in read]


class Engine:
    """An engine of one input and one output; knows which of its contexts are alive."""

    num_io_tensors = 2

    def __init__(self) -> None:
        self.contexts: weakref.WeakSet[Doubling] = weakref.WeakSet()
        self.room = 100

    def create_execution_context(self) -> Doubling | None:
        if len(self.contexts) >= self.room:
            return None
        context = Doubling()
        self.contexts.add(context)
        return context

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == "x" else "output"

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        del name
        return SimpleNamespace(name="FLOAT")


class Graph:
    """Replays what was captured."""

    def __init__(self) -> None:
        self.runs: list[Callable[[], None]] = []

    def replay(self) -> None:
        for run in self.runs:
            run()


class Stream:
    cuda_stream = 7

    def __init__(self, device: object = None) -> None:
        del device

    def wait_stream(self, other: object) -> None: ...

    def synchronize(self) -> None: ...


STATE = SimpleNamespace(capturing=False)


@contextlib.contextmanager
def capture(graph: Graph, **settings: object) -> Generator[None]:
    del settings
    STATE.capturing = True
    yield
    STATE.capturing = False
    graph.runs = list(CAPTURED)
    CAPTURED.clear()


class Logger:
    Severity = SimpleNamespace(ERROR=0)

    def __init__(self, severity: object) -> None: ...


def nothing(which: object) -> contextlib.nullcontext[None]:
    del which
    return contextlib.nullcontext()


@pytest.fixture(name="engine")
def engine_fixture(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine in a TensorRT that runs on the CPU."""
    engine = Engine()

    class Runtime:
        def __init__(self, logger: object) -> None: ...

        def deserialize_cuda_engine(self, content: bytes) -> Engine:
            del content
            return engine

    library = SimpleNamespace(
        __version__="0",
        Logger=Logger,
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="input"),
    )
    monkeypatch.setattr(tensorrt_runtime, "tensorrt", lambda: library)
    monkeypatch.setattr(torch.cuda, "device", nothing)
    monkeypatch.setattr(torch.cuda, "stream", nothing)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(Tensor, "record_stream", ignore)
    return engine


def ignore(*args: object) -> None:
    del args


def program(*, cuda_graphs: bool) -> TensorRTProgram:
    return TensorRTProgram(b"", ["x"], CPU, cuda_graphs)


def rows(count: int) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.usefixtures("engine")
def test_inputs_of_any_strides_are_read_row_after_row(cuda_graphs: bool) -> None:
    run = program(cuda_graphs=cuda_graphs)
    image = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))

    for given in (
        image.to(memory_format=torch.channels_last),
        image.transpose(1, 2).contiguous().transpose(1, 2),
        torch.cat([image, image])[::2],
    ):
        (doubled,) = run([given])
        assert torch.equal(doubled, 2 * given)


def test_what_lies_right_is_handed_over_itself() -> None:
    context, given = Doubling(), rows(6)[2:]
    execution = Execution(context, ["x"], {"y": torch.float32}, CPU)

    (output,) = execution.bind(readable([given], CPU))

    assert context.addresses == {"x": given.data_ptr(), "y": output.data_ptr()}


def test_every_captured_shape_has_a_context_of_its_own(engine: Engine) -> None:
    run = program(cuda_graphs=True)

    for count in (1, 2, 3, 1, 2):
        (doubled,) = run([rows(count)])
        assert torch.equal(doubled, 2 * rows(count))
    assert len(engine.contexts) == 3


def test_a_shape_that_goes_takes_its_context_along(engine: Engine) -> None:
    run = program(cuda_graphs=True)

    for count in range(1, 12):
        run([rows(count)])

    assert len(engine.contexts) == 8
    assert torch.equal(run([rows(1)])[0], 2 * rows(1))


def test_one_context_serves_all_shapes_that_are_not_captured(engine: Engine) -> None:
    run = program(cuda_graphs=False)

    for count in (1, 2, 3):
        assert torch.equal(run([rows(count)])[0], 2 * rows(count))
    assert len(engine.contexts) == 1


def test_a_context_that_does_not_fit_into_memory_is_an_error(engine: Engine) -> None:
    run = program(cuda_graphs=True)
    run([rows(1)])
    engine.room = 1

    with pytest.raises(LoweringError, match="no memory left on cpu for inputs of another shape"):
        run([rows(2)])
    assert torch.equal(run([rows(1)])[0], 2 * rows(1))
