"""Each tool as a function from a subject to the outputs of what it makes of it."""

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from benchmarks.accuracy.subjects import Inputs, Subject
from embedl_deploy import lower
from embedl_deploy.cli.baselines import first_tensor
from embedl_deploy.cli.options import quant_config
from embedl_deploy.graph.integer_share import integer_share
from embedl_deploy.quantize import CalibrationMethod, convert, quantize


@dataclass(frozen=True)
class Outcome:
    """What a tool's quantized model gives."""

    outputs: Tensor
    """Shape (inputs, features)."""

    share: float | None = None
    """Of the multiply-accumulates spelled in int8; None where the form does not tell."""


def outputs_of(call: Callable[..., object], rows: Iterable[Inputs]) -> Tensor:
    """Returns the first output for each input, one after another, in float32."""
    with torch.no_grad():
        return torch.cat([first_tensor(call(*row)).float().clone() for row in rows])


def ours(subject: Subject) -> Outcome:
    """Default settings, lowered to Inductor; convolutional nets with histograms."""
    ranges = CalibrationMethod.MINMAX if subject.is_transformer else CalibrationMethod.HISTOGRAM
    graph = quantize(
        subject.model,
        subject.calibration[0],
        quant_config(ranges),
        forward_loop=subject.calibration,
        freeze_weights=True,
        backend="inductor",
    )
    fast = lower(graph, subject.calibration[0])
    return Outcome(outputs_of(fast, subject.test), integer_share(convert(graph)))


def nncf_fx(subject: Subject, *, fast_bias_correction: bool = True) -> Outcome:
    """``nncf.quantize`` on the exported program, compiled by Inductor as its documents say."""
    import nncf

    with torch.no_grad():
        exported = torch.export.export(subject.model, subject.calibration[0]).module()
    dataset = nncf.Dataset(subject.calibration, _as_one if len(subject.test[0]) == 1 else None)
    quantized = nncf.quantize(
        exported,
        dataset,
        subset_size=len(subject.calibration),
        preset=nncf.QuantizationPreset.MIXED,
        fast_bias_correction=fast_bias_correction,
        model_type=nncf.ModelType.TRANSFORMER if subject.is_transformer else None,
    )
    return Outcome(outputs_of(quantized, subject.test))


def nncf_fx_accurate(subject: Subject) -> Outcome:
    """The same with the slow bias correction."""
    return nncf_fx(subject, fast_bias_correction=False)


def nncf_openvino(subject: Subject) -> Outcome:
    """``nncf.quantize`` on OpenVINO's form of the model, run by OpenVINO in float32 and int8."""
    import nncf
    import openvino

    with torch.no_grad():
        exported = torch.export.export(subject.model, subject.calibration[0])
        converted = openvino.convert_model(exported)
    quantized = nncf.quantize(
        converted,
        nncf.Dataset(subject.calibration, lambda row: [tensor.numpy() for tensor in row]),
        subset_size=len(subject.calibration),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER if subject.is_transformer else None,
    )
    run = openvino.Core().compile_model(quantized, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    rows = ([tensor.numpy() for tensor in row] for row in subject.test)
    return Outcome(torch.cat([torch.from_numpy(run(row)[0]).float().clone() for row in rows]))


def torchao_pt2e(subject: Subject) -> Outcome:
    """PT2E with the x86 Inductor quantizer, after strict export, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        work = pool.submit(_torchao, subject.model, subject.calibration, subject.test)
        return Outcome(*work.result())


TOOLS: dict[str, Callable[[Subject], Outcome]] = {
    "embedl_deploy": ours,
    "torchao PT2E": torchao_pt2e,
    "nncf torch.fx": nncf_fx,
    "nncf torch.fx, accurate bias correction": nncf_fx_accurate,
    "nncf OpenVINO": nncf_openvino,
}


def _torchao(
    model: nn.Module, calibration: list[Inputs], test: list[Inputs]
) -> tuple[Tensor, float]:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    with torch.no_grad():
        exported = torch.export.export(model, calibration[0], strict=True).module()
        chosen = x86.X86InductorQuantizer()
        chosen.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(exported, chosen)
        for row in calibration:
            prepared(*row)
        converted = convert_pt2e(prepared)
    return outputs_of(converted, test), _share(converted, calibration[0])


def _as_one(row: Inputs) -> Tensor:
    return row[0]


def _share(quantized: GraphModule, example: Inputs) -> float:
    """Returns the share of multiply-accumulates whose two operands are dequantized."""
    with torch.no_grad():
        return integer_share(torch.export.export(quantized, example).module())
