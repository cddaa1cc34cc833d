"""The state of an engine as JSON and files, and back."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from torch import Tensor

from embedl_deploy.errors import CheckpointError
from embedl_deploy.lowering.archive import ArchiveReader
from embedl_deploy.lowering.graph_file import fields
from embedl_deploy.lowering.literals import Json, decode, encode
from embedl_deploy.lowering.tensor_file import tensors_from_bytes, tensors_to_bytes


def state_to_json(state: Mapping[str, object], folder: str, files: dict[str, bytes | Path]) -> Json:
    """Returns an engine's ``to_dict()`` as JSON; files and tensors are added to ``files``.

    A ``Path`` in the state is a file that belongs to the engine, and goes along.

    Raises:
        CheckpointError: Something in it has no form as data, or a file of it is gone.
    """
    tensors: dict[str, Tensor] = {}
    saved: dict[str, Json] = {
        key: _to_json(value, folder, files, tensors) for key, value in state.items()
    }
    if tensors:
        files[f"{folder}/tensors.safetensors"] = tensors_to_bytes(tensors)
    return saved


def state_from_json(
    data: Json, archive: ArchiveReader, folder: str, extracted: Path
) -> dict[str, object]:
    """Returns what ``from_dict`` takes; the engine's files are written below ``extracted``."""
    name = f"{folder}/tensors.safetensors"
    tensors = tensors_from_bytes(archive.read(name)) if name in archive.names else {}

    def restore(value: Json) -> object:
        if isinstance(value, list):
            return [restore(item) for item in value]
        if isinstance(value, dict) and len(value) == 1:
            ((kind, content),) = value.items()
            if kind == "$file" and isinstance(content, str):
                return _file(archive, folder, content, extracted)
            if kind == "$tensor" and isinstance(content, str) and content in tensors:
                return tensors[content]
            if kind == "$bytes" and isinstance(content, str):
                return base64.b64decode(content)
            if kind == "$map":
                return {key: restore(item) for key, item in fields(content, "state").items()}
        return decode(value)

    return {key: restore(value) for key, value in fields(data, "engine state").items()}


def _to_json(
    value: object, folder: str, files: dict[str, bytes | Path], tensors: dict[str, Tensor]
) -> Json:
    if isinstance(value, Path):
        return {"$file": _add_file(value, folder, files)}
    if isinstance(value, Tensor):
        key = f"tensor_{len(tensors)}"
        tensors[key] = value.detach()
        return {"$tensor": key}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, list):
        items = cast("list[object]", value)
        return [_to_json(item, folder, files, tensors) for item in items]
    if isinstance(value, Mapping):
        pairs = cast("Mapping[object, object]", value)
        if all(isinstance(key, str) for key in pairs):
            inner = {str(k): _to_json(v, folder, files, tensors) for k, v in pairs.items()}
            return {"$map": inner}
    return encode(cast("object", value))


def _add_file(path: Path, folder: str, files: dict[str, bytes | Path]) -> str:
    if not path.is_file():
        raise CheckpointError(f"an engine's file is gone, or is a folder: {path}")
    name = f"{len(files)}_{path.name}"
    files[f"{folder}/files/{name}"] = path
    return name


def _file(archive: ArchiveReader, folder: str, name: str, extracted: Path) -> Path:
    full = f"{folder}/files/{name}"
    if full not in archive.names:
        raise CheckpointError(f"{archive.path} lacks {full}")
    return archive.extract(full, extracted)
