"""The field's tools at their best documented presets, each lowered as its documents say.

torchao and nncf's torch.fx form run in a process of their own: importing torchao's quantizer and
freezing change Inductor for a whole process.
"""

import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule

from benchmarks.accuracy.outcome import Outcome, outputs_of
from benchmarks.accuracy.shares import openvino_share, torch_share
from benchmarks.accuracy.subjects import Inputs, Subject
from embedl_deploy.cli.console import quiet_libraries
from embedl_deploy.cli.torchvision_schemas import define_torchvision_schemas


def torchao_pt2e(subject: Subject) -> Outcome:
    """PT2E with the x86 Inductor quantizer after strict export, compiled with freezing."""
    return _apart(_torchao, subject)


def nncf_fx(subject: Subject) -> Outcome:
    """``nncf.quantize`` on the exported program, compiled by Inductor with freezing."""
    return _apart(_nncf_fx, subject)


def nncf_fx_accurate(subject: Subject) -> Outcome:
    """The same with the slow bias correction."""
    return _apart(_nncf_fx_accurate, subject)


def nncf_openvino(subject: Subject, *, fast_bias_correction: bool = True) -> Outcome:
    """``nncf.quantize`` on OpenVINO's form of the model, run by OpenVINO in float32 and int8."""
    import nncf
    import openvino

    with torch.no_grad():
        exported = torch.export.export(subject.model, subject.calibration[0])
        converted = openvino.convert_model(exported)
    row = subject.calibration[0]
    converted.reshape({index: list(tensor.shape) for index, tensor in enumerate(row)})
    quantized = nncf.quantize(
        converted,
        nncf.Dataset(subject.calibration, lambda row: [tensor.numpy() for tensor in row]),
        subset_size=len(subject.calibration),
        preset=nncf.QuantizationPreset.MIXED,
        fast_bias_correction=fast_bias_correction,
        model_type=nncf.ModelType.TRANSFORMER if subject.is_transformer else None,
    )
    run = openvino.Core().compile_model(quantized, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    rows = ([tensor.numpy() for tensor in row] for row in subject.test)
    outputs = torch.cat([torch.from_numpy(run(row)[0]).float().clone() for row in rows])
    return Outcome(outputs, openvino_share(quantized))


def nncf_openvino_accurate(subject: Subject) -> Outcome:
    """The same with the slow bias correction."""
    return nncf_openvino(subject, fast_bias_correction=False)


def _apart(make: Callable[[Subject], GraphModule], subject: Subject) -> Outcome:
    # As bytes: sent one by one, thousands of tensors would need as many open files.
    sent = pickle.dumps(subject)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        outputs, share = pool.submit(_made_and_run, make, sent, torch.get_num_threads()).result()
    return Outcome(torch.from_numpy(outputs), share)


def _made_and_run(
    make: Callable[[Subject], GraphModule], sent: bytes, threads: int
) -> tuple[NDArray[np.float32], float]:
    from torch._inductor import config

    quiet_libraries()
    torch.set_num_threads(threads)
    define_torchvision_schemas()  # a model of torchvision or transformers cannot be read without
    subject: Subject = pickle.loads(sent)
    quantized = make(subject)
    share = torch_share(quantized, subject.model, subject.calibration[0])
    with torch.no_grad(), config.patch(freezing=True):
        outputs = outputs_of(torch.compile(quantized), subject.test)
    return outputs.numpy(), share


def _torchao(subject: Subject) -> GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    with torch.no_grad():
        exported = torch.export.export(subject.model, subject.calibration[0], strict=True).module()
        chosen = x86.X86InductorQuantizer()
        chosen.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(exported, chosen)
        for row in subject.calibration:
            prepared(*row)
        return convert_pt2e(prepared)


def _nncf_fx(subject: Subject, *, fast_bias_correction: bool = True) -> GraphModule:
    import nncf

    with torch.no_grad():
        exported = torch.export.export(subject.model, subject.calibration[0]).module()
    dataset = nncf.Dataset(subject.calibration, _as_one if len(subject.test[0]) == 1 else None)
    return nncf.quantize(
        exported,
        dataset,
        subset_size=len(subject.calibration),
        preset=nncf.QuantizationPreset.MIXED,
        fast_bias_correction=fast_bias_correction,
        model_type=nncf.ModelType.TRANSFORMER if subject.is_transformer else None,
    )


def _nncf_fx_accurate(subject: Subject) -> GraphModule:
    return _nncf_fx(subject, fast_bias_correction=False)


def _as_one(row: Inputs) -> Tensor:
    return row[0]
