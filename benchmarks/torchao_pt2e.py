"""The peer: torchao's PT2E int8 on x86, strict export, what is not int8 in bfloat16.

Runs in a process of its own because importing its quantizer changes Inductor for the whole
process. Arguments: model name, calibration inputs, test inputs, threads. See ``PeerProcess``.
"""

import json
import sys

import torch

from embedl_deploy.cli.baselines import first_tensor
from embedl_deploy.cli.console import quiet_libraries
from embedl_deploy.cli.model_sources import LoadedModel, load_model
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.tuning.measure import timed


def quantized(loaded: LoadedModel, calibration_inputs: int):
    """Returns the model converted by torchao and compiled by Inductor with weights frozen."""
    from torch._inductor import config
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    exported = torch.export.export(loaded.model, loaded.args, loaded.kwargs, strict=True).module()
    chosen = x86.X86InductorQuantizer()
    chosen.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, chosen)
    for args, kwargs in loaded.random_inputs(calibration_inputs):
        prepared(*args, **kwargs)
    converted = convert_pt2e(prepared)
    function = torch.compile(converted)

    def call(*args, **kwargs):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return function(*args, **kwargs)

    with config.patch(freezing=True):
        call(*loaded.args, **loaded.kwargs)
    return call


def main(source: str, calibration_inputs: str, test_inputs: str, threads: str) -> None:
    """Builds, reports, and then times blocks until standard input ends."""
    quiet_libraries()
    torch.set_num_threads(int(threads))
    loaded = load_model(source)
    with torch.no_grad():
        call = quantized(loaded, int(calibration_inputs))
        errors = [
            relative_error(
                first_tensor(call(*args, **kwargs)).float(),
                first_tensor(loaded.model(*args, **kwargs)),
            )
            for args, kwargs in loaded.random_inputs(int(test_inputs), seed=2)
        ]
    say({"relative_error": sum(errors) / len(errors)})
    run_block = timed(lambda: call(*loaded.args, **loaded.kwargs))
    for line in sys.stdin:
        say(run_block(int(line)))


def say(document: object) -> None:
    """Prints one line of JSON."""
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
