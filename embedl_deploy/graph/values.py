"""Recorded (fake) values: computing them for new nodes and comparing them."""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Node
from torch.fx.node import Argument, map_arg
from torch.utils._pytree import tree_map_only

from embedl_deploy.graph.evaluate import attribute_of
from embedl_deploy.graph.nodes import graph_module_of, module_at, value_of


def infer_value(node: Node, mode: FakeTensorMode | None = None) -> object:
    """Returns the fake value that ``node`` yields, computed from the values of its inputs.

    Nothing is executed on real data, and no guard is added to the symbols of dynamic shapes.

    Args:
        node: A call, or a read of a parameter or buffer.
        mode: The mode of the graph's values; found from the node's inputs if None.

    Raises:
        Exception: Whatever the operation raises on these shapes and dtypes.
    """
    if node.op == "get_attr":
        return _fake_attribute(node, mode)
    args = cast("tuple[object, ...]", map_arg(node.args, _value_argument))
    kwargs = cast("dict[str, object]", map_arg(node.kwargs, _value_argument))
    mode = detect_fake_mode((args, kwargs)) or mode
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if mode is not None:
            stack.enter_context(mode)
            stack.enter_context(_without_guards(mode))
            args, kwargs = cast(
                "tuple[tuple[object, ...], dict[str, object]]",
                tree_map_only(Tensor, partial(_in_mode, mode), (args, kwargs)),
            )
        return _call(node, args, kwargs)


def same_value(first: object, second: object) -> bool:
    """Tells whether two recorded values have the same structure, shapes and dtypes."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and _same_shape(first, second)
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)):
        left, right = cast("list[object]", first), cast("list[object]", second)
        pairs = zip(left, right, strict=False)
        return len(left) == len(right) and all(same_value(a, b) for a, b in pairs)
    return isinstance(first, Tensor) == isinstance(second, Tensor)


def value_text(value: object) -> str:
    """Returns dtype and shape of a recorded value, for messages."""
    if isinstance(value, Tensor):
        sizes = ", ".join(str(size) for size in value.shape)
        return f"{str(value.dtype).removeprefix('torch.')}[{sizes}]"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(value_text(item) for item in cast('tuple[object]', value))})"
    return type(value).__name__


def _same_shape(first: Tensor, second: Tensor) -> bool:
    if first.dim() != second.dim():
        return False
    return all(map(same_size, first.shape, second.shape))


def same_size(first: object, second: object) -> bool:
    """Tells whether two sizes are surely equal; symbolic ones may turn out to be so later."""
    if isinstance(first, int) and isinstance(second, int):
        return first == second
    # `str` compares symbolic sizes without adding a guard on them.
    return str(first) == str(second) or _surely_equal(first, second)


def _surely_equal(first: object, second: object) -> bool:
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(first == second)


def _value_argument(read: Node) -> Argument:
    return cast("Argument", value_of(read))


def _in_mode(mode: FakeTensorMode, value: Tensor) -> Tensor:
    is_own = isinstance(value, FakeTensor) and value.fake_mode is mode
    return value if is_own else mode.from_tensor(value, static_shapes=True)


def _fake_attribute(node: Node, mode: FakeTensorMode | None) -> object:
    value = attribute_of(graph_module_of(node), str(node.target))
    if mode is None:
        values = (value_of(other) for other in node.graph.nodes)
        known = next((found for found in values if isinstance(found, Tensor)), None)
        mode = detect_fake_mode(known)
    if mode is None or not isinstance(value, Tensor):
        return value
    return mode.from_tensor(value, static_shapes=True)


def _call(node: Node, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    if node.op == "call_module":
        module = module_at(graph_module_of(node), str(node.target))
        if not isinstance(module, nn.Module):
            raise AttributeError(f"no module is registered at {node.target}")
        return module(*args, **kwargs)
    if callable(node.target):
        return node.target(*args, **kwargs)
    raise TypeError(f"cannot compute a value for a node of kind {node.op}")


def _without_guards(mode: FakeTensorMode) -> AbstractContextManager[object]:
    shape_env = mode.shape_env
    return nullcontext() if shape_env is None else shape_env.suppress_guards()
