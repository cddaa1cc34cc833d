"""Describes the machine, the versions and the commit that a measurement was made with."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]

_FLAGS_THAT_DECIDE_INT8_SPEED = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
)

_PACKAGES = ("torch", "torchao", "transformers", "openvino", "onnxruntime", "nncf")


def machine_info() -> dict[str, JsonValue]:
    """Returns processor, its instruction sets, thread counts and versions, ready for JSON."""
    model, flags = _processor()
    return {
        "processor": model,
        "flags": [flag for flag in _FLAGS_THAT_DECIDE_INT8_SPEED if flag in flags],
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": commit(),
    }


def has_amx() -> bool:
    """Returns whether the processor multiplies int8 tiles (Intel AMX)."""
    return "amx_int8" in _processor()[1]


def commit() -> str | None:
    """Returns the commit of the source tree this package runs from, None outside of one.

    A tree with uncommitted changes is marked with a trailing ``+``.
    """
    here = Path(__file__).parent
    revision = _git(here, "rev-parse", "--short=12", "HEAD")
    if revision is None or _git(here, "ls-files", "--error-unmatch", __file__) is None:
        return None
    return revision + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")


def _processor() -> tuple[str, frozenset[str]]:
    model, flags = platform.processor(), frozenset[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return model, flags
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() == "flags":
            return model, frozenset(value.split())
    return model, flags


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
