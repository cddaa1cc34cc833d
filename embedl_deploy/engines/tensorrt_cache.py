"""Engines and kernel timings on disk, shared by processes."""

import hashlib
import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from embedl_deploy.files import write_aside


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Holds the lock file beside ``path``; a process that ends gives it back.

    A system without ``flock`` takes no lock: files are still replaced whole.
    """
    if find_spec("fcntl") is None:
        yield
        return
    import fcntl

    with path.with_name(f"{path.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_timings(path: Path) -> bytes:
    """Returns the timings on disk, nothing where there are none."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True)
    with locked(path):
        return path.read_bytes() if path.exists() else b""


def merge_timings(path: Path, merged: Callable[[bytes], bytes]) -> None:
    """Replaces the timings on disk by what ``merged`` makes of them.

    They are read again under the lock: another process may have added to them meanwhile.
    """
    with locked(path):
        write_aside(path, merged(path.read_bytes() if path.exists() else b""))


class EngineCache:
    """Built engines in a folder, by the SHA-256 of all that they were built from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, key: str) -> bytes | None:
        """Returns the engine under ``key``; None where there is none, or it is damaged."""
        path = self._path(key)
        if not path.exists():
            return None
        digest, content = path.read_bytes()[:32], path.read_bytes()[32:]
        return content if hashlib.sha256(content).digest() == digest else None

    def write(self, key: str, content: bytes) -> None:
        """Keeps an engine under ``key``, whole or not at all."""
        write_aside(self._path(key), hashlib.sha256(content).digest() + content)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.engine"


def content_key(path: Path, data: Path | None, settings: Mapping[str, object]) -> str:
    """Returns the SHA-256 of an ONNX file, its weights and what it is built with."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for file in (path, data):
        if file is not None:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def structure_key(path: Path, settings: Mapping[str, object]) -> str:
    """Returns a key that new float weights do not change: of the graph, its codes and settings.

    Codes, scales, scalars and what says which shapes and slices a graph takes stay in the key: an
    engine may have been built around their values.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    kinds = onnx.TensorProto
    scales = {
        name
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input[1:]
    }
    for tensor in model.graph.initializer:
        is_float = tensor.data_type in (kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16)
        if is_float and tensor.dims and tensor.name not in scales:
            bare = kinds(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
            tensor.CopyFrom(bare)
    described = json.dumps({"structure": True, **settings}, sort_keys=True).encode()
    text = model.SerializeToString(deterministic=True)
    return hashlib.sha256(described + text).hexdigest()
