"""A signature as JSON, and back; classes come from the caller, never from the file."""

# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.

import keyword
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import fields as dataclass_fields
from inspect import _ParameterKind as ParameterKind
from typing import cast

import torch
from torch.utils import _pytree as pytree

from embedl_deploy.errors import CheckpointError
from embedl_deploy.lowering.expressions import symbols_in
from embedl_deploy.lowering.graph_file import fields
from embedl_deploy.lowering.literals import Json, decode, encode
from embedl_deploy.lowering.signature import (
    ConstantInput,
    ConstantOutput,
    InputLeaf,
    OutputLeaf,
    Parameter,
    PassedInput,
    Result,
    Signature,
    SizeInput,
    SizeOutput,
    SymbolRange,
    TensorInput,
)
from embedl_deploy.lowering.structure import Branch, Leaf, Structure, is_namedtuple, leaves_of

_BUILTIN: Mapping[str, type] = {
    "tuple": tuple,
    "list": list,
    "dict": dict,
    "OrderedDict": OrderedDict,
}
_LEAVES: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (
        TensorInput, SizeInput, ConstantInput, Result, PassedInput, ConstantOutput, SizeOutput,
        SymbolRange,
    )
}  # fmt: skip


def signature_to_json(signature: Signature) -> Json:
    """Returns ``signature`` as JSON.

    Raises:
        CheckpointError: A default or constant is of a class that has no form as data.
    """
    return {
        "parameters": [_parameter_to_json(parameter) for parameter in signature.parameters],
        "inputs": [_leaf_to_json(leaf) for leaf in signature.inputs],
        "arguments": list(signature.arguments),
        "output": structure_to_json(signature.output),
        "outputs": [_leaf_to_json(leaf) for leaf in signature.outputs],
        "symbols": {name: _leaf_to_json(known) for name, known in signature.symbols.items()},
        "constraints": list(signature.constraints),
        "symbol_sources": dict(signature.symbol_sources),
    }


def signature_from_json(data: Json, classes: Sequence[type] = ()) -> Signature:
    """Returns the signature that ``signature_to_json`` was given.

    Args:
        data: The JSON.
        classes: Classes of the model's inputs and outputs that pytree does not know.

    Raises:
        CheckpointError: The JSON is damaged, or names a class that is not known here.
    """
    content = fields(data, "signature")
    try:
        inputs = tuple(_leaf_from_json(leaf) for leaf in _items(content, "inputs"))
        outputs = tuple(_leaf_from_json(leaf) for leaf in _items(content, "outputs"))
        symbols = {
            _symbol(name): _leaf_from_json(known)
            for name, known in fields(content.get("symbols"), "table of symbols").items()
        }
        signature = Signature(
            parameters=tuple(
                _parameter_from_json(parameter, classes)
                for parameter in _items(content, "parameters")
            ),
            inputs=inputs,  # type: ignore[arg-type]  # checked below
            arguments=tuple(_index(index) for index in _items(content, "arguments")),
            output=structure_from_json(content.get("output"), classes),
            outputs=outputs,  # type: ignore[arg-type]
            symbols=symbols,  # type: ignore[arg-type]
            constraints=tuple(str(text) for text in _items(content, "constraints")),
            symbol_sources={
                name: str(source)
                for name, source in fields(content.get("symbol_sources"), "table").items()
            },
        )
        _check(signature)
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"the saved signature is damaged: {error}") from error
    return signature


def structure_to_json(structure: Structure) -> Json:
    """Returns a nested structure as JSON."""
    if isinstance(structure, Leaf):
        return structure.index
    kind = structure.kind
    children: list[Json] = [structure_to_json(child) for child in structure.children]
    if kind.__name__ in _BUILTIN and _BUILTIN[kind.__name__] is kind:
        return {"kind": kind.__name__, "context": encode(structure.context), "children": children}
    name = f"{kind.__module__}:{kind.__qualname__}"
    context = None if is_namedtuple(kind) else encode(structure.context)
    return {"kind": name, "context": context, "children": children}


def structure_from_json(data: Json, classes: Sequence[type]) -> Structure:
    """Returns the structure that ``structure_to_json`` was given."""
    if isinstance(data, int):
        return Leaf(data)
    content = fields(data, "structure")
    kind = _class(str(content.get("kind")), classes)
    children = tuple(structure_from_json(c, classes) for c in _items(content, "children"))
    context = kind if is_namedtuple(kind) else decode(content.get("context"))
    return Branch(kind, context, children)


