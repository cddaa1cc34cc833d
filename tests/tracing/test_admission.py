from collections.abc import Callable, Iterator
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.nn.quantized import FloatFunctional
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from embedl_deploy.errors import TracingError
from embedl_deploy.tracing import trace

# TorchScript and eager quantization are deprecated, and still what users come with.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
]

ROWS = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Distributed(DistributedDataParallel):
    """A wrapper without a process group to talk to."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module


class Sharded(FSDPModule, nn.Linear):
    pass


class Sum(nn.Module):
    def forward(self, rows: list[Tensor]) -> Tensor:
        return torch.stack(list(rows)).sum(0)


class Rows(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Iterator[Tensor]]:
        return {"rows": (row + 1 for row in x.unbind())}


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()


def dynamic() -> nn.Module:
    return cast("nn.Module", quantization.quantize_dynamic(layers(), {nn.Linear}))  # pyright: ignore[reportDeprecated, reportUnknownMemberType]  # what users still have


def sharded() -> nn.Module:
    layer = nn.Linear(8, 8)
    layer.__class__ = Sharded
    return nn.Sequential(layer)


def jit_traced() -> nn.Module:
    return cast("nn.Module", torch.jit.trace(layers(), ROWS))


UNTRACEABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "script": (lambda: torch.jit.script(layers()), "it is TorchScript.*it was made from"),
    "jit trace": (jit_traced, "it is TorchScript"),
    "script inside": (
        lambda: nn.Sequential(torch.jit.script(layers())),
        r"'0' \(RecursiveScriptModule\) is TorchScript",
    ),
    "data parallel": (lambda: nn.DataParallel(layers()), "give that model, its .module"),
    "distributed": (lambda: Distributed(layers()), "give that model, its .module"),
    "sharded": (sharded, r"'0' \(Sharded\) holds a part of its weights only: load the full"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4)), "shape of its weight yet: call the model"),
    "meta": (
        lambda: layers().to("meta"),
        r"'0' \(Linear\) has no values for its weight.*to_empty",
    ),
    "quantized": (dynamic, r"'0' \(Linear\) is quantized already: give the float model"),
    "observed": (
        lambda: nn.Sequential(layers(), quantization.MinMaxObserver()),
        r"'1' \(MinMaxObserver\) is quantized already",
    ),
}


@pytest.mark.parametrize("kind", UNTRACEABLE)
def test_models_that_no_tracer_takes_are_refused_with_the_cure(kind: str) -> None:
    build, because = UNTRACEABLE[kind]

    with pytest.raises(TracingError, match=because):
        trace(build(), (ROWS,))


def test_float_stand_ins_of_quantized_functions_are_traced() -> None:
    class Add(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add = FloatFunctional()

        def forward(self, x: Tensor) -> Tensor:
            return self.add.add(x, x)

    assert torch.equal(trace(Add().eval(), (ROWS,))(ROWS), ROWS + ROWS)


def test_a_model_on_the_meta_device_is_traced_with_inputs_there() -> None:
    graph = trace(layers().to("meta"), (ROWS.to("meta"),))

    assert graph(ROWS.to("meta")).shape == (2, 8)


def test_inputs_that_can_be_read_once_or_are_no_tensors_are_refused_with_their_place() -> None:
    with pytest.raises(TracingError, match=r"\(args, kwargs\)\[0\]\[0\]: a generator can be read"):
        trace(Sum(), ((row for row in ROWS),))
    with pytest.raises(TracingError, match=r"\[1\]\['rows'\]\[1\]: a NumPy value is no tensor"):
        trace(Sum(), kwargs={"rows": [ROWS, ROWS.numpy()]})
    with pytest.raises(TracingError, match=r"kwargs must be a dict.*got list"):
        trace(Sum(), ([ROWS],), [ROWS])  # pyright: ignore[reportArgumentType]  # the point of the test


def test_outputs_that_can_be_read_once_are_refused() -> None:
    with pytest.raises(TracingError, match=r"Rows: forward returned a generator at \['rows'\]"):
        trace(Rows(), (ROWS,))


def test_what_leaves_torch_says_so_and_names_the_line() -> None:
    class Numpy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(x.numpy() * 2)

    with pytest.raises(TracingError, match=r"test_admission\.py:\d+ .*with torch operations"):
        trace(Numpy(), (ROWS,))
