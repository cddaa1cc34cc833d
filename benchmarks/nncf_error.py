"""The error that nncf's int8 makes on the same weights, calibration and test inputs."""

from collections.abc import Callable

import torch

from benchmarks.cases import Case
from embedl_deploy.cli.model_sources import LoadedModel

MeanError = Callable[[LoadedModel, Case, Callable[..., object]], float]


def nncf_error(loaded: LoadedModel, case: Case, mean_error: MeanError) -> float:
    """Returns the mean relative error of ``nncf.quantize`` (default settings, torch.fx form)."""
    import nncf

    inputs = [args for args, _ in loaded.random_inputs(case.calibration_inputs)]
    dataset = nncf.Dataset(inputs, lambda args: args if len(args) > 1 else args[0])
    with torch.no_grad():
        exported = torch.export.export(loaded.model, loaded.args, loaded.kwargs).module()
    quantized = nncf.quantize(exported, dataset, subset_size=len(inputs))
    return mean_error(loaded, case, quantized)
