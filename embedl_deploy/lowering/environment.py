"""What a built engine depends on beside the graph: versions, processor, GPU, threads."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from embedl_deploy.lowering.literals import Json


def hardware() -> dict[str, Json]:
    """Returns what compiled code depends on: processor family, its vector units, the GPU."""
    gpu: Json = None
    if torch.cuda.is_available():
        gpu = [torch.cuda.get_device_name(), list(torch.cuda.get_device_capability())]
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
    }


def versions(libraries: Sequence[str] = ()) -> dict[str, Json]:
    """Returns the versions of torch, of this package and of ``libraries``."""
    own = _version("embedl-deploy") or "unknown"
    found: dict[str, Json] = {"torch": torch.__version__, "embedl_deploy": own}
    found.update({library: _version(library) for library in libraries})
    return found


def resident_bytes() -> int | None:
    """Returns the memory of this process that is in use, None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
