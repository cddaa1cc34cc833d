"""Writes a model at any stage as ONNX, for runtimes outside this package."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.fx import GraphModule

from embedl_deploy.engines.onnx_file import LARGEST_IN_ONE_FILE, write_onnx
from embedl_deploy.errors import OutputPathError, PreconditionError
from embedl_deploy.graph.record import has_record
from embedl_deploy.passes.integer_conversion import convert


def export_onnx(
    model: nn.Module,
    args: tuple[object, ...],
    path: str | Path,
    kwargs: Mapping[str, object] | None = None,
    *,
    dynamic_shapes: object | None = None,
    rest_dtype: torch.dtype | None = None,
    external_data_above: int = LARGEST_IN_ONE_FILE,
) -> Path:
    """Writes ``model`` as ONNX of opset 21 and returns the path; the model is not changed.

    A quantized model is converted first: integer weights, and QuantizeLinear and
    DequantizeLinear around what runs in integers. The file holds all scales, and codes in their
    own types: int4, int8, uint8, int16 and float8. ``onnx.checker`` has passed it.

    Args:
        model: A module in eval mode, or a result of ``transform`` or ``quantize``.
        args: Example inputs.
        path: Where to write; whole or not at all.
        kwargs: Keyword example inputs.
        dynamic_shapes: As in ``torch.export``; None: as the model was traced with.
        rest_dtype: What products that are not quantized run in: ``torch.float16`` or
            ``torch.bfloat16``, their weights stored so; None: in the types they have.
        external_data_above: With more bytes of weights than this they lie in a second file,
            named like the first with ``.data`` behind.

    Raises:
        PreconditionError: The model is in training mode, or not calibrated.
        BuildError: It has no form as ONNX.
        MissingDependencyError: The extra ``onnx`` is not installed.
        OutputPathError: ``path`` cannot be written.
    """
    if model.training:
        raise PreconditionError(
            "writing ONNX needs a model in eval mode, got one in training mode: call model.eval()"
        )
    written = convert(model) if isinstance(model, GraphModule) and has_record(model) else model
    target = Path(path)
    try:
        write_onnx(
            written,
            (args, dict(kwargs or {})),
            target,
            dynamic_shapes,
            rest_dtype=rest_dtype,
            external_above=external_data_above,
            short_codes=True,
        )
    except OSError as error:
        raise OutputPathError(f"cannot write {target}: {error}") from error
    return target


__all__ = ["export_onnx"]
