"""A module as an ONNX file, quantization spelled as QuantizeLinear and DequantizeLinear."""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import nn

from embedl_deploy.engines.call_form import CallForm
from embedl_deploy.engines.engine import Sample
from embedl_deploy.engines.integer_graph import quantized_products
from embedl_deploy.engines.program import exported_program, flat_graph, form_of
from embedl_deploy.errors import BuildError, MissingDependencyError
from embedl_deploy.files import write_aside

_LARGEST = 2**31 - 2**20
"""Bytes; protobuf admits 2 GiB in one file."""


@dataclass(frozen=True)
class OnnxFile:
    """What was written."""

    path: Path
    form: CallForm
    """The inputs and outputs of the module."""

    quantized_products: int
    """How many products read quantized operands."""


class _Model(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802  # protobuf's name


class _Program(Protocol):
    @property
    def model_proto(self) -> _Model: ...


def write_onnx(
    module: nn.Module, sample: Sample, path: Path, dynamic_shapes: object | None = None
) -> OnnxFile:
    """Writes ``module`` as ONNX to ``path``, whole or not at all.

    Args:
        module: What to write; it is neither run nor changed.
        sample: Example inputs.
        path: The file.
        dynamic_shapes: As in ``torch.export``; None: as recorded in ``module``, if it is a graph.

    Raises:
        MissingDependencyError: onnx and onnxscript are not installed.
        BuildError: The module has no form as ONNX, or is larger than one file may be.
    """
    require_onnx()
    program = exported_program(module, sample, dynamic_shapes)
    graph = flat_graph(program)
    try:
        with _quiet():
            exported = cast(
                "_Program", torch.onnx.export(program, dynamo=True, verbose=False, optimize=True)
            )
        content = exported.model_proto.SerializeToString()
    except Exception as error:
        raise BuildError(
            f"the module has no form as ONNX: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    if len(content) > _LARGEST:
        raise BuildError(f"the ONNX file has {len(content)} bytes, 2 GiB is the most in one file")
    write_aside(path, content)
    return OnnxFile(path, form_of(graph, sample), len(quantized_products(graph)))


def require_onnx() -> None:
    """Checks that torch can write ONNX.

    Raises:
        MissingDependencyError: onnx or onnxscript is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"writing ONNX needs {' and '.join(missing)}: pip install 'embedl-deploy[onnx]'"
        )


@contextmanager
def _quiet() -> Generator[None]:
    """Drops the exporter's progress lines and its warnings about its own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with (
        warnings.catch_warnings(),
        redirect_stdout(StringIO()),
        redirect_stderr(StringIO()),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
