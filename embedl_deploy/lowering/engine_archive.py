"""One built engine as one file, and what reads engines back from any archive."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from embedl_deploy.engines.engine import Engine
from embedl_deploy.engines.scratch import remove_with, run_folder
from embedl_deploy.errors import CheckpointError
from embedl_deploy.lowering.archive import ArchiveReader, write_archive
from embedl_deploy.lowering.build_errors import BUILD_ERRORS
from embedl_deploy.lowering.engine_file import state_from_json, state_to_json
from embedl_deploy.lowering.literals import Json

_FOLDER = "engine"


def write_engine(engine: Engine, path: Path) -> None:
    """Writes a built engine to one file, whole or not at all.

    Raises:
        CheckpointError: Something in its state has no form as data.
        OutputPathError: The file cannot be written.
    """
    files: dict[str, bytes | Path] = {}
    header: dict[str, Json] = {
        "class": type(engine).__name__,
        "state": state_to_json(engine.to_dict(), _FOLDER, files),
        "kernels": dict[str, Json](engine.kernels),
    }
    write_archive(path, header, files)


def read_engine(engine_class: type[Engine], path: Path, module: nn.Module) -> Engine:
    """Returns the engine that ``write_engine`` wrote, active.

    Args:
        engine_class: The class it must be of.
        path: The file.
        module: What it was built from.

    Raises:
        CheckpointError: The file is damaged, or the engine does not load on this machine.
    """
    with ArchiveReader(path) as archive:
        state = archive.manifest.get("state")
        return restored_engine(engine_class, module, state, archive, _FOLDER)


def restored_engine(
    engine_class: type[Engine],
    module: nn.Module,
    data: Json,
    archive: ArchiveReader,
    folder_inside: str,
) -> Engine:
    """Returns an engine from its saved state, active; its files go when it goes.

    Raises:
        CheckpointError: The state is damaged, or does not load on this machine.
    """
    folder = Path(tempfile.mkdtemp(dir=run_folder()))
    try:
        engine = engine_class.from_dict(
            module, state_from_json(data, archive, folder_inside, folder)
        )
        engine.activate()
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, CheckpointError) or not isinstance(error, BUILD_ERRORS):
            raise
        raise CheckpointError(
            f"the engine in {folder_inside} ({engine_class.__name__}) cannot be loaded: {error}; "
            "trust_engines=False builds it anew"
        ) from error
    remove_with(engine, folder)
    return engine


def artifact_bytes(engine: Engine) -> int | None:
    """Returns the bytes of files and tensors that saving ``engine`` takes, None if it cannot be."""
    try:
        return _bytes_in(engine.to_dict())
    except (*BUILD_ERRORS, NotImplementedError):
        return None


def _bytes_in(value: object) -> int:
    if isinstance(value, Path):
        return value.stat().st_size
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_bytes_in, cast("Mapping[object, object]", value).values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_bytes_in, cast("Sequence[object]", value)))
    return len(value) if isinstance(value, bytes) else 0
