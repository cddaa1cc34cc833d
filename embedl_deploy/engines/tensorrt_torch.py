"""torch-tensorrt: a module ahead of time, or as a backend of torch.compile."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten, tree_unflatten

from embedl_deploy.engines.call_form import CallForm
from embedl_deploy.engines.engine import Sample
from embedl_deploy.engines.inductor_build import first_line, known_warnings
from embedl_deploy.engines.integer_graph import is_quantization
from embedl_deploy.engines.program import (
    exported_program,
    flat_graph,
    form_of,
    split_sample,
)
from embedl_deploy.engines.tensorrt_config import TensorRTEngineConfig
from embedl_deploy.engines.tensorrt_library import FLOAT8, NO_CODES
from embedl_deploy.engines.tensorrt_profiles import InputProfile, profiles_of
from embedl_deploy.errors import BuildError
from embedl_deploy.graph.nodes import dtype_of


def compile_settings(config: TensorRTEngineConfig) -> dict[str, object]:
    """Returns the keywords of torch-tensorrt that a configuration stands for."""
    settings: dict[str, object] = {"immutable_weights": not config.refittable}
    if config.workspace_bytes is not None:
        settings["workspace_size"] = config.workspace_bytes
    if config.optimization_level is not None:
        settings["optimization_level"] = config.optimization_level
    if config.timing_cache is not None:
        settings["timing_cache_path"] = config.timing_cache
    if config.engine_cache is not None:
        settings["cache_built_engines"] = settings["reuse_cached_engines"] = True
        settings["engine_cache_dir"] = config.engine_cache
    if config.rest_dtype is not None:
        settings["enable_autocast"] = True
        settings["autocast_low_precision_type"] = config.rest_dtype
    return settings | (config.settings or {})


def check_settings(config: TensorRTEngineConfig) -> None:
    """Checks the configuration's settings against the installed torch-tensorrt.

    Its ``compile`` takes any keyword, and drops one that it does not know without a word.

    Raises:
        ValueError: It has no setting of that name.
    """
    known = set(_library().CompilationSettings.__dataclass_fields__)
    known |= {"engine_cache_dir", "engine_cache_size", "custom_engine_cache"}
    unknown = [name for name in compile_settings(config) if name not in known]
    if unknown:
        raise ValueError(
            f"this torch-tensorrt has no setting {', '.join(unknown)}; it has "
            f"{', '.join(sorted(known))}"
        )


def compile_ahead(
    module: nn.Module,
    sample: Sample,
    dynamic_shapes: object | None,
    config: TensorRTEngineConfig,
    device: torch.device,
    path: Path,
) -> CallForm:
    """Compiles ``module`` into the file ``path`` and returns what its calls look like.

    Raises:
        BuildError: torch-tensorrt cannot compile it.
    """
    check_settings(config)
    program = exported_program(module, sample, dynamic_shapes)
    graph = flat_graph(program)
    require_no_codes(graph)
    form = form_of(graph, sample)
    names = [node.name for node in graph.graph.find_nodes(op="placeholder")]
    args, kwargs = specifications(sample, form, names)
    library = _library()
    try:
        with known_warnings():
            compiled = library.compile(
                program, arg_inputs=args, kwarg_inputs=kwargs, device=device,
                **compile_settings(config),
            )  # fmt: skip
            _save(compiled, path)
    except Exception as error:
        raise BuildError(
            f"torch-tensorrt cannot compile the module: {first_line(error)}"
        ) from error
    return form


def load_ahead(path: Path) -> Callable[..., object]:
    """Returns what ``compile_ahead`` wrote, ready to be called; the file is code."""
    import_module("torch_tensorrt")  # registers the operation that runs an engine
    program = torch.export.load(path)
    return cast("Callable[..., object]", program.module())


def compile_just_in_time(
    module: nn.Module, config: TensorRTEngineConfig, device: torch.device
) -> Callable[..., object]:
    """Returns ``module`` under torch.compile, to be built at its first call."""
    require_no_codes(module)
    check_settings(config)  # imports torch_tensorrt, which registers itself with torch.compile
    compiler = cast("Callable[..., Callable[..., object]]", torch.compile)
    options = {**compile_settings(config), "device": device}
    return compiler(module, backend="torch_tensorrt", options=options)


def require_no_codes(module: nn.Module) -> None:
    """Checks that a graph holds nothing that torch-tensorrt would run as simulated quantization.

    Raises:
        BuildError: It does.
    """
    nodes = module.graph.nodes if isinstance(module, GraphModule) else ()
    if any(is_quantization(node) or dtype_of(node) in FLOAT8 for node in nodes):
        raise BuildError(NO_CODES)


def _save(compiled: nn.Module, path: Path) -> None:
    """Writes the program as it is: a retrace would run it, and ask for inputs of every shape."""
    save = cast("_Save", import_module("torch_tensorrt").save)
    save(compiled, str(path), output_format="exported_program", retrace=False)


def specifications(
    sample: Sample, form: CallForm, names: list[str], specify: "Specify | None" = None
) -> tuple[list[object], dict[str, object]]:
    """Returns the inputs in their structure, those whose shape varies as ``specify`` makes them.

    Args:
        sample: Example inputs.
        form: What the inputs are.
        names: The names of all inputs, in order.
        specify: Makes the specification of an input; None: torch-tensorrt's ``Input``.
    """
    specify = specify or _input
    leaves, structure = tree_flatten(split_sample(sample))
    tensors = [name for name, leaf in zip(names, leaves, strict=True) if isinstance(leaf, Tensor)]
    profiles = {p.name: p for p in profiles_of(form, tensors, sample) if p is not None}
    given = [
        specify(profiles[name], leaf.dtype)
        if isinstance(leaf, Tensor) and name in profiles
        else leaf
        for name, leaf in zip(names, leaves, strict=True)
    ]
    args, kwargs = cast(
        "tuple[tuple[object, ...], dict[str, object]]", tree_unflatten(given, structure)
    )
    return list(args), kwargs


Specify = Callable[[InputProfile, torch.dtype], object]


def _input(profile: InputProfile, dtype: torch.dtype) -> object:
    make = cast("_Input", import_module("torch_tensorrt").Input)
    return make(
        min_shape=profile.smallest,
        opt_shape=profile.best,
        max_shape=profile.largest,
        dtype=dtype,
    )


class _Fields(Protocol):
    __dataclass_fields__: Mapping[str, object]


class _Library(Protocol):
    CompilationSettings: _Fields

    def compile(
        self,
        program: ExportedProgram,
        *,
        arg_inputs: list[object],
        kwarg_inputs: dict[str, object],
        device: torch.device,
        **settings: object,
    ) -> nn.Module: ...


class _Save(Protocol):
    def __call__(
        self, module: nn.Module, file_path: str, *, output_format: str, retrace: bool
    ) -> None: ...


class _Input(Protocol):
    def __call__(
        self,
        *,
        min_shape: tuple[int, ...],
        opt_shape: tuple[int, ...],
        max_shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> object: ...


def _library() -> _Library:
    return cast("_Library", import_module("torch_tensorrt.dynamo"))
