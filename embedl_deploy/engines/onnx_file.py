"""A module as an ONNX file, quantization spelled as QuantizeLinear and DequantizeLinear."""

import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import nn
from torch.export import ExportedProgram

from embedl_deploy.engines.call_form import CallForm
from embedl_deploy.engines.engine import Sample
from embedl_deploy.engines.integer_graph import quantized_products
from embedl_deploy.engines.onnx_quantization import OPSET, quantization_table, store_short_codes
from embedl_deploy.engines.onnx_spelling import spell_for_onnx, split_quantized_linears
from embedl_deploy.engines.program import exported_program, flat_graph, form_of
from embedl_deploy.errors import BuildError, MissingDependencyError
from embedl_deploy.tracing.export import EXPORT_LOCK
from embedl_deploy.tracing.quiet_thread import loggers_below, without_records, without_warnings

_EXPORTER = "torch.onnx._internal.exporter"
_LOGGERS = (
    "torch.onnx", f"{_EXPORTER}._compat", f"{_EXPORTER}._core", f"{_EXPORTER}._registration",
    f"{_EXPORTER}._schemas", "onnxscript", "onnxscript.optimizer._constant_folding", "onnx_ir",
    "onnx_ir._convenience", "onnx_ir.external_data", "onnx_ir.passes.common.shape_inference",
    "onnx_ir.passes.common.initializer_deduplication", "onnx_ir.serde",
)  # fmt: skip
"""Those below the first of each kind, and those that come only with the first export."""

LARGEST_IN_ONE_FILE = 2**31 - 2**20
"""Bytes of weights; protobuf admits 2 GiB in one file."""


@dataclass(frozen=True)
class OnnxFile:
    """What was written."""

    path: Path
    form: CallForm
    """The inputs and outputs of the module."""

    quantized_products: int
    """How many products read quantized operands."""

    names: tuple[str, ...]
    """What the file calls its inputs, in the order of ``form``."""

    data: Path | None = None
    """The file beside it that holds the weights, None where they are inside."""


def write_onnx(
    module: nn.Module,
    sample: Sample,
    path: Path,
    dynamic_shapes: object | None = None,
    *,
    rest_dtype: torch.dtype | None = None,
    external_above: int | None = None,
    short_codes: bool = False,
    splits_linears: bool = False,
) -> OnnxFile:
    """Writes ``module`` as ONNX of opset 21 to ``path``, whole or not at all.

    Codes have their own types there: casts to float8 become QuantizeLinear and DequantizeLinear.
    The file is checked with ``onnx.checker``.

    Args:
        module: What to write; it is neither run nor changed.
        sample: Example inputs.
        path: The file.
        dynamic_shapes: As in ``torch.export``; None: as recorded in ``module``, if it is a graph.
        rest_dtype: What products that are not quantized run in; None: in the types they have.
        external_above: With more bytes of weights than this they go into a second file, named like
            the first with ``.data`` behind; None: they never do.
        short_codes: Whether int4 values, which are stored as int8, become int4.
        splits_linears: Whether quantized linear layers become a MatMul and an Add.

    Raises:
        MissingDependencyError: onnx and onnxscript are not installed.
        BuildError: The module has no form as ONNX, or is larger than one file may be.
        OSError: The files cannot be written.
    """
    require_onnx()
    program = exported_program(module, sample, dynamic_shapes)
    graph = flat_graph(program)
    form = form_of(graph, sample)
    respelled = spell_for_onnx(graph, rest_dtype)
    if splits_linears:
        respelled |= split_quantized_linears(graph)
    if respelled:
        program = exported_program(graph, sample)
    products = len(quantized_products(graph))
    model = _translated(program, short_codes)
    weights = _weight_bytes(model)
    external = external_above is not None and weights > external_above
    if not external and weights > LARGEST_IN_ONE_FILE:
        raise BuildError(f"the ONNX file has {weights} bytes, 2 GiB is the most in one file")
    data = path.with_name(f"{path.name}.data") if external else None
    _write(model, path, data)
    names = tuple(str(value.name) for value in model.graph.inputs)
    return OnnxFile(path, form, products, names, data)


class _Array(Protocol):
    nbytes: int


class _Named(Protocol):
    name: str | None
    const_value: _Array | None


class _Graph(Protocol):
    initializers: Mapping[str, _Named]
    inputs: list[_Named]


class _Model(Protocol):
    graph: _Graph


def _translated(program: ExportedProgram, short_codes: bool) -> _Model:
    try:
        with EXPORT_LOCK, _quiet():
            exported: object = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                optimize=True,
                opset_version=OPSET,
                custom_translation_table=quantization_table(short_codes=short_codes),
            )
    except Exception as error:
        raise BuildError(
            f"the module has no form as ONNX: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    model: object = getattr(exported, "model", None)
    store_short_codes(model)
    return cast("_Model", model)


def _weight_bytes(model: _Model) -> int:
    values = (value.const_value for value in model.graph.initializers.values())
    return sum(value.nbytes for value in values if value is not None)


def _write(model: _Model, path: Path, data: Path | None) -> None:
    """Writes and checks the files in a folder beside ``path``, then renames them into place."""
    import onnx
    import onnx_ir

    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=path.parent) as folder:
        aside = Path(folder) / path.name
        with _quiet():
            onnx_ir.save(model, aside, external_data=None if data is None else data.name)  # pyright: ignore[reportArgumentType]  # a model of onnx_ir
        try:
            onnx.checker.check_model(str(aside))
        except Exception as error:
            raise BuildError(f"the ONNX file is not valid: {str(error)[:300]}") from error
        if data is not None:
            # An old model must never be seen beside new weights.
            path.unlink(missing_ok=True)
            (Path(folder) / data.name).replace(data)
        aside.replace(path)


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
    """Drops the exporter's warnings about its own code, in this thread."""
    with without_records(loggers_below(*_LOGGERS)), without_warnings(), torch.no_grad():
        yield
