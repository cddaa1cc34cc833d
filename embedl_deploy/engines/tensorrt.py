"""TensorRT, by its own builder from an ONNX file or by torch-tensorrt."""

import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy.engines.call_form import CallForm
from embedl_deploy.engines.engine import Engine, Sample
from embedl_deploy.engines.file_engine import working_folder
from embedl_deploy.engines.inductor_build import first_line
from embedl_deploy.engines.onnx_file import LARGEST_IN_ONE_FILE, write_onnx
from embedl_deploy.engines.program import split_sample
from embedl_deploy.engines.scratch import run_folder
from embedl_deploy.engines.tensorrt_builder import built_engine, request_for
from embedl_deploy.engines.tensorrt_config import TensorRTEngineConfig, with_shared_timings
from embedl_deploy.engines.tensorrt_library import (
    missing_packages,
    require_packages,
    tensorrt,
    why_not,
)
from embedl_deploy.engines.tensorrt_profiles import profiles_of
from embedl_deploy.engines.tensorrt_runtime import TensorRTProgram
from embedl_deploy.engines.tensorrt_torch import compile_ahead, compile_just_in_time, load_ahead
from embedl_deploy.errors import BuildError
from embedl_deploy.rewriting.refusal import Refusal

Run = Callable[..., object]


class TensorRTEngine(Engine):
    """Runs a module in TensorRT, whose library is needed to build it and to run it.

    The ``onnx`` route writes the module as ONNX: integer codes, every scale and the types of the
    rest are in that file, and a strongly typed network is built from it. On the other two routes
    torch-tensorrt takes the module, and leaves to torch what it has no layer for.
    """

    config_class = TensorRTEngineConfig
    config: TensorRTEngineConfig
    device_types = ("cuda",)
    libraries = ("tensorrt",)
    shares_cache = True

    STATE_FILE: ClassVar[str] = "file"
    """Key of a saved state: the built engine, or torch-tensorrt's program."""

    STATE_FORM: ClassVar[str] = "form"
    """Key of a saved state: the inputs and outputs of the module."""

    STATE_NAMES: ClassVar[str] = "names"
    """Key of a saved state: what the engine calls its inputs, in order."""

    _module: nn.Module | None = None
    _file: Path | None = None
    _form: CallForm | None = None
    _names: tuple[str, ...] = ()
    _run: Run | None = None

    @property
    def is_jit(self) -> bool:
        return self.config.route == "torch-tensorrt-jit"

    @cached_property
    def _missing(self) -> str | None:
        """Why the route cannot be taken here; asked once, not for each of 40,000 nodes."""
        return missing_packages(self.config.route)

    def supports(self, node: Node) -> Refusal | None:
        reason = self._missing or why_not(node, self.config.route)
        return None if reason is None else Refusal(reason, node)

    def _build(
        self,
        module: nn.Module,
        graph_spec: object | None,
        data: Sequence[Sample],
        device: torch.device,
        cache_dir: Path | None,
    ) -> None:
        require_packages(self.config.route)
        if not data:
            raise BuildError("TensorRTEngine needs a sample to build")
        shapes = getattr(graph_spec, "dynamic_shapes", None)
        if self.is_jit:
            self._module = module
            self._run = compile_just_in_time(module, self.config, device)
            self._first_call(data[0])
            return
        config = with_shared_timings(self.config, cache_dir)
        folder = working_folder(self, None)
        suffix = "engine" if self.config.route == "onnx" else "pt2"
        self._file = folder / f"tensorrt-{uuid.uuid4().hex}.{suffix}"
        if self.config.route == "onnx":
            self._build_from_onnx(module, data[0], shapes, device, config)
        else:
            form = compile_ahead(module, data[0], shapes, config, device, self._file)
            self._form = form.on(device.type)
        self._open(device)

    def _first_call(self, sample: Sample) -> None:
        """Runs a sample, which makes torch compile for inputs like it."""
        try:
            self._call(*split_sample(sample))
        except Exception as error:
            raise BuildError(
                f"torch-tensorrt cannot compile the module: {first_line(error)}"
            ) from error

    def _build_from_onnx(
        self,
        module: nn.Module,
        sample: Sample,
        shapes: object | None,
        device: torch.device,
        config: TensorRTEngineConfig,
    ) -> None:
        assert self._file is not None, "its place was chosen"
        with tempfile.TemporaryDirectory(dir=run_folder()) as folder:
            written = write_onnx(
                module,
                sample,
                Path(folder) / "model.onnx",
                shapes,
                rest_dtype=self.config.rest_dtype,
                external_above=LARGEST_IN_ONE_FILE,
            )
            profiles = profiles_of(written.form, written.names, sample)
            request = request_for(written, profiles, config, device)
            content = built_engine(request, tensorrt())
        self._file.write_bytes(content)
        self._form, self._names = written.form.on(device.type), written.names

    def _open(self, device: torch.device) -> None:
        assert self._file is not None, "a built or loaded engine has a file"
        if self.config.route == "onnx":
            content = self._file.read_bytes()
            program = TensorRTProgram(content, self._names, device, self.config.cuda_graphs)
            self._run = program
        else:
            self._run = load_ahead(self._file)

    def _infer(self, *args: object, **kwargs: object) -> object:
        return self._call(args, kwargs)

    def _call(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        assert self._run is not None, "an active engine can run"
        with torch.no_grad():
            if self._form is None:
                return self._run(*args, **kwargs)
            tensors = self._form.bind(args, kwargs)
            if self.config.route == "onnx":
                return self._form.result(cast("Sequence[Tensor]", self._run(tensors)))
            return self._run(*args, **kwargs)

    def _activate(self) -> None:
        require_packages(self.config.route)
        device = self._device or torch.device("cuda")
        if self.is_jit:
            assert self._module is not None, "a built or loaded engine has a module"
            self._run = compile_just_in_time(self._module, self.config, device)
        else:
            self._open(device)

    def _deactivate(self) -> None:
        self._run = None

    def _saved(self) -> dict[str, object]:
        if self._form is None:
            return {}
        return {
            self.STATE_FILE: self._file,
            self.STATE_FORM: self._form.to_dict(),
            self.STATE_NAMES: list(self._names),
        }

    def _load(self, module: nn.Module | None, state: Mapping[str, object]) -> None:
        if self.is_jit:
            if module is None:
                raise ValueError(
                    "TensorRTEngine with route='torch-tensorrt-jit' compiles the module: give it "
                    "to from_dict()"
                )
            self._module = module
            return
        path, form = state.get(self.STATE_FILE), state.get(self.STATE_FORM)
        names = state.get(self.STATE_NAMES)
        if not isinstance(path, Path) or not (isinstance(form, dict) and isinstance(names, list)):
            raise ValueError("the state of TensorRTEngine lacks its file, its form or its names")
        self._file = path
        self._form = CallForm.from_dict(cast("dict[str, object]", form))
        self._names = tuple(cast("list[str]", names))

    def _discard(self) -> None:
        self._run = self._module = self._form = None
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        self._file = None
