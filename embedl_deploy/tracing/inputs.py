# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Checks example inputs before anything is traced with them."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from torch import Tensor, nn
from torch.fx.graph import _PyTreeCodeGen
from torch.utils._pytree import TreeSpec

from embedl_deploy.errors import TracingError
from embedl_deploy.tracing.program import Program


def check_inputs(model: nn.Module, args: object, kwargs: Mapping[str, object]) -> None:
    """Checks that ``args`` is a tuple and that ``forward`` takes these arguments.

    Raises:
        TracingError: It does not; the message shows the signature.
    """
    _check_tuple(args)
    signature = inspect.signature(model.forward)
    given = cast("tuple[object, ...]", args)
    try:
        signature.bind(*given, **kwargs)
    except TypeError as error:
        raise TracingError(
            f"the example inputs do not fit {type(model).__name__}.forward{signature}: {error}; "
            f"got {len(given)} positional inputs and the keywords {sorted(kwargs)}"
        ) from error


def check_mapping(kwargs: object) -> None:
    """Checks that keyword inputs are named.

    Raises:
        TracingError: They are not.
    """
    if not isinstance(kwargs, Mapping):
        raise TracingError(
            "kwargs must be a dict from parameter names to inputs, got "
            f"{type(kwargs).__name__}: write {{'name': value}}"
        )


def check_program_inputs(
    program: Program, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> None:
    """Checks that a program that is exported already takes these inputs.

    Raises:
        TracingError: Names, nesting, shapes or dtypes differ from those of the program.
    """
    _check_tuple(args)
    info = cast("_PyTreeCodeGen", program.graph._codegen).pytree_info
    names = list(info.orig_args)
    missing = [name for name in names[len(args) :] if name not in kwargs]
    extra = [name for name in kwargs if name not in names[len(args) :]]
    if missing or extra or len(args) > len(names):
        raise TracingError(
            f"the program takes the inputs {names}; got {len(args)} positional ones and the "
            f"keywords {sorted(kwargs)}: missing {missing}, unexpected {extra}"
        )
    values = dict(zip(names, [*args, *(kwargs[name] for name in names[len(args) :])], strict=True))
    count = info.in_spec.child(0).num_children
    positional = tuple(values[name] for name in names[:count])
    keyword = {name: values[name] for name in names[count:]}
    for node, value in zip(
        program.graph.find_nodes(op="placeholder"),
        _leaves(info.in_spec, (positional, keyword)),
        strict=True,
    ):
        _check_like(node.name, node.meta.get("val"), value)


def _check_tuple(args: object) -> None:
    if not isinstance(args, tuple):
        raise TracingError(
            "args must be a tuple of the positional inputs, got "
            f"{type(args).__name__}: write (x,) for a single input"
        )


def _leaves(spec: TreeSpec, inputs: object) -> Sequence[object]:
    try:
        return spec.flatten_up_to(inputs)
    except ValueError as error:
        raise TracingError(f"the inputs are nested unlike the program's: {error}") from error


def _check_like(name: str, recorded: object, value: object) -> None:
    if not isinstance(recorded, Tensor):
        return
    expected = f"{recorded.dtype} of shape {list(recorded.shape)}"
    if not isinstance(value, Tensor):
        raise TracingError(f"input {name!r} must be {expected}, got {type(value).__name__}")
    known = cast("Iterable[object]", recorded.shape)
    sizes = zip(known, value.shape, strict=False)
    differs = any(isinstance(size, int) and size != given for size, given in sizes)
    if recorded.dtype != value.dtype or recorded.dim() != value.dim() or differs:
        raise TracingError(
            f"input {name!r} must be {expected}, got {value.dtype} of shape {list(value.shape)}: "
            "the program was exported for these; export it again with dynamic_shapes for others"
        )
