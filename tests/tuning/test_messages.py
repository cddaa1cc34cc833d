"""What users read who give the wrong thing."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

from embedl_deploy.engines import EagerEngine
from embedl_deploy.tuning import (
    BatchDim,
    DynamicDim,
    MinLatencyStrategy,
    Module,
    TuneStrategy,
    inspect,
    load,
    save,
    tune,
    wrap,
)
from embedl_deploy.tuning.dimensions import DeclaredShapes

KEEP = MinLatencyStrategy([EagerEngine()], measure_s=0.0, keep_slower=True)


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 4).eval()


def recorded(**options: object) -> Module:
    wrapped = cast("Callable[..., Module]", Module)(linear(), **options)
    wrapped(torch.ones(2, 4))
    return wrapped


def settings(**options: object) -> TuneStrategy:
    return cast("Callable[..., TuneStrategy]", MinLatencyStrategy)(**options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wrap("text"), "there is no module in str: pass what holds them"),
        (lambda: wrap(None), "there is no module in NoneType"),
        (lambda: Module(cast("nn.Module", "text")), "only a torch.nn.Module can be wrapped"),
        (lambda: Module(cast("nn.Module", abs)), "can be wrapped, got <built-in function abs>"),
        (lambda: recorded(strategy=MinLatencyStrategy), "a strategy must be a TuneStrategy"),
        (lambda: recorded(strategies=["fastest"]), "MinLatencyStrategy\\(\\), got 'fastest'"),
        (lambda: recorded(strategies={"a": 3}), "got 3"),
        (lambda: recorded().tune(strategy=cast("TuneStrategy", "fastest")), "got 'fastest'"),
        (lambda: recorded().tune("potato"), "not a device: 'potato'; write 'cpu' or 'cuda:0'"),
        (lambda: recorded().tune("cuda"), "is on cpu, asked to tune for cuda"),
        (lambda: settings(backends="openvino"), r"a list of engines, such as \['openvino'\], got"),
        (lambda: settings(quantization=True), "quantization must be a QuantConfig or None, got T"),
        (lambda: settings(tolerance=0.1), r"Tolerance\(relative_error=..., cosine=...\) or None"),
        (lambda: settings(measure_s=-1), "measure_s must not be negative, got -1"),
        (lambda: settings(measure_s=float("nan")), "measure_s must not be negative, got nan"),
        (
            lambda: recorded(dynamic_shapes=cast("DeclaredShapes", [1])),
            r"dynamic_shapes must be a dict by parameter of forward.*got \[1\]",
        ),
        (lambda: BatchDim(cast("int", "1"), 8), "needs integers, got '1' and 8"),
        (lambda: DynamicDim("n", 1, cast("int", 2.5)), "needs integers, got 1 and 2.5"),
        (lambda: inspect(linear(), torch.ones(2, 4), number_of_iterations=0), "got 0 and 1"),
        (
            lambda: inspect(linear(), torch.ones(2, 4)).get_modules(50),
            "is a share from 0 to 1, got 50: 10 % is 0.1",
        ),
    ],
)
def test_what_cannot_be_used_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    wrapped = wrap(linear())
    tune(wrapped, torch.ones(2, 4), strategy=KEEP)
    save(wrapped, tmp_path / "it.tuned")
    return tmp_path / "it.tuned"


def test_loading_for_what_is_no_device_says_so(saved: Path) -> None:
    with pytest.raises(ValueError, match="not a device: 'potato'"):
        load(linear(), saved, device_map="potato")


def test_loading_for_an_unknown_module_names_those_there_are(saved: Path) -> None:
    with pytest.raises(ValueError, match="device_map names 'encoder'; the checkpoint has Linear"):
        load(linear(), saved, device_map={"encoder": "cpu"})


def test_a_module_that_only_its_own_methods_call_is_told_apart() -> None:
    class Generator(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

        def generate(self, x: torch.Tensor) -> torch.Tensor:
            return self(x)

    wrapped = cast("Module", wrap(Generator().eval()))
    generate = cast("Callable[..., object]", wrapped.generate)

    report = tune(wrapped, torch.ones(1), generate)

    assert "where only methods of its own do, as generate() does" in report.describe()
