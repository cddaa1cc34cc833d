import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from embedl_deploy.engines import EagerEngine
from embedl_deploy.engines.placing import put_on, require_on, whole_device
from embedl_deploy.errors import BuildError

CPU, META = torch.device("cpu"), torch.device("meta")


class Table(nn.Module):
    """Holds a buffer and no parameter."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(6.0).reshape(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.table


class Somewhere(nn.Module):
    """Its tensors say that they lie on devices that need not be there; keeps where it was sent."""

    def __init__(self, *devices: str) -> None:
        super().__init__()
        mode = FakeTensorMode()
        for index, device in enumerate(devices):
            stands_for = FakeTensor(mode, torch.empty(2, device="meta"), torch.device(device))
            self.register_buffer(f"buffer_{index}", stands_for)
        self.sent: list[torch.device] = []

    def __deepcopy__(self, memo: object) -> "Somewhere":
        return self

    def to(self, device: torch.device) -> "Somewhere":  # type: ignore[override]
        self.sent.append(device)
        return self


@pytest.fixture(name="second_of_two")
def second_of_two_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes torch tell of two CUDA devices, the second being the current one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


def sent(device: str, *lies_on: str) -> list[str]:
    module = Somewhere(*lies_on)
    put_on(module, torch.device(device))
    return [str(target) for target in module.sent]


@pytest.mark.usefixtures("second_of_two")
def test_cuda_alone_is_the_current_device() -> None:
    assert whole_device(torch.device("cuda")) == torch.device("cuda:1")
    assert whole_device(torch.device("cuda:0")) == torch.device("cuda:0")
    assert whole_device(torch.device("cpu:0")) == CPU


@pytest.mark.usefixtures("second_of_two")
def test_a_module_moves_to_the_very_device() -> None:
    assert sent("cuda:1", "cuda:0") == ["cuda:1"]
    assert sent("cuda:0", "cuda:0") == []
    assert sent("cuda", "cuda:0") == ["cuda:1"]
    assert sent("cuda", "cuda:1") == []
    assert sent("cuda:0", "cuda:0", "cuda:1") == ["cuda:0"]


@pytest.mark.usefixtures("second_of_two")
def test_only_constants_on_the_cpu_may_lie_beside() -> None:
    assert sent("cuda:0", "cuda:0", "cpu") == []
    assert sent("cuda:0", "cpu") == ["cuda:0"]
    assert sent("cpu", "cuda:0", "cpu") == ["cpu"]


@pytest.mark.usefixtures("second_of_two")
def test_a_build_names_the_device_that_the_module_lies_on() -> None:
    require_on(Somewhere("cuda:1"), torch.device("cuda"))

    with pytest.raises(ValueError, match=r"must lie on cuda:0 .* buffers are on cuda:1: call"):
        require_on(Somewhere("cuda:1"), torch.device("cuda:0"))


@pytest.mark.usefixtures("second_of_two")
def test_a_device_that_is_not_there_is_an_error() -> None:
    with pytest.raises(BuildError, match=r"to cuda:2: .* go up to cuda:1"):
        put_on(Table(), torch.device("cuda:2"))


def test_without_cuda_nothing_moves_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(BuildError, match="to cuda: this machine has no CUDA device"):
        put_on(Table(), torch.device("cuda"))


def test_buffers_count_where_there_are_no_parameters() -> None:
    table = Table()

    assert put_on(table, CPU) is table
    assert put_on(table, META).table.device == META
    assert table.table.device == CPU
    with pytest.raises(ValueError, match="buffers are on meta"):
        EagerEngine().build(Table().to("meta"), None, [(torch.ones(1, 2),)], "cpu")


def test_a_module_without_tensors_lies_anywhere() -> None:
    module = nn.ReLU()

    require_on(module, META)

    assert put_on(module, META) is module
