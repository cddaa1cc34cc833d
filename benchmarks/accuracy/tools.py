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
from embedl_deploy.quantize import (
    CalibrationMethod,
    ModulesToSkip,
    WeightRounding,
    convert,
    quantize,
)

OURS = "embedl_deploy"
OURS_GPTQ = "embedl_deploy, GPTQ"
OURS_AS_TORCHAO = "embedl_deploy, the layers that torchao takes"
OWN = (OURS, OURS_GPTQ, OURS_AS_TORCHAO)

_TORCHAO_LEAVES = {
    "digits transformer": ("layers.*",),
    "ViT-B/16": ("*self_attention*",),
}
"""Layers that PT2E does not reach: whole encoder layers that torch runs as one operation, and the
projections of ``nn.MultiheadAttention``."""


def ours(subject: Subject) -> Outcome:
    """Default settings, lowered to Inductor; convolutional nets with histograms."""
    return _quantized(subject, WeightRounding.NEAREST)


def ours_gptq(subject: Subject) -> Outcome:
    """The same, each weight rounded for the output of its layer."""
    return _quantized(subject, WeightRounding.GPTQ)


def ours_as_torchao(subject: Subject) -> Outcome:
    """The same on fewer layers, for the comparison on equal terms; small nets with GPTQ."""
    rounding = WeightRounding.GPTQ if _is_small(subject.row) else WeightRounding.NEAREST
    return _quantized(subject, rounding, _TORCHAO_LEAVES[subject.row])


def _quantized(subject: Subject, rounding: WeightRounding, skipped: Sequence[str] = ()) -> Outcome:
    ranges = CalibrationMethod.MINMAX if subject.is_transformer else CalibrationMethod.HISTOGRAM
    config = replace(
        quant_config(ranges),
        skip=ModulesToSkip(stub=skipped, weight=skipped),
        weight_rounding=rounding,
    )
    graph = quantize(
        subject.model,
        subject.calibration[0],
        config,
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
    OURS_GPTQ: ours_gptq,
    OURS_AS_TORCHAO: ours_as_torchao,
    "torchao PT2E": torchao_pt2e,
    "nncf torch.fx": nncf_fx,
    "nncf torch.fx, accurate bias correction": nncf_fx_accurate,
    "nncf OpenVINO": nncf_openvino,
    "nncf OpenVINO, accurate bias correction": nncf_openvino_accurate,
}

_FOR_SMALL_NETS = ("accurate bias correction", "GPTQ")
"""Slower. nncf's documents advise the one where the fast one loses accuracy, as it may on small
nets; ours advise the other for small nets, where its time does not count."""


def tools_for(row: str, tools: list[str]) -> list[str]:
    """Returns those of ``tools`` that run on a row."""
    own = [tool for tool in tools if tool != OURS_AS_TORCHAO or row in _TORCHAO_LEAVES]
    if _is_small(row):
        return own
    return [tool for tool in own if not tool.endswith(_FOR_SMALL_NETS)]


def _is_small(row: str) -> bool:
    return row.startswith("digits")
