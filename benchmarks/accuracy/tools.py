"""Each tool as a function from a subject to the outputs of what it makes of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from benchmarks.accuracy.outcome import Outcome, outputs_of
from benchmarks.accuracy.peers import (
    nncf_fx,
    nncf_fx_accurate,
    nncf_openvino,
    nncf_openvino_accurate,
    torchao_pt2e,
)
from benchmarks.accuracy.shares import integer_linears
from benchmarks.accuracy.subjects import Subject
from embedl_deploy import lower
from embedl_deploy.cli.options import quant_config
from embedl_deploy.graph.integer_share import integer_share
from embedl_deploy.quantize import CalibrationMethod, ModulesToSkip, convert, quantize

OURS = "embedl_deploy"
OURS_AS_TORCHAO = "embedl_deploy, the layers that torchao takes"
OWN = (OURS, OURS_AS_TORCHAO)

_TORCHAO_LEAVES = {
    "digits transformer": ("layers.*",),
    "ViT-B/16": ("*self_attention*",),
}
"""Layers that PT2E does not reach: whole encoder layers that torch runs as one operation, and the
projections of ``nn.MultiheadAttention``."""


def ours_as_torchao(subject: Subject) -> Outcome:
    """The same settings on fewer layers, for the comparison on equal terms."""
    return ours(subject, _TORCHAO_LEAVES[subject.row])


def ours(subject: Subject, skipped: Sequence[str] = ()) -> Outcome:
    """Default settings, lowered to Inductor; convolutional nets with histograms."""
    ranges = CalibrationMethod.MINMAX if subject.is_transformer else CalibrationMethod.HISTOGRAM
    config = quant_config(ranges)
    graph = quantize(
        subject.model,
        subject.calibration[0],
        replace(config, skip=ModulesToSkip(stub=skipped, weight=skipped)),
        forward_loop=subject.calibration,
        freeze_weights=True,
        backend="inductor",
    )
    fast = lower(graph, subject.calibration[0])
    converted = convert(graph)
    return Outcome(
        outputs_of(fast, subject.test), integer_share(converted), integer_linears(converted)
    )


TOOLS: dict[str, Callable[[Subject], Outcome]] = {
    OURS: ours,
    OURS_AS_TORCHAO: ours_as_torchao,
    "torchao PT2E": torchao_pt2e,
    "nncf torch.fx": nncf_fx,
    "nncf torch.fx, accurate bias correction": nncf_fx_accurate,
    "nncf OpenVINO": nncf_openvino,
    "nncf OpenVINO, accurate bias correction": nncf_openvino_accurate,
}

_FOR_SMALL_NETS = ("accurate bias correction",)
"""Slow: it runs parts of the model again for every layer. Its documents advise it where the fast
one loses accuracy, as it may on small nets."""


def tools_for(row: str, tools: list[str]) -> list[str]:
    """Returns those of ``tools`` that run on a row."""
    own = [tool for tool in tools if tool != OURS_AS_TORCHAO or row in _TORCHAO_LEAVES]
    if row.startswith("digits"):
        return own
    return [tool for tool in own if not tool.endswith(_FOR_SMALL_NETS)]
