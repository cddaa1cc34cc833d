"""Inductor, torch's own compiler: just in time, or ahead of time as a package."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import nn
from torch.fx import GraphModule, Node

from embedl_deploy.engines.call_form import CallForm
from embedl_deploy.engines.config import EngineConfig
from embedl_deploy.engines.engine import Engine, Sample
from embedl_deploy.engines.file_engine import working_folder
from embedl_deploy.engines.inductor_build import CUDA_GRAPHS, chosen_options, require_compiler
from embedl_deploy.engines.inductor_programs import (
    CompiledIntegerProgram,
    CompiledProgram,
    JustInTime,
    PackagedProgram,
    inductor_program,
)
from embedl_deploy.engines.inductor_support import refusal_of
from embedl_deploy.engines.integer_graph import is_quantized, quantized_products
from embedl_deploy.engines.placing import put_on, require_on
from embedl_deploy.engines.program import has_dynamic_sizes
from embedl_deploy.errors import BuildError
from embedl_deploy.rewriting.refusal import Refusal

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


@dataclass(frozen=True)
class InductorEngineConfig(EngineConfig):
    """How Inductor compiles; the first six fields are those of ``torch.compile``."""

    fullgraph: bool = False
    """Just in time: whether a graph break is an error. Ahead of time, and in quantized graphs,
    there are none."""

    dynamic: bool | None = None
    """Just in time: whether sizes may change; None: as the declared shapes say. Those of quantized
    graphs change as declared in any case."""

    mode: Mode | None = None
    """As in ``torch.compile``. CUDA graphs, which reduce-overhead and max-autotune record, need
    ``ahead_of_time=False``: a package cannot hold them."""

    options: dict[str, object] | None = None
    """Inductor's options by name, as in ``torch.compile``; excludes ``mode``."""

    autocast_enabled: bool = False
    """Whether what is not int8 runs in ``autocast_dtype``; outputs keep their own type."""

    autocast_dtype: torch.dtype | None = None
    """None: bfloat16."""

    ahead_of_time: bool = True
    """Whether to build a package, which can be saved, or to compile in this process."""

    allow_simulated: bool = False
    """Whether quantized products without an int8 kernel may run as float arithmetic."""

    def __post_init__(self) -> None:
        if self.mode is not None and self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}")
        if self.mode is not None and self.options is not None:
            raise ValueError(
                f"give mode or options, not both: a mode is a set of options, got mode="
                f"{self.mode!r} and options={self.options!r}"
            )
        if self.autocast_dtype is not None and not self.autocast_dtype.is_floating_point:
            raise ValueError(f"autocast_dtype must be a float type, got {self.autocast_dtype}")

    @property
    def rest_dtype(self) -> torch.dtype | None:
        """The type of what is not int8, None for the graph's own."""
        return (self.autocast_dtype or torch.bfloat16) if self.autocast_enabled else None

    def inductor_options(self) -> dict[str, object]:
        """Returns the options that ``mode`` stands for, or those given."""
        return chosen_options(self.mode, self.options)


