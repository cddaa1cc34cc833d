"""What a built engine depends on beside the graph: versions, processor, GPU, threads."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import torch

from embedl_deploy.engines.engine import Engine
from embedl_deploy.lowering.literals import Json

_CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = {
    "flags": (
        "sse", "ssse", "pni", "avx", "amx", "apx", "fma", "f16c", "bmi", "abm", "popcnt",
        "movbe", "adx", "cx16", "xop", "tbm", "aes", "vaes", "pclmul", "vpclmul", "sha", "sm3",
        "sm4", "gfni",
    ),
    "Features": (
        "fp", "f8", "asimd", "sve", "sme", "aes", "pmull", "sha", "sm3", "sm4", "crc32", "atomics",
        "lse", "lrcpc", "ilrcpc", "jscvt", "fcma", "flagm", "frint", "i8mm", "bf16", "mops", "cssc",
    ),
}  # fmt: skip
"""By a key of ``/proc/cpuinfo``, on x86 and on ARM: how the names of instructions begin that a
compiler chooses by itself. The rest of such a line is about the kernel and the hypervisor."""

_SHOWN = 5


def hardware() -> dict[str, Json]:
    """Returns what compiled code depends on: processor family, its instructions, the GPU."""
    gpu: Json = None
    if torch.cuda.is_available():
        gpu = [torch.cuda.get_device_name(), list(torch.cuda.get_device_capability())]
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "flags": list[Json](_instructions()),
        "gpu": gpu,
    }


def versions(libraries: Sequence[str] = ()) -> dict[str, Json]:
    """Returns the versions of torch, of this package and of ``libraries`` (import names)."""
    own = _version("embedl-deploy") or "unknown"
    found: dict[str, Json] = {"torch": torch.__version__, "embedl_deploy": own}
    found.update({library: _version(library) for library in libraries})
    return found


def running_libraries(engine_classes: Iterable[type[Engine]]) -> tuple[str, ...]:
    """Returns the libraries that run what engines of these classes built."""
    return tuple(dict.fromkeys(name for one in engine_classes for name in one.libraries[:1]))


def misfit(
    made: Mapping[str, Json],
    here: Mapping[str, Json],
    *,
    libraries: Sequence[str],
    on_gpu: bool,
) -> str | None:
    """Returns what engines that were made there need and do not find here, None if they run.

    A processor with more instructions than theirs runs them, another version or GPU does not. The
    version of this package is none of it: what it writes has a format version of its own.

    Args:
        made: Versions and hardware that they were made with, in one table. A library that it does
            not tell of is not compared, and without instructions their family is.
        here: The same of where they are to run.
        libraries: What runs them.
        on_gpu: Whether any of them runs on a CUDA device.
    """
    told = [library for library in libraries if library in made]
    for name in ("torch", *told, "system", "machine"):
        if made.get(name) != here.get(name):
            return _difference(name, made, here)
    theirs, ours = made.get("flags"), here.get("flags")
    if isinstance(theirs, list) and theirs and isinstance(ours, list) and ours:
        missing = [str(flag) for flag in theirs if flag not in ours]
        if missing:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            return f"a processor with {', '.join(missing[:_SHOWN])}{more}, which this one lacks"
    elif made.get("cpu") != here.get("cpu"):
        return _difference("cpu", made, here)
    if on_gpu and made.get("gpu") != here.get("gpu"):
        return _difference("gpu", made, here)
    return None


def _difference(name: str, made: Mapping[str, Json], here: Mapping[str, Json]) -> str:
    return f"{name} {made.get(name)!r}, this machine has {here.get(name)!r}"


def _instructions() -> list[str]:
    """Returns the names of the instruction sets of the processor, sorted; none where none tells."""
    try:
        with _CPUINFO.open(encoding="utf-8") as lines:
            for line in lines:
                key, _, names = line.partition(":")
                known = _INSTRUCTIONS.get(key.strip())
                if known is not None:
                    return sorted(name for name in names.split() if name.startswith(known))
    except OSError:
        pass
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return sorted(name for name, value in capabilities.items() if value is True)


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
        found = _distribution(name)
        return None if found is None else version(found)


@cache
def _distribution(name: str) -> str | None:
    """Returns what a package was installed as: onnxruntime also comes as onnxruntime-gpu."""
    return next(iter(packages_distributions().get(name, ())), None)
