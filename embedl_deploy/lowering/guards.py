"""Says why an input does not fit: the slow path behind the generated guards."""

from collections.abc import Iterator, Mapping, Sequence
from inspect import Parameter as InspectParameter
from inspect import Signature as InspectSignature

import torch
from torch import Tensor

from embedl_deploy.errors import InputError
from embedl_deploy.lowering.expressions import evaluate, linear_in, symbols_in
from embedl_deploy.lowering.signature import (
    ConstantInput,
    Parameter,
    Signature,
    Size,
    SizeInput,
    TensorInput,
)
from embedl_deploy.lowering.structure import StructureMismatchError, take_apart


def python_signature(signature: Signature) -> InspectSignature:
    """Returns the signature of ``forward`` as ``inspect`` has it."""
    return InspectSignature(
        [
            InspectParameter(
                parameter.name,
                parameter.kind,
                default=parameter.default if parameter.has_default else InspectParameter.empty,
            )
            for parameter in signature.parameters
        ]
    )


def input_leaves(
    signature: Signature, args: Sequence[object], kwargs: Mapping[str, object]
) -> list[object]:
    """Returns the leaves of a call's arguments, in the order of ``signature.inputs``.

    Raises:
        InputError: The arguments do not have the structure that the model was traced with.
    """
    try:
        bound = python_signature(signature).bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"the arguments do not fit the model's signature: {error}") from error
    bound.apply_defaults()
    leaves: list[object] = [None] * len(signature.inputs)
    for parameter in signature.parameters:
        _take_parameter(parameter, bound.arguments[parameter.name], leaves)
    return leaves


def explain(
    signature: Signature, args: Sequence[object], kwargs: Mapping[str, object]
) -> InputError | None:
    """Returns the error that says what is wrong with a call, None if nothing is."""
    try:
        leaves = input_leaves(signature, args, kwargs)
    except InputError as error:
        return error
    for found in _troubles(signature, leaves):
        return InputError(found)
    return None


def symbol_values(signature: Signature, leaves: Sequence[object]) -> dict[str, int]:
    """Returns the value of each symbol, from the first size that determines it."""
    values: dict[str, int] = {}
    for _, size, actual in _sizes(signature, leaves):
        if isinstance(size, int):
            continue
        linear = linear_in(size)
        if linear is not None and linear[0] not in values:
            symbol, factor, offset = linear
            values[symbol] = (actual - offset) // factor
    return values


def _take_parameter(parameter: Parameter, value: object, leaves: list[object]) -> None:
    if parameter.structure is None:
        if not _is_default(parameter, value):
            raise InputError(
                f"{parameter.name} was left at {parameter.default!r} when the model was traced, "
                f"so the graph does not know it; got {_shown(value)}: trace the model with it"
            )
        return
    try:
        for index, _, leaf in take_apart(parameter.structure, value, parameter.name):
            leaves[index] = leaf
    except StructureMismatchError as error:
        raise InputError(f"{error}, which is how the model was traced") from error


def _is_default(parameter: Parameter, value: object) -> bool:
    if parameter.kind is InspectParameter.VAR_POSITIONAL:
        return value == ()
    if parameter.kind is InspectParameter.VAR_KEYWORD:
        return value == {}
    return value is parameter.default or bool(
        type(value) is type(parameter.default) and value == parameter.default
    )


def _troubles(signature: Signature, leaves: Sequence[object]) -> Iterator[str]:
    """Yields every reason why the leaves do not fit, the plainest first."""
    kinds = [
        trouble
        for leaf, value in zip(signature.inputs, leaves, strict=True)
        for trouble in _kind_troubles(leaf, value)
    ]
    yield from kinds
    if kinds:
        return
    values = symbol_values(signature, leaves)
    yield from _size_troubles(signature, leaves, values)
    yield from _range_troubles(signature, values)
    for constraint in signature.constraints:
        if not _holds(constraint, values):
            yield _constraint_text(signature, constraint, values)


def _kind_troubles(leaf: TensorInput | SizeInput | ConstantInput, value: object) -> Iterator[str]:
    if isinstance(leaf, ConstantInput):
        if type(value) is not type(leaf.value) or value != leaf.value:
            yield (
                f"{leaf.name} must be {leaf.value!r}, the value it was traced with, got "
                f"{_shown(value)}: a graph holds one value of a Python input; trace again with "
                "this one, or pass a tensor"
            )
    elif isinstance(leaf, SizeInput):
        if type(value) is not int:
            yield f"{leaf.name} must be an int, got {_shown(value)}"
    else:
        yield from _tensor_troubles(leaf, value)


