"""Refuses models and inputs that no tracer takes, and says what to give instead."""

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from embedl_deploy.errors import TracingError
from embedl_deploy.tracing.program import modules_of
from embedl_deploy.tracing.structures import named_leaves

_QUANTIZED = (
    "is quantized already: give the float model, and quantize it with embedl_deploy.quantize"
)
_BY_ORIGIN = (
    ("torch.nn.parallel.", "runs its model on several devices: give that model, its .module"),
    (
        "torch.distributed.fsdp",
        "holds a part of its weights only: load the full state_dict into the model as it was "
        "before it was wrapped, and give that",
    ),
    ("torch.ao.quantization.observer", _QUANTIZED),
    ("torch.ao.quantization.fake_quantize", _QUANTIZED),
    ("torch.ao.nn.quantized.", _QUANTIZED),
    ("torch.ao.nn.intrinsic.quantized.", _QUANTIZED),
    ("torch.ao.nn.qat.", _QUANTIZED),
    ("torch.ao.nn.intrinsic.qat.", _QUANTIZED),
)
"""Where classes come from whose modules cannot be traced, and why."""

_FLOAT_AFTER_ALL = ("FloatFunctional", "FXFloatFunctional")


def check_model(model: nn.Module) -> None:
    """Checks that no part of ``model`` is of a kind that cannot be traced.

    Raises:
        TracingError: One is; the message names it and says what to give instead.
    """
    for path, module in modules_of(model):
        reason = _objection(module)
        if reason is not None:
            raise TracingError(
                f"cannot trace {type(model).__name__}: {_place(path, module)} {reason}"
            )


def check_values(model: nn.Module, args: object, kwargs: Mapping[str, object]) -> None:
    """Checks that example inputs are values that can be traced, and that weights have any.

    Raises:
        TracingError: An input can be read once only or is no tensor, or a weight has no values.
    """
    named = list(named_leaves((args, dict(kwargs))))
    for which, value in named:
        reason = _unusable(value)
        if reason is not None:
            raise TracingError(
                f"cannot trace {type(model).__name__} with the example input at "
                f"(args, kwargs){which}: {reason}"
            )
    on_meta = [value.is_meta for _, value in named if isinstance(value, Tensor)]
    if on_meta and not any(on_meta):
        _check_materialized(model)


def check_outputs(outputs: object) -> None:
    """Checks that what ``forward`` returned can be read more than once.

    Raises:
        TracingError: It is or holds an iterator.
    """
    for where, value in named_leaves(outputs):
        if isinstance(value, Iterator):
            kind = type(cast("object", value)).__name__
            raise TracingError(
                f"forward returned a {kind}{f' at {where}' if where else ''}, which can be read "
                "once only: return a tuple or a list"
            )


def _objection(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return (
            "is TorchScript, which has no Python code to trace: give the nn.Module it was made "
            "from, or what torch.export.export made of that"
        )
    lazy = [name for name, tensor in _own_tensors(module) if is_lazy(tensor)]
    if lazy:
        return f"does not know the shape of its {lazy[0]} yet: call the model once, then trace it"
    for kind in type(module).__mro__:
        for origin, reason in _BY_ORIGIN:
            is_there = kind.__module__.startswith(origin)
            if is_there and kind.__name__ not in _FLOAT_AFTER_ALL:
                return reason
    return None


def _unusable(value: object) -> str | None:
    if isinstance(value, Iterator):
        kind = type(cast("object", value)).__name__
        return f"a {kind} can be read once only; give a tuple or a list"
    if type(value).__module__ == "numpy" and hasattr(value, "__array__"):
        return "a NumPy value is no tensor; give torch.as_tensor(value)"
    return None


def _check_materialized(model: nn.Module) -> None:
    for path, module in modules_of(model):
        empty = [name for name, tensor in _own_tensors(module) if tensor.is_meta]
        if empty:
            raise TracingError(
                f"cannot trace {type(model).__name__}: {_place(path, module)} has no values for "
                f"its {empty[0]}, which is on the meta device: call model.to_empty(device=...) "
                "and load the weights first"
            )


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _place(path: str, module: nn.Module) -> str:
    return f"{path!r} ({type(module).__name__})" if path else "it"
