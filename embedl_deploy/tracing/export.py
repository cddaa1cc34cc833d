"""Runs torch.export on a light copy of a model, and explains what goes wrong."""

import os
import sysconfig
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map_only

from embedl_deploy.errors import TracingError
from embedl_deploy.tracing.admission import check_outputs
from embedl_deploy.tracing.light_copy import light_copy
from embedl_deploy.tracing.quiet import ModelError, quiet_torch
from embedl_deploy.tracing.structures import Template, pack, unpack

_TORCH_ROOT = f"{Path(torch.__file__).parent}{os.sep}"
_OWN_ROOT = f"{Path(__file__).parent.parent}{os.sep}"
_LONGEST = 240
"""Characters of torch's own message that are quoted; sums over many sizes fill pages."""
_STANDARD_ROOT = sysconfig.get_path("stdlib")
EXPORT_LOCK = threading.RLock()
"""Held while torch exports a model or decomposes an exported one: it switches oneDNN and cuDNN off
for the process meanwhile, and of two at once one would put back the other's off."""


def export_model(
    model: nn.Module,
    traced: nn.Module,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    dynamic_shapes: object | None,
) -> "Exported":
    """Returns ``traced`` as an ExportedProgram; it is never run or changed itself.

    Args:
        model: What the user gave, for messages.
        traced: What to export: the model, or what torch.fx made of it.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        dynamic_shapes: As in ``torch.export.export``.

    Raises:
        TracingError: The model cannot be exported.
    """
    packed, inputs = pack(_apart((args, dict(kwargs))))
    packed_args, packed_kwargs = cast("tuple[tuple[object, ...], dict[str, object]]", packed)
    copied = light_copy(traced)
    outputs = _take_apart(copied, inputs)
    with EXPORT_LOCK, torch.enable_grad(), quiet_torch():
        try:
            program = torch.export.export(
                copied,
                packed_args,
                packed_kwargs,
                dynamic_shapes=dynamic_shapes,  # pyright: ignore[reportArgumentType]  # checked by torch.export
                strict=False,
            )
        except ModelError as error:
            if isinstance(error.original, TracingError):
                raise TracingError(
                    f"cannot trace {type(model).__name__}: {error.original}"
                ) from None
            raise TracingError(_explain(model, error.original)) from error.original
        except Exception as error:
            raise TracingError(_explain(model, error)) from error
    return Exported(program, inputs, outputs[-1] if outputs else None)


def _apart(inputs: tuple[tuple[object, ...], dict[str, object]]) -> object:
    """Returns inputs in which no tensor occurs twice: to torch.export one object is one input."""
    seen: set[int] = set()

    def own(tensor: Tensor) -> Tensor:
        if id(tensor) in seen:
            return tensor.clone()
        seen.add(id(tensor))
        return tensor

    return tree_map_only(Tensor, own, inputs)


@dataclass(frozen=True)
class Exported:
    """An exported model, and how its inputs and outputs differ from what pytree knows."""

    program: ExportedProgram
    inputs: Template | None
    outputs: Template | None


def _take_apart(copied: nn.Module, inputs: Template | None) -> list[Template | None]:
    """Makes ``copied`` take and return stand-ins; the list receives the outputs' templates."""
    outputs: list[Template | None] = []
    original = type(copied)

    def call(self: nn.Module, *args: object, **kwargs: object) -> object:
        real = cast("tuple[tuple[object, ...], dict[str, object]]", unpack((args, kwargs), inputs))
        try:
            result = original.__call__(self, *real[0], **real[1])
            check_outputs(result)
            packed, template = pack(result)
        except Exception as error:
            raise ModelError(error) from error
        outputs.append(template)
        return packed

    names = {"__call__": call, "__module__": original.__module__}
    copied.__class__ = type(original.__name__, (original,), names)
    return outputs


def user_line(error: BaseException) -> str | None:
    """Returns ``file:line`` of the innermost frame outside torch and this package."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if _is_users(frame.filename):
            return f"{frame.filename}:{frame.lineno} ({(frame.line or '').strip()})"
    return None


def _is_users(file: str) -> bool:
    """Tells whether ``file`` belongs neither to torch nor to Python nor to this package."""
    if file.startswith((_TORCH_ROOT, _OWN_ROOT, "<")):
        return False
    return not file.startswith(_STANDARD_ROOT) or "site-packages" in file


def _explain(model: nn.Module, error: Exception) -> str:
    line = user_line(error)
    where = f" at {line}" if line else ""
    name = type(error).__name__
    first = next((text.strip() for text in str(error).splitlines() if text.strip()), name)
    first = first if len(first) <= _LONGEST else f"{first[:_LONGEST]}…"
    if _is_data_dependent(name, str(error)):
        return (
            f"cannot trace {type(model).__name__}: its control flow depends on the values of a "
            f"tensor{where}. Write the branch with torch.cond or torch.where, state what holds "
            "with torch._check(...), or move the decision out of forward: a detector's backbone "
            f"and head, say, can be traced on their own. torch says: {first}"
        )
    cure = (
        "What NumPy computes cannot be traced: write it with torch operations"
        if "numpy" in first.lower()
        else "Check that model(*args, **kwargs) runs with these example inputs"
    )
    return f"cannot trace {type(model).__name__}: {name}{where}: {first.rstrip('.')}. {cure}"


def _is_data_dependent(name: str, message: str) -> bool:
    signs = ("data-dependent", "data dependent", "Could not guard on", "_local_scalar_dense")
    return "DataDependent" in name or any(sign in message for sign in signs)
