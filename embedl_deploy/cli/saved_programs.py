"""Writes graphs as ``.pt2`` programs, whole or not at all."""

from pathlib import Path

import torch
from torch import nn

from embedl_deploy.cli.output_files import written_whole


def save_program(
    model: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], path: Path
) -> None:
    """Exports ``model`` and writes it to ``path``, for ``torch.export.load``.

    Raises:
        OutputPathError: The file cannot be written.
    """
    with torch.no_grad():
        program = torch.export.export(model, args, kwargs, strict=False)
    with written_whole(path) as aside:
        torch.export.save(program, aside)
