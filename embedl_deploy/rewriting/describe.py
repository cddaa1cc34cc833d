"""Puts trees and values into words."""

from collections.abc import Iterable, Sequence

from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import Target, input_nodes, module_of
from embedl_deploy.graph.text import label
from embedl_deploy.rewriting.compose import Chain, Maybe, OneOf, may_be_absent
from embedl_deploy.rewriting.fork import Fork
from embedl_deploy.rewriting.listed import ListOf
from embedl_deploy.rewriting.tree import Exactly, Input, Literal, Named, Op, Tree

_MOST_NAMED = 4


def describe(tree: Tree) -> str:
    """Returns what ``tree`` asks of its last node, in a few words."""
    if isinstance(tree, (Named, Maybe)):
        return describe(tree.tree)
    if isinstance(tree, Op):
        return describe_target(tree.target)
    if isinstance(tree, OneOf):
        return either(describe(option) for option in tree.trees)
    if isinstance(tree, Chain):
        return describe(tree.links[-1])
    if isinstance(tree, Fork):
        return describe(tree.join)
    if isinstance(tree, (Exactly, Literal, Input, ListOf)):
        return _describe_value(tree)
    targets = tree.anchors()
    return "any call" if not targets else either(describe_target(item) for item in targets)


def describe_end(tree: Tree) -> str:
    """Returns what the last node of ``tree`` may be, optional links at the end included."""
    if not isinstance(tree, Chain):
        return describe(tree)
    optional: list[str] = []
    for link in reversed(tree.links):
        if not may_be_absent(link):
            rest = f", then perhaps {' and '.join(reversed(optional))}" if optional else ""
            return f"{describe(link)}{rest}"
        optional.append(describe(link))
    return describe(tree)


def describe_target(target: Target) -> str:
    """Returns the name of something that a node may run."""
    if not isinstance(target, type) and type(target).__module__ == "torch._ops":
        return str(target)
    return str(getattr(target, "__name__", target))


def describe_value(value: Argument) -> str:
    """Returns what was found in a place, in a few words."""
    if isinstance(value, Node):
        return short_label(value)
    if isinstance(value, (list, tuple)) and any(True for _ in input_nodes(value)):
        return describe_list(value)
    return f"the literal {value!r}"


def describe_list(items: Sequence[Argument]) -> str:
    """Returns what a list of nodes holds: how many, and which."""
    named = [f"%{item.name}" if isinstance(item, Node) else repr(item) for item in items]
    shown = named if len(named) <= _MOST_NAMED else [*named[: _MOST_NAMED - 1], "…", named[-1]]
    return f"a list of {len(named)}: {', '.join(shown)}"


def short_label(node: Node) -> str:
    """Returns what ``node`` runs, a module without its options."""
    module = module_of(node)
    return label(node) if module is None else f"{type(module).__name__} [{node.target}]"


def link_name(tree: Tree) -> str:
    """Returns how messages call a link: its name and what it asks for."""
    inner = tree.tree if isinstance(tree, Maybe) else tree
    name = inner.name_of()
    return describe(tree) if name is None else f"{name!r} ({describe(tree)})"


def either(names: Iterable[str]) -> str:
    """Returns ``A, B or C``, without repetitions, shortened where there are many."""
    listed = list(dict.fromkeys(names))
    if len(listed) > _MOST_NAMED:
        listed = [*listed[: _MOST_NAMED - 1], f"one of {len(listed) - _MOST_NAMED + 1} more"]
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} or {listed[-1]}"


def _describe_value(tree: Tree) -> str:
    if isinstance(tree, ListOf):
        return f"a list of {len(tree.trees)}: {', '.join(map(describe, tree.trees))}"
    if isinstance(tree, Exactly):
        return f"the literal {tree.value!r}"
    if isinstance(tree, Literal):
        test = getattr(tree.where, "__name__", "its condition")
        condition = "" if tree.where is None else f" that passes {test}"
        return f"the literal {tree.name!r}{condition}"
    return "a value that the graph computes"
