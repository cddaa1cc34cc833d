"""The configuration for NVIDIA Triton, without Triton: its schema, and its documented interface."""

import importlib.util
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message
from numpy.typing import NDArray

from embedl_deploy import save, tune, wrap
from embedl_deploy.engines import EagerEngine
from embedl_deploy.tuning import BatchDim, MinLatencyStrategy

MODEL = Path(__file__).parents[2] / "examples" / "serve_triton" / "embedder"

# Of model_config.proto: names, numbers and types of the fields that the configuration uses.
STRING, INT32, INT64, UINT64 = "TYPE_STRING", "TYPE_INT32", "TYPE_INT64", "TYPE_UINT64"
ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_FP32": 11, "TYPE_STRING": 13},
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2, "KIND_MODEL": 3},
}
MESSAGES = {
    "ModelInput": {"name": (1, STRING), "data_type": (2, "DataType"), "dims": (4, INT64, "many")},
    "ModelOutput": {"name": (1, STRING), "data_type": (2, "DataType"), "dims": (3, INT64, "many")},
    "ModelDynamicBatching": {
        "preferred_batch_size": (1, INT32, "many"),
        "max_queue_delay_microseconds": (2, UINT64),
    },
    "ModelInstanceGroup": {"name": (1, STRING), "kind": (4, "Kind"), "count": (2, INT32)},
    "ModelConfig": {
        "name": (1, STRING),
        "max_batch_size": (4, INT32),
        "input": (5, "ModelInput", "many"),
        "output": (6, "ModelOutput", "many"),
        "instance_group": (7, "ModelInstanceGroup", "many"),
        "dynamic_batching": (11, "ModelDynamicBatching"),
        "backend": (17, STRING),
    },
}

EMBEDDER = '''
import torch
from torch import nn


class Embedder:
    """Embeds a text as twice its length."""

    def __init__(self):
        self.encoder = nn.Linear(1, 2, bias=False).eval()
        nn.init.constant_(self.encoder.weight, 2.0)

    def __call__(self, texts):
        with torch.no_grad():
            return self.encoder(torch.tensor([[float(len(text))] for text in texts]))
'''


class Port(Protocol):
    name: str
    data_type: int
    dims: list[int]


class Config(Protocol):
    name: str
    backend: str
    max_batch_size: int
    input: list[Port]
    output: list[Port]


@dataclass
class Tensor:
    """Stands in for ``triton_python_backend_utils.Tensor``."""

    name: str
    values: NDArray[np.generic]

    def as_numpy(self) -> NDArray[np.generic]:
        return self.values


@dataclass
class Response:
    """Stands in for ``InferenceResponse``."""

    output_tensors: list[Tensor]
    error: object | None = None


class TritonModel(Protocol):
    embedder: object

    def initialize(self, args: dict[str, str]) -> None: ...
    def execute(self, requests: list[list[Tensor]]) -> list[Response]: ...


def config_message() -> Message:
    """Returns an empty ModelConfig of Triton's schema."""
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="it", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, *many) in fields.items():
            added = message.field.add(name=field, number=int(number))
            added.label = added.LABEL_REPEATED if many else added.LABEL_OPTIONAL
            if str(kind).startswith("TYPE_"):
                added.type = getattr(added, str(kind))
            else:
                added.type = added.TYPE_ENUM if kind in ENUMS else added.TYPE_MESSAGE
                added.type_name = f".it.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("it.ModelConfig"))()


@pytest.fixture
def config() -> Config:
    message = config_message()
    text_format.Parse((MODEL / "config.pbtxt").read_text(encoding="utf-8"), message)
    return cast("Config", message)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TritonModel:
    """The model as Triton has it, beside a tuned pipeline that is small."""
    folder = tmp_path / "embedder" / "1"
    folder.mkdir(parents=True)
    (folder / "tune_minilm.py").write_text(EMBEDDER, encoding="utf-8")
    shutil.copy(MODEL / "1" / "model.py", folder)
    monkeypatch.delitem(sys.modules, "tune_minilm", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend_utils())
    from_file = module_from(folder / "tune_minilm.py")
    tuned = wrap(from_file.Embedder(), dynamic_shapes={"encoder": {"input": {0: BatchDim(1, 8)}}})
    strategy = MinLatencyStrategy([EagerEngine()], measure_s=0.0, keep_slower=True)
    tune(tuned, [(["a", "bc"],)], strategy=strategy)
    save(tuned, folder / "embedder.tuned")
    found: TritonModel = module_from(folder / "model.py").TritonPythonModel()
    found.initialize({"model_name": "embedder", "model_version": "1"})
    monkeypatch.delitem(sys.modules, "tune_minilm")
    return found


def module_from(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"triton_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def backend_utils() -> ModuleType:
    """Returns a module with what Triton documents for Python models."""

    def get_input_tensor_by_name(request: list[Tensor], name: str) -> Tensor | None:
        return next((tensor for tensor in request if tensor.name == name), None)

    module = ModuleType("triton_python_backend_utils")
    module.__dict__.update(
        Tensor=Tensor,
        InferenceResponse=Response,
        TritonError=str,
        get_input_tensor_by_name=get_input_tensor_by_name,
    )
    return module


def request(*texts: bytes) -> list[Tensor]:
    return [Tensor("text", np.array([[text] for text in texts], dtype=object))]


def test_the_configuration_is_one_of_tritons(config: Config) -> None:
    assert (config.name, config.backend, config.max_batch_size) == (MODEL.name, "python", 8)
    assert [(port.name, port.data_type, list(port.dims)) for port in config.input] == [
        ("text", ENUMS["DataType"]["TYPE_STRING"], [1])
    ]
    assert [(port.name, port.data_type, list(port.dims)) for port in config.output] == [
        ("embedding", ENUMS["DataType"]["TYPE_FP32"], [384])
    ]


def test_a_name_that_triton_does_not_know_would_be_found() -> None:
    text = (MODEL / "config.pbtxt").read_text(encoding="utf-8").replace("max_queue", "most_queue")

    with pytest.raises(text_format.ParseError, match="no field named"):
        text_format.Parse(text, config_message())


def test_the_model_answers_each_request_with_its_own_rows(
    model: TritonModel, config: Config
) -> None:
    answers = model.execute([request(b"a"), request("ü".encode(), b"ccc"), request(b"dddd")])

    found = [answer.output_tensors[0] for answer in answers]
    assert [tensor.name for tensor in found] == [config.output[0].name] * 3
    assert all(tensor.values.dtype == np.float32 for tensor in found)
    assert [tensor.values.tolist() for tensor in found] == [
        [[2.0, 2.0]],
        [[2.0, 2.0], [6.0, 6.0]],
        [[8.0, 8.0]],
    ]


def test_a_request_that_is_no_text_gets_its_own_error(model: TritonModel) -> None:
    bad, good = model.execute([request(b"\xff\xfe"), request(b"bb")])
    (alone,) = model.execute([request(b"\xff\xfe")])

    assert (bad.output_tensors, bad.error) == ([], "the text must be UTF-8")
    assert (good.output_tensors[0].values.tolist(), good.error) == ([[4.0, 4.0]], None)
    assert alone.error is not None
