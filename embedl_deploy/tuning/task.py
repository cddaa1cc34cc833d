"""One graph to tune, and what eager computes for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from embedl_deploy.errors import TuningError
from embedl_deploy.lowering.build_errors import BUILD_ERRORS
from embedl_deploy.lowering.measure import fidelity_of
from embedl_deploy.tracing.structures import pack
from embedl_deploy.tuning.graph_spec import GraphSpec
from embedl_deploy.tuning.sample import Sample, call
from embedl_deploy.tuning.shapes import resized, tracing_sizes


@dataclass(frozen=True)
class Task:
    """One graph of a module, and the calls recorded of it."""

    module: nn.Module
    name: str
    spec: GraphSpec
    data: tuple[Sample, ...]
    """On the CPU; at least one."""

    device: torch.device
    cache_dir: Path | None = None

    @property
    def known(self) -> tuple[Sample, ...]:
        """What engines are built and calibrated with: the first half."""
        return self.data[: (len(self.data) + 1) // 2]

    @property
    def held_out(self) -> tuple[Sample, ...]:
        """What outputs are checked on: the second half, the only one where there is one."""
        return self.data[len(self.known) :] or self.data

    @property
    def example(self) -> Sample:
        """What the graph is traced with."""
        first = self.data[0]
        return resized(first, self.spec, tracing_sizes(first, self.spec)).copied(self.device)

    @property
    def typical(self) -> Sample:
        """What latency is measured on: the last call."""
        return self.data[-1].copied(self.device)

    def sized(self, sizes: dict[str, int]) -> Sample:
        """Returns the first sample in other sizes."""
        return resized(self.data[0], self.spec, sizes).copied(self.device)


@dataclass(frozen=True)
class Outcome:
    """What a call left: its outputs, and its inputs as they are after it."""

    outputs: list[object]
    structure: pytree.TreeSpec
    inputs: list[object]


@dataclass(frozen=True)
class Reference:
    """What eager makes of one sample."""

    label: str
    """Which sample it is: ``held-out sample 0``, ``batch=64``."""

    sample: Sample
    outcome: Outcome


def references_of(task: Task) -> list[Reference]:
    """Returns what eager makes of the held-out samples, and at both ends of every range.

    Raises:
        TuningError: Eager fails there, changes its inputs, or is not the same from call to call.
    """
    samples = [(f"held-out sample {i}", sample) for i, sample in enumerate(task.held_out)]
    for sizes in task.spec.range_ends():
        label = ", ".join(f"{name}={size}" for name, size in sizes.items())
        samples.append((label, task.sized(sizes)))
    found = [Reference(label, sample, _eager(task, label, sample)) for label, sample in samples]
    for reference in found:
        if not same_values(reference.sample.copied().leaves(), reference.outcome.inputs):
            raise TuningError(
                f"{task.name!r} changes its inputs on {reference.label} (as a cache that grows "
                "does), which engines do not: return what is new, or wrap modules inside it"
            )
    first = found[0]
    again = _eager(task, first.label, first.sample)
    moved = fidelity_of(tensors_of(again.outputs), tensors_of(first.outcome.outputs))
    if not moved.relative_error <= 1e-3:
        raise TuningError(
            f"{task.name!r} gives other outputs for the same input from call to call (off by "
            f"{moved.relative_error:.2g}): nothing can be compared to it"
        )
    return found


def outcome_of(output: object, sample: Sample) -> Outcome:
    """Returns an output taken apart, and the inputs as they are now."""
    leaves, structure = pytree.tree_flatten(pack(output)[0])
    return Outcome(cast("list[object]", leaves), structure, sample.leaves())


def same_values(some: Sequence[object], others: Sequence[object]) -> bool:
    """Tells whether leaves are as many, and tensors the same tensors bit for bit."""
    return len(some) == len(others) and all(
        _same_value(one, two) for one, two in zip(some, others, strict=True)
    )


def _same_value(one: object, two: object) -> bool:
    if not isinstance(one, Tensor) or not isinstance(two, Tensor):
        return not isinstance(one, Tensor) and not isinstance(two, Tensor)
    if one.shape != two.shape or one.dtype is not two.dtype:
        return False
    return bool(torch.allclose(one.cpu(), two.cpu(), rtol=0, atol=0, equal_nan=True))


def tensors_of(values: Sequence[object]) -> list[object]:
    """Returns the tensors among ``values``."""
    return [value for value in values if isinstance(value, Tensor)]


def _eager(task: Task, label: str, sample: Sample) -> Outcome:
    own = sample.copied(task.device)
    try:
        return outcome_of(call(task.module.forward, own), own)
    except BUILD_ERRORS as error:
        raise TuningError(
            f"{task.name!r} itself fails on {label}: {type(error).__name__}: {error}; declare "
            "ranges that it runs on"
        ) from error
