"""One model of the demo from fp32 to a saved int8 artifact, every step measured."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from embedl_deploy.cli.baselines import compiled, compiled_bf16_freezing, eager, on_inputs
from embedl_deploy.cli.console import Screen
from embedl_deploy.cli.demo.fresh_process import outputs_in_fresh_process
from embedl_deploy.cli.demo.subjects import Row, Subject, outputs_of
from embedl_deploy.cli.model_sources import LoadedModel
from embedl_deploy.cli.options import RunPrecision
from embedl_deploy.cli.pipeline import Rewritten, lowered, rewritten
from embedl_deploy.lowering.lowered_module import LoweredModule
from embedl_deploy.tuning.measure import Timing, measure_in_rotation, timed

OURS = "embedl_deploy int8"
BF16 = "torch.compile bf16, freezing"


@dataclass(frozen=True)
class Experiment:
    """What the demo found for one model."""

    subject: Subject
    rewritten: Rewritten
    lowered: LoweredModule
    artifact: Path
    artifact_bytes: int
    weight_bytes: int
    """Of the model's own parameters and buffers."""

    fidelity: dict[str, float]
    fidelity_bf16: dict[str, float]
    """The same figures for bf16 ``torch.compile``, to judge ours by."""

    timings: dict[str, Timing]
    sha256: str
    """Of the bytes of all outputs."""

    sha256_fresh_process: str

    @property
    def is_reproduced(self) -> bool:
        """Returns whether the new process gave the same outputs, byte for byte."""
        return self.sha256 == self.sha256_fresh_process


def run_experiment(subject: Subject, folder: Path, backend: str, screen: Screen) -> Experiment:
    """Returns ``subject`` rewritten, quantized, lowered, saved, loaded anew and measured."""
    model, example = subject.model, subject.rows[0]
    title = f"{subject.name}: rewriting and calibrating"
    with screen.counted_step(title, len(subject.calibration)) as on_input:
        graph = rewritten(
            LoadedModel(subject.name, model, example),
            backend=backend,
            calibration=[(row, {}) for row in subject.calibration],
            config=subject.config,
            on_input=on_input,
        )
    with screen.step(f"{subject.name}: building int8 kernels"):
        ours = lowered(graph.graph, example, {}, RunPrecision.INT8)
    artifact = folder / f"{subject.name.replace(' ', '-')}.embedl"
    with screen.step(f"{subject.name}: saving {artifact}"):
        ours.save(artifact)
    with screen.step(f"{subject.name}: building torch.compile and bf16 torch.compile"):
        candidates = {
            "eager": eager(model),
            "torch.compile": compiled(model, example, {}),
            BF16: compiled_bf16_freezing(model, example, {}),
            OURS: ours,
        }
    with screen.step(f"{subject.name}: comparing outputs on {len(subject.rows)} inputs"):
        reference = outputs_of(candidates["eager"], subject.rows)
        outputs = outputs_of(ours, subject.rows)
        bf16 = outputs_of(candidates[BF16], subject.rows).to(reference.dtype)
    with screen.step(f"{subject.name}: loading the artifact in a new process"):
        anew = outputs_in_fresh_process(artifact, subject.rows)
    return Experiment(
        subject=subject,
        rewritten=graph,
        lowered=ours,
        artifact=artifact,
        artifact_bytes=artifact.stat().st_size,
        weight_bytes=sum(value.nbytes for value in model.state_dict().values()),
        fidelity=subject.fidelity(outputs, reference),
        fidelity_bf16=subject.fidelity(bf16, reference),
        timings=_measured(candidates, example, subject.name, screen),
        sha256=_digest(outputs),
        sha256_fresh_process=_digest(anew),
    )


def _measured(
    candidates: dict[str, Callable[..., object]], example: Row, name: str, screen: Screen
) -> dict[str, Timing]:
    runners = {
        candidate: timed(on_inputs(call, example, {})) for candidate, call in candidates.items()
    }
    rounds = 10
    with screen.counted_step(f"{name}: measuring in rotating blocks", rounds) as on_round:
        return measure_in_rotation(runners, max_rounds=rounds, budget_s=40.0, on_round=on_round)


def _digest(outputs: Tensor) -> str:
    return hashlib.sha256(outputs.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
