"""Finds out what a condition looks at, by asking it again about a changed node."""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.evaluate import size_hint
from embedl_deploy.graph.nodes import bound_arguments, module_of, value_of
from embedl_deploy.rewriting.conditions import All, Condition, facts_of
from embedl_deploy.rewriting.difference import Aspect, Difference, differ

_Change = tuple[Aspect, str, AbstractContextManager[None]]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)
_LITERALS: tuple[Argument, ...] = (0, 1, True, False, None, -1, 2, 0.0, 0.5, 1.0)


def failed_condition(where: Callable[[Node], bool], node: Node) -> Difference:
    """Returns the difference that a ``where`` which says no to ``node`` stands for."""
    condition = where.failing(node) if isinstance(where, All) else where
    if isinstance(condition, Condition):
        found = condition.found(node)
        cure = f"make %{node.name} yield {condition.expected}, or loosen the condition"
        return differ(condition.aspect, node, condition.expected, found, cure)
    name = f"the condition {getattr(where, '__name__', repr(where))!r}"
    kind, change = _what_helps(where, node) or ("condition", "")
    cure = f"change {change}, or loosen the condition" if change else "fulfil it or loosen it"
    return differ(kind, node, f"{name} to hold", f"it does not: {facts_of(node)}", cure)


def _what_helps(where: Callable[[Node], bool], node: Node) -> tuple[Aspect, str] | None:
    """Returns the one change to ``node`` after which ``where`` says yes, None if none is found."""
    for kind, change, context in _changes(node):
        with context:
            try:
                helps = where(node)
            except Exception:  # noqa: BLE001  # a condition may fail in any way on a changed node
                helps = False
        if helps:
            return kind, change
    return None


def _changes(node: Node) -> Iterator[_Change]:
    module = module_of(node)
    if module is not None:
        mode = "eval" if module.training else "training"
        yield "training", f"the mode of {node.target} to {mode}", _other_mode(node)
    for read in (node, *node.all_input_nodes):
        yield from _changes_of_value(read)
    for position, (name, argument) in enumerate(bound_arguments(node).items()):
        if isinstance(argument, Node) or position >= len(node.args):
            continue
        for literal in _LITERALS:
            change = f"the argument {name!r} from {argument!r} to {literal!r}"
            yield "literal", change, _other_literal(node, position, literal)


def _changes_of_value(node: Node) -> Iterator[_Change]:
    value = value_of(node)
    if not isinstance(value, Tensor):
        return
    if any(isinstance(size, torch.SymInt) for size in value.shape):
        yield "shape", f"%{node.name} to have no dynamic dimension", _static(node, value)
    for dtype in _DTYPES:
        if dtype != value.dtype:
            yield "dtype", f"the dtype of %{node.name} to {dtype}", _other_dtype(node, dtype)


@contextmanager
def _other_mode(node: Node) -> Generator[None]:
    module = module_of(node)
    assert module is not None
    mode = module.training
    module.training = not mode
    try:
        yield
    finally:
        module.training = mode


@contextmanager
def _other_value(node: Node, value: object) -> Generator[None]:
    before = node.meta["val"]
    node.meta["val"] = value
    try:
        yield
    finally:
        node.meta["val"] = before


def _other_dtype(node: Node, dtype: torch.dtype) -> AbstractContextManager[None]:
    value = value_of(node)
    assert isinstance(value, Tensor)
    return _other_value(node, value.new_empty(value.shape, dtype=dtype))


def _static(node: Node, value: Tensor) -> AbstractContextManager[None]:
    sizes = [size_hint(size) for size in value.shape]
    return _other_value(node, torch.empty(sizes, dtype=value.dtype, device="meta"))


@contextmanager
def _other_literal(node: Node, position: int, literal: Argument) -> Generator[None]:
    before = node.args
    node.args = (*before[:position], literal, *before[position + 1 :])
    try:
        yield
    finally:
        node.args = before