def _class(name: str, classes: Sequence[type]) -> type:
    """Returns a class that is known here by name; nothing is imported for it."""
    if name in _BUILTIN:
        return _BUILTIN[name]
    for kind in (*classes, *pytree.SUPPORTED_NODES):
        if f"{kind.__module__}:{kind.__qualname__}" == name and kind is not namedtuple:
            return kind
    module, _, qualified = name.partition(":")
    found: object = getattr(sys.modules.get(module), qualified, None)
    if isinstance(found, type) and is_namedtuple(found):
        return found
    raise CheckpointError(
        f"the model takes or returns a {name}, which is not known here: import its module first, "
        "or give the class to load(..., classes=[...])"
    )


def _parameter_to_json(parameter: Parameter) -> Json:
    structure = None if parameter.structure is None else structure_to_json(parameter.structure)
    saved: dict[str, Json] = {
        "name": parameter.name,
        "kind": parameter.kind.name,
        "structure": structure,
    }
    if parameter.has_default:
        saved["default"] = encode(parameter.default)
    return saved


def _parameter_from_json(data: Json, classes: Sequence[type]) -> Parameter:
    content = fields(data, "parameter")
    name = str(content["name"])
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_size_"):
        raise CheckpointError(f"a saved parameter has an impossible name: {name[:80]!r}")
    structure = content["structure"]
    return Parameter(
        name,
        ParameterKind[str(content["kind"])],
        None if structure is None else structure_from_json(structure, classes),
        "default" in content,
        decode(content.get("default")),
    )


def _leaf_to_json(leaf: InputLeaf | OutputLeaf | SymbolRange) -> Json:
    saved: dict[str, Json] = {"leaf": type(leaf).__name__}
    for field in dataclass_fields(leaf):
        saved[field.name] = encode(getattr(leaf, field.name))
    return saved


def _leaf_from_json(data: Json) -> InputLeaf | OutputLeaf | SymbolRange:
    content = dict(fields(data, "leaf"))
    kind = _LEAVES[str(content.pop("leaf"))]
    leaf: object = kind(**{name: decode(value) for name, value in content.items()})
    return cast("InputLeaf | OutputLeaf | SymbolRange", leaf)


def _check(signature: Signature) -> None:
    """Checks what the generated code relies on: kinds of leaves, expressions, indices.

    Raises:
        ValueError: Something is not what it should be.
    """
    for leaf in signature.inputs:
        _check_input(leaf)
    for leaf in signature.outputs:
        _check_output(leaf)
    for constraint in signature.constraints:
        symbols_in(constraint)
    for known in signature.symbols.values():
        _check_range(known)
    structures = [p.structure for p in signature.parameters if p.structure is not None]
    bound = sorted(index for structure in structures for index in leaves_of(structure))
    if bound != list(range(len(signature.inputs))):
        raise ValueError("the parameters do not hold every input leaf once")
    if sorted(leaves_of(signature.output)) != list(range(len(signature.outputs))):
        raise ValueError("the output does not hold every output leaf once")


def _check_input(leaf: object) -> None:
    if isinstance(leaf, TensorInput):
        _check_tensor(leaf)
    elif isinstance(leaf, SizeInput):
        symbols_in(leaf.size)
    elif not isinstance(leaf, ConstantInput):
        raise ValueError(f"a {type(leaf).__name__} among the inputs")


def _check_output(leaf: object) -> None:
    if isinstance(leaf, SizeOutput):
        symbols_in(leaf.size)
    elif isinstance(leaf, (Result, PassedInput)):
        _index(leaf.index)
    elif not isinstance(leaf, ConstantOutput):
        raise ValueError(f"a {type(leaf).__name__} among the outputs")


_TENSOR_FIELDS = {
    "name": str,
    "dtype": torch.dtype,
    "device": torch.device,
    "shape": tuple,
    "memory_format": torch.memory_format,
}


def _check_tensor(leaf: TensorInput) -> None:
    if not all(isinstance(getattr(leaf, name), kind) for name, kind in _TENSOR_FIELDS.items()):
        raise ValueError(f"the input {leaf.name!r:.80} is damaged")
    for size in leaf.shape:
        if isinstance(size, str):
            symbols_in(size)
        elif type(size) is not int:
            raise ValueError(f"the input {leaf.name!r:.80} has a size of {size!r:.80}")


def _check_range(known: object) -> None:
    bounds = isinstance(known, SymbolRange) and (known.lower, known.upper or 0, known.example)
    if not bounds or not all(type(bound) is int for bound in bounds):
        raise ValueError(f"not the range of a symbol: {known!r:.80}")


def _symbol(name: str) -> str:
    if symbols_in(name) != (name,):
        raise CheckpointError(f"not the name of a symbol: {name[:80]!r}")
    return name


def _index(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"not an index: {value!r:.80}")
    return value


def _items(content: Mapping[str, Json], key: str) -> list[Json]:
    value = content.get(key)
    if not isinstance(value, list):
        raise CheckpointError(f"the saved signature lacks {key}")
    return value
