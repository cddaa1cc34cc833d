"""Writes the expression that builds a lowered model's output from its results."""

from collections.abc import Callable

from embedl_deploy.lowering.signature import (
    ConstantOutput,
    OutputLeaf,
    PassedInput,
    Result,
    Signature,
    SizeOutput,
)
from embedl_deploy.lowering.structure import Leaf, Structure, is_namedtuple, keys_of, registered

Name = Callable[[object], str]
"""Returns a name for an object in the generated code's globals."""


def output_source(signature: Signature, constant: Name, size_text: Callable[[str], str]) -> str:
    """Returns the expression that builds the output of ``forward``.

    Args:
        signature: What the model returns.
        constant: Names an object in the generated code.
        size_text: Spells an expression of sizes in the generated code.
    """
    leaves = [_leaf(leaf, constant, size_text) for leaf in signature.outputs]
    return _nested(signature.output, leaves, constant)


def _nested(structure: Structure, leaves: list[str], constant: Name) -> str:
    if isinstance(structure, Leaf):
        return leaves[structure.index]
    children = [_nested(child, leaves, constant) for child in structure.children]
    if structure.kind is tuple:
        return f"({''.join(f'{child}, ' for child in children)})"
    if structure.kind is list:
        return f"[{', '.join(children)}]"
    keys = keys_of(structure)
    if structure.kind is dict and keys is not None:
        pairs = zip(keys, children, strict=True)
        return f"{{{', '.join(f'{key!r}: {child}' for key, child in pairs)}}}"
    if is_namedtuple(structure.kind):
        return f"{constant(structure.kind)}({', '.join(children)})"
    build, context = constant(registered(structure.kind)[1]), constant(structure.context)
    return f"{build}([{', '.join(children)}], {context})"


def _leaf(leaf: OutputLeaf, constant: Name, size_text: Callable[[str], str]) -> str:
    match leaf:
        case Result():
            return f"_r{leaf.index}"
        case PassedInput():
            return f"_v{leaf.index}"
        case SizeOutput():
            return size_text(leaf.size)
        case ConstantOutput():
            return constant(leaf.value)
