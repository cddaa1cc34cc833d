"""What importing the package takes and leaves behind."""

import subprocess
import sys

UNWANTED = (
    "networkx",  # required, but importing it and sympy would take as long as all the rest
    "sympy",
    "nncf",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "sklearn",
    "tensorrt",
    "timm",
    "torch_tensorrt",
    "torchvision",
    "transformers",
)


def test_importing_takes_no_optional_or_slow_library_and_leaves_the_process_as_it_was() -> None:
    script = (
        "import logging, os, sys, warnings\n"
        "import torch\n"
        "def state():\n"
        "    return (\n"
        "        list(warnings.filters), list(logging.root.handlers), dict(os.environ),\n"
        "        torch.get_num_threads(), torch.is_grad_enabled(),\n"
        "    )\n"
        "before = state()\n"
        "import embedl_deploy, embedl_deploy.quantize, embedl_deploy.engines\n"
        "assert state() == before\n"
        f"print([name for name in {UNWANTED!r} if name in sys.modules])\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert (done.stderr, done.stdout) == ("", "[]\n")