def _tensor_troubles(leaf: TensorInput, value: object) -> Iterator[str]:
    if not isinstance(value, Tensor):
        yield f"{leaf.name} must be a tensor, got {_shown(value)}"
    elif value.dtype is not leaf.dtype:
        yield (
            f"{leaf.name} must have dtype {leaf.dtype}, got {value.dtype}: convert it, or trace "
            "the model with this dtype"
        )
    elif value.device != leaf.device:
        yield f"{leaf.name} must be on {leaf.device}, got {value.device}: move it there"
    elif value.layout is not torch.strided:
        yield f"{leaf.name} must be a dense tensor, got one of layout {value.layout}"
    elif value.dim() != len(leaf.shape):
        yield (
            f"{leaf.name} must have {len(leaf.shape)} dimensions, "
            f"{_shape_text(leaf.shape)}, got {value.dim()}, {list(value.shape)}"
        )


def _sizes(
    signature: Signature, leaves: Sequence[object]
) -> Iterator[tuple[tuple[str, int | None], Size, int]]:
    """Yields ((input, dimension), declared size, actual size)."""
    for leaf, value in zip(signature.inputs, leaves, strict=True):
        if isinstance(leaf, SizeInput) and isinstance(value, int):
            yield (leaf.name, None), leaf.size, value
        elif isinstance(leaf, TensorInput) and isinstance(value, Tensor):
            for dimension, (size, actual) in enumerate(zip(leaf.shape, value.shape, strict=True)):
                yield (leaf.name, dimension), size, actual


def _size_troubles(
    signature: Signature, leaves: Sequence[object], values: Mapping[str, int]
) -> Iterator[str]:
    for place, size, actual in _sizes(signature, leaves):
        if isinstance(size, int):
            if actual != size:
                yield _static_text(place, size, actual)
            continue
        try:
            needed = evaluate(size, values)
        except ValueError:
            continue
        if needed != actual:
            sources = ", ".join(
                f"{symbol} = {values[symbol]} from {signature.symbol_sources.get(symbol, '?')}"
                for symbol in symbols_in(size)
            )
            yield f"{_place_text(place)} must be {size} = {needed} ({sources}), got {actual}"


def _range_troubles(signature: Signature, values: Mapping[str, int]) -> Iterator[str]:
    for symbol, allowed in signature.symbols.items():
        value = values.get(symbol)
        if value is None:
            continue
        if value < allowed.lower or (allowed.upper is not None and value > allowed.upper):
            upper = "" if allowed.upper is None else f", max={allowed.upper}"
            source = signature.symbol_sources.get(symbol, symbol)
            yield (
                f"{source} must lie in {_range_text(allowed.lower, allowed.upper)}, got {value}: "
                "declare a wider range when tracing, dynamic_shapes with "
                f"torch.export.Dim({symbol!r}, min={min(value, allowed.lower)}"
                f"{upper and f', max={max(value, allowed.upper or 0)}'}) there"
            )


def _holds(constraint: str, values: Mapping[str, int]) -> bool:
    try:
        return bool(evaluate(constraint, values))
    except ValueError:
        return False


def _constraint_text(signature: Signature, constraint: str, values: Mapping[str, int]) -> str:
    sources = ", ".join(
        f"{symbol} = {values.get(symbol)} is {signature.symbol_sources.get(symbol, '?')}"
        for symbol in symbols_in(constraint)
    )
    return f"sizes must satisfy {constraint}, on which the graph rests; {sources}"


def _static_text(place: tuple[str, int | None], size: int, actual: int) -> str:
    name, dimension = place
    declared = f"dynamic_shapes={{{name!r}: {{{dimension}: torch.export.Dim.DYNAMIC}}}}"
    return (
        f"{_place_text(place)} must be {size}, the size it was traced with, got {actual}: to "
        f"take other sizes, trace the model with {declared}"
    )


def _place_text(place: tuple[str, int | None]) -> str:
    name, dimension = place
    return name if dimension is None else f"{name}: dimension {dimension}"


def _range_text(lower: int, upper: int | None) -> str:
    return f"[{lower}, {upper}]" if upper is not None else f"[{lower}, ∞)"


def _shape_text(shape: Sequence[Size]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}, {value.dtype}"
    text = repr(value)
    return f"{text[:80]} ({type(value).__name__})"
