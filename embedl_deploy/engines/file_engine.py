"""What engines share that build one file and run it: where it lies, saving, loading."""

import uuid
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy.engines.call_form import CallForm
from embedl_deploy.engines.engine import Engine, Sample
from embedl_deploy.engines.onnx_file import write_onnx
from embedl_deploy.engines.scratch import scratch_folder
from embedl_deploy.errors import BuildError
from embedl_deploy.graph.nodes import dtype_of


class FileEngine(Engine):
    """Writes a module as ONNX and lets a runtime load that file.

    Subclasses say how the file is opened, and how many integer kernels the runtime made of it.
    """

    STATE_FILE: ClassVar[str] = "file"
    """Key of a saved state: the ONNX file."""

    STATE_FORM: ClassVar[str] = "form"
    """Key of a saved state: the inputs and outputs of the module."""

    STATE_KERNELS: ClassVar[str] = "kernels"
    """Key of a saved state: how many integer kernels of each kind the runtime made."""

    splits_linears: ClassVar[bool] = False
    """Whether the runtime has integer kernels for linear layers only as MatMul and Add."""

    _file: Path | None = None
    _form: CallForm | None = None
    _is_quantized: bool = False
    """Whether products in the file read quantized operands."""

    @property
    def needs_module(self) -> bool:
        return False

    @abstractmethod
    def _open(self, path: Path, device: torch.device) -> None:
        """Makes ``_run`` work; may raise ``BuildError``."""

    def _open_counting(self, path: Path, device: torch.device) -> None:
        """Does what ``_open`` does, and keeps what ``_count_kernels`` needs."""
        self._open(path, device)

    @abstractmethod
    def _close(self) -> None:
        """Gives back what ``_open`` took."""

    @abstractmethod
    def _run(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        """Runs the file on the tensors of a call."""

    @abstractmethod
    def _count_kernels(self) -> dict[str, int]:
        """Returns how many integer kernels of each kind were made of the products."""

    @abstractmethod
    def _may_simulate(self) -> bool:
        """Tells whether quantized products may run as float arithmetic."""

    def _build(
        self,
        module: nn.Module,
        graph_spec: object | None,
        data: Sequence[Sample],
        device: torch.device,
        cache_dir: Path | None,
    ) -> None:
        if not data:
            raise BuildError(f"{type(self).__name__} needs a sample to build")
        path = working_folder(self, cache_dir) / f"{self.name}-{uuid.uuid4().hex}.onnx"
        self._file = path
        shapes = getattr(graph_spec, "dynamic_shapes", None)
        written = write_onnx(module, data[0], path, shapes, splits_linears=self.splits_linears)
        self._form = written.form.on(device.type)
        self._is_quantized = written.quantized_products > 0
        start = self._open_counting if self._is_quantized else self._open
        start(path, device)
        self.kernels = self._count_kernels()
        missing = written.quantized_products - sum(self.kernels.values())
        if missing > 0 and not self._may_simulate():
            raise BuildError(
                f"{type(self).__name__} made {sum(self.kernels.values())} integer kernels for "
                f"{written.quantized_products} quantized products ({self.kernels}): {missing} "
                "would run as float arithmetic. Quantize for this engine's backend, or set "
                "allow_simulated=True"
            )

    def _infer(self, *args: object, **kwargs: object) -> object:
        assert self._form is not None, "an active engine knows its inputs"
        return self._form.result(self._run(self._form.bind(args, kwargs)))

    def _activate(self) -> None:
        assert self._file is not None, "a built or loaded engine has a file"
        assert self._form is not None, "a built or loaded engine knows its inputs"
        device = self._device or torch.device("cpu")
        self._open(self._file, device)
        self._form = self._form.on(device.type)

    def _deactivate(self) -> None:
        self._close()

    def _saved(self) -> dict[str, object]:
        assert self._form is not None, "a built engine knows its inputs"
        return {
            self.STATE_FILE: self._file,
            self.STATE_FORM: self._form.to_dict(),
            self.STATE_KERNELS: dict(self.kernels),
        }

    def _load(self, module: nn.Module | None, state: Mapping[str, object]) -> None:
        del module
        path, form = state.get(self.STATE_FILE), state.get(self.STATE_FORM)
        kernels = state.get(self.STATE_KERNELS)
        if not isinstance(path, Path) or not (isinstance(form, dict) and isinstance(kernels, dict)):
            raise ValueError(f"the state of {type(self).__name__} lacks its file or its form")
        self._file = path
        self._form = CallForm.from_dict(cast("dict[str, object]", form))
        self.kernels = cast("dict[str, int]", kernels)
        self._is_quantized = bool(self.kernels)

    def _discard(self) -> None:
        self._close()
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        self._file = self._form = None
        self.kernels = {}


def exchanges_bfloat16(node: Node) -> bool:
    """Tells whether a node reads or makes bfloat16, which numpy arrays cannot carry."""
    return any(dtype_of(value) is torch.bfloat16 for value in (node, *node.all_input_nodes))


def working_folder(owner: object, cache_dir: Path | None) -> Path:
    """Returns ``cache_dir``, made if it is missing, or a folder that goes when ``owner`` goes."""
    if cache_dir is not None:
        cache_dir.mkdir(parents=True, exist_ok=True)
        return cache_dir
    return scratch_folder(owner)
