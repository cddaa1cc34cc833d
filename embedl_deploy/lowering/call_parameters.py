"""The parameters of a lowered model's ``forward``, and the example values they hold."""

# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.

import inspect
from collections.abc import Mapping, Sequence

from torch.fx import GraphModule
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from embedl_deploy.errors import LoweringError
from embedl_deploy.lowering.signature import Parameter, ParameterKind
from embedl_deploy.lowering.structure import (
    Branch,
    Structure,
    StructureMismatchError,
    keys_of,
    structure_of,
    take_apart,
)


def parameters_of(
    graph_module: GraphModule,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    python_signature: inspect.Signature | None,
) -> tuple[tuple[Parameter, ...], Structure | None]:
    """Returns the parameters of ``forward``, and the structure of the output if it is nested."""
    codegen = graph_module.graph._codegen
    if not isinstance(codegen, _PyTreeCodeGen):
        names = [str(node.target) for node in graph_module.graph.nodes if node.op == "placeholder"]
        spec = pytree.tree_structure((tuple(range(len(names))), {}))
        return _named(names, structure_of(spec)), None
    info = codegen.pytree_info
    structure = structure_of(info.in_spec)
    output = None if info.out_spec is None else structure_of(info.out_spec)
    if python_signature is not None:
        declared = _declared(python_signature, structure, args, kwargs)
        if declared is not None:
            return declared, output
    return _named(info.orig_args, structure), output


def _named(names: Sequence[str], structure: Structure) -> tuple[Parameter, ...]:
    """Returns one parameter for each argument that was traced, under the name tracing gave it."""
    positional, keyword = _halves(structure)
    children = [*positional.children, *keyword.children]
    keys = [str(key) for key in keys_of(keyword) or ()]
    given = list(names)[: len(positional.children)]
    given += [f"arg{i}" for i in range(len(given), len(positional.children))]
    kind = ParameterKind.POSITIONAL_OR_KEYWORD
    named = zip([*given, *keys], children, strict=True)
    return tuple(Parameter(name, kind, child) for name, child in named)


def _halves(structure: Structure) -> tuple[Branch, Branch]:
    """Returns the structures of the positional and of the keyword arguments."""
    if isinstance(structure, Branch) and len(structure.children) == 2:
        positional, keyword = structure.children
        if isinstance(positional, Branch) and isinstance(keyword, Branch):
            return positional, keyword
    raise LoweringError("the graph's inputs are not (args, kwargs): trace the model with trace()")


def _declared(
    signature: inspect.Signature,
    structure: Structure,
    args: Sequence[object],
    kwargs: Mapping[str, object],
) -> tuple[Parameter, ...] | None:
    """Returns the model's own parameters; None if what was traced does not follow them."""
    positional, keyword = _halves(structure)
    keys = [str(key) for key in keys_of(keyword) or ()]
    if len(positional.children) != len(args) or set(keys) != set(kwargs):
        return None
    named = dict(zip(keys, keyword.children, strict=True))
    rest = list(positional.children)
    found: list[Parameter] = []
    for name, declared in signature.parameters.items():
        child: Structure | None = None
        if declared.kind is ParameterKind.VAR_POSITIONAL:
            child, rest = (Branch(tuple, None, tuple(rest)) if rest else None), []
        elif declared.kind is ParameterKind.VAR_KEYWORD:
            child = Branch(dict, list(named), tuple(named.values())) if named else None
            named = {}
        elif rest and declared.kind is not ParameterKind.KEYWORD_ONLY:
            child = rest.pop(0)
        else:
            child = named.pop(name, None)
        has_default = declared.default is not inspect.Parameter.empty
        default: object = declared.default if has_default else None
        found.append(Parameter(name, declared.kind, child, has_default, default))
    return None if rest or named else tuple(found)


def example_leaves(
    parameters: Sequence[Parameter], args: Sequence[object], kwargs: Mapping[str, object]
) -> list[tuple[str, object]]:
    """Returns (name, value) of each leaf of the example arguments, in placeholder order."""
    shell = inspect.Signature(
        [
            inspect.Parameter(
                p.name, p.kind, default=p.default if p.has_default else inspect.Parameter.empty
            )
            for p in parameters
        ]
    )
    try:
        bound = shell.bind(*args, **kwargs)
    except TypeError as error:
        raise LoweringError(f"the example arguments do not fit the model: {error}") from error
    bound.apply_defaults()
    leaves: dict[int, tuple[str, object]] = {}
    for parameter in parameters:
        if parameter.structure is None:
            continue
        try:
            parts = take_apart(parameter.structure, bound.arguments[parameter.name], parameter.name)
            leaves.update({index: (name, value) for index, name, value in parts})
        except StructureMismatchError as error:
            raise LoweringError(
                f"the example arguments differ from those the model was traced with: {error}"
            ) from error
    return [leaves[index] for index in sorted(leaves)]