class InductorEngine(Engine):
    """Compiles a module with Inductor, int8 kernels on x86 included.

    Quantized graphs are spelled so that Inductor finds its kernels, and built with weights as
    constants; both touch this build only. What is quantized and got no kernel fails the build.
    """

    config_class = InductorEngineConfig
    config: InductorEngineConfig

    STATE_PACKAGE: ClassVar[str] = "package"
    """Key of a saved state: the ahead-of-time package."""

    STATE_FORM: ClassVar[str] = "form"
    """Key of a saved state: the inputs and outputs of the package, or of a quantized graph that is
    compiled just in time."""

    STATE_KERNELS: ClassVar[str] = "kernels"
    """Key of a saved state: how many int8 kernels of each kind the package calls."""

    def __init__(self, config: EngineConfig | None = None) -> None:
        super().__init__(config)
        self.simulated = 0
        """How many quantized products run as float arithmetic; 0 unless ``allow_simulated``."""
        self._program: _Program | None = None
        self._module: nn.Module | None = None
        self._dynamic_shapes: object | None = None
        self._saved_package: tuple[Path, CallForm] | None = None
        self._form: CallForm | None = None

    @property
    def is_jit(self) -> bool:
        return not self.config.ahead_of_time

    @property
    def needs_module(self) -> bool:
        return self.is_jit

    def supports(self, node: Node) -> Refusal | None:
        return refusal_of(node)

    def _build(
        self,
        module: nn.Module,
        graph_spec: object | None,
        data: Sequence[Sample],
        device: torch.device,
        cache_dir: Path | None,
    ) -> None:
        require_compiler()
        require_on(module, device)
        self._dynamic_shapes = getattr(graph_spec, "dynamic_shapes", None)
        sample = data[0] if data else None
        if self.is_jit and not _is_quantized_graph(module):
            started = self._start(module, device)
            if sample is not None:
                started.compile_for(sample)
            return
        if sample is None:
            raise BuildError("Inductor needs a sample to build ahead of time, or to build int8")
        if self.is_jit:
            self._start_integers(module, sample)
            return
        if device.type == "cuda" and self.config.inductor_options().get(CUDA_GRAPHS):
            raise BuildError(
                "a package holds no CUDA graphs: set ahead_of_time=False, or a mode without them, "
                "such as max-autotune-no-cudagraphs"
            )
        program = self._flat(module, sample)
        wanted = len(quantized_products(program))
        packaged = self._packaged(program, sample, cache_dir, device)
        self._program = packaged
        self._require_kernels(wanted, packaged.kernels)

    def _flat(self, module: nn.Module, sample: Sample) -> GraphModule:
        return inductor_program(module, sample, self._dynamic_shapes, self.config.rest_dtype)

    def _start_integers(self, module: nn.Module, sample: Sample) -> None:
        """Compiles a quantized graph in this process, for calls like ``sample``."""
        program = self._flat(module, sample)
        wanted = len(quantized_products(program))
        started = CompiledIntegerProgram(program, sample, self.config.inductor_options())
        self._program, self._module, self._form = started, module, started.form
        self._require_kernels(wanted, started.kernels)

    def _packaged(
        self, program: GraphModule, sample: Sample, cache_dir: Path | None, device: torch.device
    ) -> PackagedProgram:
        folder = working_folder(self, cache_dir)
        path = folder / f"inductor-{uuid.uuid4().hex}.pt2"
        options = self.config.inductor_options()
        packaged = PackagedProgram.compile(program, sample, path, options, device)
        self._saved_package = (path, packaged.form)
        return packaged

    def _require_kernels(self, wanted: int, made: Mapping[str, int]) -> None:
        self.kernels = dict(made)
        self.simulated = max(0, wanted - sum(made.values()))
        if self.simulated and not self.config.allow_simulated:
            raise BuildError(
                f"Inductor made {sum(made.values())} int8 kernels for {wanted} quantized products "
                f"({dict(made)}): {self.simulated} would run as float arithmetic, slower than "
                "before quantization. Quantize fewer layers, or set allow_simulated=True"
            )

    def _infer(self, *args: object, **kwargs: object) -> object:
        assert self._program is not None, "an active engine has a program"
        return self._program(*args, **kwargs)

    def _deactivate(self) -> None:
        self._program = None

    def _activate(self) -> None:
        if self._saved_package is not None:
            path, form = self._saved_package
            self._program = PackagedProgram(path, form, self.kernels, self._device)
        elif self._module is not None and self._device is not None:
            self._module = put_on(self._module, self._device)
            if self._form is None:
                self._start(self._module, self._device)
            else:
                self._start_integers(self._module, self._form.blank(self._device))

    def _can_move(self) -> bool:
        return self.is_jit and self._form is None

    def _saved(self) -> dict[str, object]:
        if self._saved_package is None:
            return {} if self._form is None else {self.STATE_FORM: self._form.to_dict()}
        path, form = self._saved_package
        return {
            self.STATE_PACKAGE: path,
            self.STATE_FORM: form.to_dict(),
            self.STATE_KERNELS: dict(self.kernels),
        }

    def _load(self, module: nn.Module | None, state: Mapping[str, object]) -> None:
        if self.is_jit:
            if module is None:
                raise ValueError(
                    "InductorEngine compiles just in time with ahead_of_time=False: give the "
                    "module to from_dict()"
                )
            self._module = module
            self._form = self._loaded_form(module, state)
            return
        path, form = state.get(self.STATE_PACKAGE), state.get(self.STATE_FORM)
        kernels = state.get(self.STATE_KERNELS)
        if (
            not isinstance(path, Path)
            or not isinstance(form, dict)
            or not isinstance(kernels, dict)
        ):
            raise ValueError("the state of InductorEngine lacks its package or the package's form")
        self._saved_package = (path, CallForm.from_dict(cast("dict[str, object]", form)))
        self.kernels = cast("dict[str, int]", kernels)

    def _loaded_form(self, module: nn.Module, state: Mapping[str, object]) -> CallForm | None:
        form = state.get(self.STATE_FORM)
        if isinstance(form, dict):
            return CallForm.from_dict(cast("dict[str, object]", form))
        if _is_quantized_graph(module):
            raise ValueError("the state of InductorEngine lacks the form of a quantized graph")
        return None

    def _discard(self) -> None:
        if self._saved_package is not None:
            self._saved_package[0].unlink(missing_ok=True)
        self._program = self._module = self._saved_package = self._form = None
        self.kernels, self.simulated = {}, 0

    def _start(self, module: nn.Module, device: torch.device) -> CompiledProgram:
        self._module = module
        started = CompiledProgram(module, device, self._just_in_time(module))
        self._program = started
        return started

    def _just_in_time(self, module: nn.Module) -> JustInTime:
        dynamic = self.config.dynamic
        declared = self._dynamic_shapes is not None or (
            isinstance(module, GraphModule) and has_dynamic_sizes(module)
        )
        return JustInTime(
            fullgraph=self.config.fullgraph,
            dynamic=True if dynamic is None and declared else dynamic,
            mode=self.config.mode,
            options=self.config.options,
            autocast_dtype=self.config.rest_dtype,
        )


_Program = PackagedProgram | CompiledProgram | CompiledIntegerProgram


def _is_quantized_graph(module: nn.Module) -> bool:
    return isinstance(module, GraphModule) and is_quantized(module)
