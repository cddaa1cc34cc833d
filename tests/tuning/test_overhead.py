"""What the wrapper of a tuned module adds to a call."""

import statistics
import time
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from embedl_deploy.engines import EagerEngine
from embedl_deploy.tuning import MinLatencyStrategy, Module
from embedl_deploy.tuning.module_core import ModuleCore

KEEP = MinLatencyStrategy([EagerEngine()], measure_s=0.0, keep_slower=True)


class One(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class Many(nn.Module):
    """Takes 20 tensors and 20 scalars, and uses two of them."""

    def forward(self, tensors: list[Tensor], scalars: dict[str, float]) -> Tensor:
        return tensors[0] + scalars["s3"]


def tuned(module: nn.Module, *args: object) -> Module:
    wrapped = Module(module.eval())
    wrapped(*args)
    wrapped.tune(strategy=KEEP)
    assert not wrapped.tuning_report.notes
    return wrapped


def microseconds(call: Callable[[], object]) -> float:
    blocks: list[float] = []
    for _ in range(60):
        start = time.perf_counter()
        for _ in range(100):
            call()
        blocks.append((time.perf_counter() - start) * 1e4)
    return statistics.quantiles(blocks, n=10)[0]


def overhead(wrapped: Module, *args: object) -> float:
    """Returns the microseconds of a call beyond those of the engine alone, on a quiet machine."""
    core: ModuleCore = wrapped.tuning_core
    (model,) = core.models
    run, _ = model.assembly.runner(model.report.fallback_counts, fallback=True)
    signature = model.assembly.core.signature
    leaves = [
        leaf for argument in args for leaf in cast("list[object]", pytree.tree_leaves(argument))
    ]
    taken = [leaves[index] for index in signature.arguments]
    with torch.no_grad():
        whole = microseconds(lambda: wrapped(*args))
        engine = microseconds(lambda: run(*taken))
    assert wrapped.eager_calls == 0
    return whole - engine


@pytest.mark.slow
def test_one_tensor_takes_less_than_10_microseconds() -> None:
    x = torch.ones(4)

    assert overhead(tuned(One(), x), x) < 10


@pytest.mark.slow
def test_20_tensors_and_20_scalars_take_less_than_30_microseconds() -> None:
    args = ([torch.ones(4) for _ in range(20)], {f"s{i}": float(i) for i in range(20)})

    assert overhead(tuned(Many(), *args), *args) < 30
