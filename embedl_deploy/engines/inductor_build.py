"""Runs Inductor with settings of its own, and counts the int8 kernels that it makes."""

import re
import shutil
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.fx import GraphModule

from embedl_deploy.errors import BuildError

Runner = Callable[[list[Tensor]], Sequence[Tensor]]
"""Takes and returns flat lists of tensors."""

_LOCK = threading.RLock()
"""Inductor's configuration and counters belong to the process: one build at a time."""

CUDA_GRAPHS = "triton.cudagraphs"
"""The option that records the kernels of a call, to replay them at once."""

_COUNTERS = {
    "qconv": "qconv_unary_lower_count",
    "qconv_binary": "qconv2d_binary_lower_count",
    "qlinear": "qlinear_unary_lower_count",
    "qlinear_binary": "qlinear_binary_lower_count",
}

_CALLS = {
    "aoti_torch_cpu__qconv_pointwise_tensor": "qconv",
    "aoti_torch_cpu__qconv2d_pointwise_binary_tensor": "qconv_binary",
    "aoti_torch_cpu__qlinear_pointwise_tensor": "qlinear",
    "aoti_torch_cpu__qlinear_pointwise_binary_tensor": "qlinear_binary",
}
_EVENTS = {
    **_CALLS,
    "onednn::qconv_pointwise": "qconv",
    "onednn::qconv2d_pointwise": "qconv_binary",
    "onednn::qlinear_pointwise": "qlinear",
}


class _Loader(Protocol):
    def boxed_run(self, inputs: list[Tensor]) -> list[Tensor]: ...


class _Event(Protocol):
    name: str


class _Package(Protocol):
    loader: _Loader


@contextmanager
def inductor_settings(
    options: Mapping[str, object], *, freezing: bool, counted: dict[str, int]
) -> Generator[None]:
    """Sets Inductor's options for this thread and this block only.

    Args:
        options: As in ``torch._inductor.config``.
        freezing: Whether weights become constants; needs ``no_grad``, which the block sets.
        counted: Receives how many int8 kernels of each kind were made in the block.
    """
    from torch._dynamo.utils import counters
    from torch._inductor import config

    require_compiler()
    own: dict[str, object] = {
        "freezing": freezing,
        "cpp.enable_kernel_profile": freezing,
        "aot_inductor.metadata": {},  # a build writes into it
        **options,
    }
    with _LOCK, torch.no_grad(), config.patch(own), known_warnings():
        before = {kind: counters["inductor"][name] for kind, name in _COUNTERS.items()}
        yield
        made = {kind: counters["inductor"][name] for kind, name in _COUNTERS.items()}
    counted.update({kind: made[kind] - before[kind] for kind in made if made[kind] > before[kind]})


def require_compiler() -> None:
    """Checks that the C++ compiler that Inductor calls is there.

    Raises:
        BuildError: There is none.
    """
    from torch._inductor import config

    candidates = cast("str | Sequence[str | None]", config.cpp.cxx)
    names = [candidates] if isinstance(candidates, str) else candidates
    tried = [name for name in names if name]
    if not any(shutil.which(name) for name in tried):
        raise BuildError(
            f"Inductor needs a C++ compiler and found none (tried {', '.join(tried)}): install "
            "g++, or set the environment variable CXX to one"
        )


def chosen_options(mode: str | None, options: Mapping[str, object] | None) -> dict[str, object]:
    """Returns the options that a mode of torch.compile stands for, or those given."""
    from torch._inductor import list_mode_options

    if mode is None or mode == "default":
        return dict(options or {})
    return cast("dict[str, object]", list_mode_options(mode))


def compile_package(
    graph_module: GraphModule,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    path: Path,
    options: Mapping[str, object],
) -> dict[str, int]:
    """Compiles a flat graph ahead of time into the package ``path``, whole or not at all.

    Returns:
        How many int8 kernels of each kind its code calls.

    Raises:
        BuildError: Inductor fails.
    """
    import torch._inductor
    from torch._inductor.package.package import package_aoti

    try:
        with inductor_settings(options, freezing=True, counted={}):
            files: object = torch._inductor.aot_compile(
                graph_module, args, kwargs, options={"aot_inductor.package": True}
            )
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                aside = Path(folder) / path.name
                package_aoti(str(aside), files)  # pyright: ignore[reportArgumentType]  # a list of files
                aside.replace(path)
    except BuildError:
        raise
    except Exception as error:
        path.unlink(missing_ok=True)
        raise BuildError(f"Inductor cannot compile the graph: {first_line(error)}") from error
    return int8_calls_in(path)


def load_package(path: Path, device_index: int = -1) -> Runner:
    """Returns what runs a package, on the CUDA device of that number (-1: the current one).

    Raises:
        BuildError: The file is no package for this machine.
    """
    import torch._inductor

    try:
        package = cast(
            "_Package", torch._inductor.aoti_load_package(str(path), device_index=device_index)
        )
    except Exception as error:
        raise BuildError(f"cannot load the package {path}: {first_line(error)}") from error
    return package.loader.boxed_run


def int8_calls_in(path: Path) -> dict[str, int]:
    """Returns how many calls of each kind of int8 kernel the code in a package makes."""
    counted: dict[str, int] = {}
    with zipfile.ZipFile(path) as package:
        sources = [name for name in package.namelist() if name.endswith(".wrapper.cpp")]
        for name in sources:
            text = package.read(name).decode(errors="replace")
            for call in re.findall(r"ERROR_CODE_CHECK\((aoti_torch_cpu__q\w+)\(", text):
                if call in _CALLS:
                    counted[_CALLS[call]] = counted.get(_CALLS[call], 0) + 1
    return counted


def count_int8_kernels(call: Callable[[], object]) -> dict[str, int]:
    """Runs ``call`` once and returns how many int8 kernels of each kind torch.profiler saw."""
    from torch.profiler import ProfilerActivity, profile

    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    counted: dict[str, int] = {}
    for event in cast("Sequence[_Event]", profiled.events() or ()):
        kind = _EVENTS.get(event.name)
        if kind is not None:
            counted[kind] = counted.get(kind, 0) + 1
    return counted


def first_line(error: BaseException) -> str:
    """Returns the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def known_warnings() -> Generator[None]:
    """Drops what Inductor warns about its own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "To copy construct from a tensor", UserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
