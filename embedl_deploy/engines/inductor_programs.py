"""What Inductor builds: a package ahead of time, or a function just in time."""

import contextlib
import types
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_map_only

from embedl_deploy.engines.call_form import CallForm, TensorForm
from embedl_deploy.engines.engine import Sample
from embedl_deploy.engines.inductor_build import (
    CUDA_GRAPHS,
    chosen_options,
    compile_package,
    first_line,
    inductor_settings,
    known_warnings,
    load_package,
)
from embedl_deploy.engines.integer_graph import shorten_zero_points, spell_unsigned
from embedl_deploy.engines.program import flat_program, form_of, split_sample
from embedl_deploy.engines.rest_dtype import cast_rest
from embedl_deploy.engines.small_linear import spell_small_linears
from embedl_deploy.errors import BuildError
from embedl_deploy.graph.nodes import value_of


def inductor_program(
    module: nn.Module,
    sample: Sample,
    dynamic_shapes: object | None,
    rest_dtype: torch.dtype | None,
) -> GraphModule:
    """Returns ``module`` flat and spelled as Inductor finds its kernels in it."""
    program = flat_program(module, sample, dynamic_shapes)
    spell_unsigned(program)
    spell_small_linears(program)
    shorten_zero_points(program)
    if rest_dtype is not None:
        cast_rest(program, rest_dtype)
    program.recompile()
    return program


class PackagedProgram:
    """A package on disk, loaded."""

    def __init__(
        self,
        path: Path,
        form: CallForm,
        kernels: Mapping[str, int],
        device: torch.device | None = None,
    ) -> None:
        self.path = path
        self.form = form
        self.kernels = dict(kernels)
        index = None if device is None else device.index
        self._run = load_package(path, -1 if index is None else index)

    @classmethod
    def compile(
        cls,
        program: GraphModule,
        sample: Sample,
        path: Path,
        options: Mapping[str, object],
        device: torch.device,
    ) -> "PackagedProgram":
        """Compiles a flat program into ``path`` and loads it on ``device``.

        Raises:
            BuildError: Inductor fails, or an output is no tensor.
        """
        form = form_of(program, sample)
        args, kwargs = split_sample(sample)
        kernels = compile_package(program, args, kwargs, path, options)
        return cls(path, form, kernels, device)

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.form.result(self._run(self.form.bind(args, kwargs)))


@dataclass(frozen=True)
class JustInTime:
    """How torch.compile is called."""

    fullgraph: bool
    dynamic: bool | None
    mode: str | None
    options: dict[str, object] | None
    autocast_dtype: torch.dtype | None
    """What the module runs in where autocast admits it, None for its own types."""

    @property
    def records_cuda_graphs(self) -> bool:
        """Whether calls on CUDA replay a recording, which writes its outputs to one place."""
        return bool(chosen_options(self.mode, self.options).get(CUDA_GRAPHS))


class CompiledProgram:
    """A module compiled in this process, without gradients."""

    def __init__(self, module: nn.Module, device: torch.device, settings: JustInTime) -> None:
        self._settings = settings
        self._device = device
        self._own_dtype = _float_type(module)
        self._replays = device.type == "cuda" and settings.records_cuda_graphs
        compiler = cast("Callable[..., Callable[..., object]]", torch.compile)
        with known_warnings():
            self._compiled = compiler(
                _own_function(module),
                fullgraph=settings.fullgraph,
                dynamic=settings.dynamic,
                mode=settings.mode,
                options=settings.options,
            )

    def compile_for(self, sample: Sample) -> None:
        """Runs a sample, which makes torch compile for inputs like it.

        Raises:
            BuildError: It cannot be compiled, or does not run.
        """
        args, kwargs = split_sample(sample)
        try:
            with known_warnings():
                self(*args, **kwargs)
        except Exception as error:
            raise BuildError(f"Inductor cannot compile the module: {first_line(error)}") from error

    def __call__(self, *args: object, **kwargs: object) -> object:
        with torch.no_grad(), self._autocast():
            outputs = self._compiled(*args, **kwargs)
        if self._replays:
            # They lie where the next replay writes its own.
            outputs = tree_map_only(Tensor, torch.clone, outputs)
        short = self._settings.autocast_dtype
        if short is None or self._own_dtype is None or self._own_dtype is short:
            return outputs
        return tree_map_only(Tensor, self._restored, outputs)

    def _restored(self, output: Tensor) -> Tensor:
        short = self._settings.autocast_dtype
        return output.to(self._own_dtype) if output.dtype is short else output

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        dtype = self._settings.autocast_dtype
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=dtype)


class CompiledIntegerProgram:
    """A quantized program compiled in this process, once, for the inputs it was built with only.

    Inductor is called itself: ``torch.compile`` compiles again where a guard fails, by strides, the
    number of threads, inference mode or autocast, and outside the settings that give int8 kernels,
    that is float arithmetic without a message.
    """

    def __init__(self, program: GraphModule, sample: Sample, options: Mapping[str, object]) -> None:
        import torch._inductor

        self.form = form_of(program, sample)
        self.kernels: dict[str, int] = {}
        examples = [value_of(node) for node in program.graph.nodes if node.op == "placeholder"]
        try:
            with inductor_settings(options, freezing=True, counted=self.kernels):
                compiled = torch._inductor.compile(program, examples)  # pyright: ignore[reportArgumentType]  # recorded values
            self._compiled = cast("Callable[..., object]", compiled)
            args, kwargs = split_sample(sample)
            self(*args, **kwargs)
        except Exception as error:
            raise BuildError(f"Inductor cannot compile the graph: {first_line(error)}") from error

    def __call__(self, *args: object, **kwargs: object) -> object:
        tensors = iter(self.form.bind(args, kwargs))
        leaves = [
            next(tensors).detach() if isinstance(leaf, TensorForm) else leaf
            for leaf in self.form.leaves
        ]
        with torch.no_grad():
            return self._compiled(*leaves)


def _own_function(module: nn.Module) -> Callable[..., object]:
    """Returns a function of its own code: torch counts recompilations per code object."""

    def call(*args: object, **kwargs: object) -> object:
        return module(*args, **kwargs)

    code = call.__code__.replace(co_name=f"call_{uuid.uuid4().hex}")
    return types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)


def _float_type(module: nn.Module) -> torch.dtype | None:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32
