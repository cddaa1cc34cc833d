"""Runs a saved artifact in a process of its own: ``python -m`` this module.

Takes three paths: the artifact, inputs to read and outputs to write, both safetensors files.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from embedl_deploy.cli.demo.subjects import Row, outputs_of
from embedl_deploy.deployment import load_lowered
from embedl_deploy.errors import CheckpointError


def outputs_in_fresh_process(artifact: Path, rows: list[Row]) -> Tensor:
    """Returns what ``artifact`` computes for ``rows`` in a new Python process.

    Raises:
        CheckpointError: The new process could not load or run the artifact.
    """
    columns = [torch.cat(column).contiguous() for column in zip(*rows, strict=True)]
    with tempfile.TemporaryDirectory(prefix="embedl-deploy-") as folder:
        inputs, outputs = Path(folder, "inputs"), Path(folder, "outputs")
        safetensors.torch.save_file(
            {str(index): column for index, column in enumerate(columns)}, inputs
        )
        paths = [str(artifact), str(inputs), str(outputs)]
        command = [sys.executable, "-m", __name__, *paths, str(torch.get_num_threads())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CheckpointError(
                f"a new process could not run {artifact}: {done.stderr.strip()[-500:]}"
            )
        return safetensors.torch.load_file(outputs)["outputs"]


def _main(artifact: str, inputs: str, outputs: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    columns = safetensors.torch.load_file(inputs)
    ordered = [columns[str(index)].unsqueeze(1) for index in range(len(columns))]
    rows = [tuple(row) for row in zip(*ordered, strict=True)]
    model = load_lowered(artifact)
    safetensors.torch.save_file({"outputs": outputs_of(model, rows)}, outputs)


if __name__ == "__main__":
    _main(*sys.argv[1:])
