"""What an exact match would have to differ in, as differences: one function per kind."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import bound_arguments, input_nodes
from embedl_deploy.rewriting.compose import Chain, Wildcard
from embedl_deploy.rewriting.describe import (
    describe,
    describe_list,
    describe_value,
    link_name,
    short_label,
)
from embedl_deploy.rewriting.difference import Difference, differ
from embedl_deploy.rewriting.layer_ops import in_place_of_layer
from embedl_deploy.rewriting.listed import ListOf
from embedl_deploy.rewriting.operands import same_literal, scales_are_plain
from embedl_deploy.rewriting.spellings import traced_spelling
from embedl_deploy.rewriting.tree import Op, Tree
from embedl_deploy.rewriting.tree_walk import all_trees
from embedl_deploy.rewriting.what_if import failed_condition


@dataclass(frozen=True)
class Place:
    """The argument that is being matched, for messages."""

    reader: Node
    argument: str = ""
    """What messages call it: a name in quotes, or ``input 0``."""

    def of(self, position: int) -> "Place":
        """Returns the place of an argument of ``reader``."""
        names = list(bound_arguments(self.reader))
        is_named = position < len(names) and not names[position].isdigit()
        argument = repr(names[position]) if is_named else f"input {position}"
        return Place(self.reader, argument)

    def item(self, position: int) -> "Place":
        """Returns the place of an item of this list argument."""
        inside = f" of {self.argument}" if self.argument else ""
        return Place(self.reader, f"item {position}{inside}")


def objections(tree: Op, node: Node) -> Iterator[Difference]:
    """Yields what an ``Op`` whose target fits does not like about a node."""
    bound = bound_arguments(node)
    for name, value in tree.literals.items():
        if not same_literal(bound.get(name), value):
            cure = f"call it with {name}={value!r}, or leave {name!r} out of the tree's literals"
            found = repr(bound.get(name))
            yield differ("literal", node, f"{name}={value!r}", found, cure)
    if not tree.inputs and not scales_are_plain(node, tree.literals):
        yield scaled(node)
    if tree.where is not None and not tree.where(node):
        yield failed_condition(tree.where, node)


def not_default(tree: Op, node: Node) -> Iterator[Difference]:
    """Yields the arguments beyond the listed ones that do not have their defaults."""
    listed = len(tree.inputs)
    if not isinstance(node.target, OpOverload):
        if len(node.args) > listed:
            cure = f"list all {len(node.args)} arguments in the tree"
            yield differ("argument", node, f"{listed} arguments", f"{len(node.args)}", cure)
        return
    bound = bound_arguments(node)
    for parameter in node.target._schema.arguments[listed:]:  # pyright: ignore[reportPrivateUsage]  # torch offers no other way
        name = parameter.name
        default: Argument = parameter.default_value if parameter.has_default_value() else None
        if name not in tree.literals and bound.get(name) != default:
            yield _not_its_default(node, name, bound.get(name), default)


def other_argument(node: Node, name: str) -> Difference:
    """Returns the difference of a fork's argument that is no operand and not at its default."""
    value = bound_arguments(node).get(name)
    if isinstance(node.target, OpOverload):
        for parameter in node.target._schema.arguments:  # pyright: ignore[reportPrivateUsage]  # torch offers no other way
            if parameter.name == name and parameter.has_default_value():
                return _not_its_default(node, name, value, parameter.default_value)
    expected = f"a computed value as {name!r}"
    cure = f"write Op(op, ..., literal) in place of the Fork, or name it: literals={{{name!r}: …}}"
    return differ("literal", node, expected, describe_value(value), cure)


def _not_its_default(node: Node, name: str, value: Argument, default: Argument) -> Difference:
    found, expected = f"{name}={value!r}", f"{name}={default!r}, its default"
    cure = f"leave {name!r} at its default, or name it: literals={{{name!r}: …}}"
    return differ("literal", node, expected, found, cure)


def scaled(node: Node) -> Difference:
    """Returns the difference of an operation that scales an operand."""
    bound = bound_arguments(node)
    found = ", ".join(f"{name}={bound[name]!r}" for name in ("alpha", "beta") if name in bound)
    cure = "call it without a scale, or name it in the tree: literals={'alpha': 2}"
    return differ("literal", node, "a scale of 1", found, cure)


def wrong_target(node: Node, tree: Tree, place: Place) -> Difference:
    """Returns the difference of a node that runs something else than the root of ``tree``."""
    expected = describe(tree)
    where = f" as {place.argument} of %{place.reader.name}" if place.argument else ""
    if node.op in ("placeholder", "get_attr"):
        cure = f"compute it with {expected}, or end the tree here with Input()"
        return differ("value", node, f"{expected}{where}", short_label(node), cure)
    has_inputs = any(isinstance(part, Op) and part.inputs for part in all_trees(tree))
    options = "OneOf(Op(…), Op(…))" if has_inputs else "a tuple (…, …)"
    cure = f"use {expected} there, or admit it in the tree: {options} lists alternatives"
    spellings = (traced_spelling(target, node) for target in tree.anchors() or ())
    better = next((spelling for spelling in spellings if spelling is not None), None)
    cure = cure if better is None else better
    return differ("target", node, f"{expected}{where}", short_label(node), cure)


def too_short(run: Wildcard, found: Sequence[Node], before: Argument) -> Difference:
    """Returns the difference of a run, given last node first, that ends at ``before`` too early."""
    expected = f"{describe(run)}, in a run of at least {run.least} that ends at %{found[0].name}"
    node = before if isinstance(before, Node) else found[-1]
    shown = short_label(node) if isinstance(before, Node) else "none"
    cure = f"the run has {len(found)}: let the quantifier admit that, or make it longer"
    return differ("target", node, expected, shown, cure)


def swapped_operands(tree: Op, node: Node) -> Difference:
    """Returns the difference of a call whose operands stand the other way round."""
    first, second = (describe(inner) for inner in tree.inputs[:2])
    expected = f"{first} as its first operand and {second} as its second"
    cure = f"list the operands of {describe(tree)} in the tree as the model has them: swapped"
    return differ("argument", node, expected, "them the other way round", cure)


def not_computed(place: Place, expected: str, value: Argument) -> Difference:
    """Returns the difference of a literal where a computed value must stand."""
    argument = f" as {place.argument}" if place.argument else ""
    cure = "give the tree a literal in this place, or compute the value in the model"
    if isinstance(value, (list, tuple)) and any(True for _ in input_nodes(value)):
        cure = _write_a_list(value)
    return differ("value", place.reader, f"{expected}{argument}", describe_value(value), cure)


def other_list(place: Place, tree: ListOf, value: Argument) -> Difference:
    """Returns the difference of what is no list of as many items as the tree lists."""
    argument = f" as {place.argument}" if place.argument else ""
    expected = f"a list of {len(tree.trees)}{argument}"
    if not isinstance(value, (list, tuple)):
        cure = "take the tree out of its list, or give the model a list there"
        return differ("value", place.reader, expected, describe_value(value), cure)
    found = describe_list(value)
    return differ("argument", place.reader, expected, found, _write_a_list(value))


def reordered(place: Place, expected: str, found: str) -> Difference:
    """Returns the difference of operands that fit in another order."""
    cure = "list them in the tree in the order of the model: this call does not commute"
    return differ("argument", place.reader, f"{expected}, in this order", found, cure)


def _write_a_list(value: Sequence[Argument]) -> str:
    items = ["Input()" if isinstance(item, Node) else repr(item) for item in value]
    listed = items if len(items) <= 4 else [*items[:2], "…", items[-1]]
    return (
        f"the argument is a list of {len(items)}: write a list of as many trees, "
        f"[{', '.join(listed)}]"
    )


def missing_link(tree: Chain, last: int, node: Node) -> Difference:
    """Returns the difference of a chain that goes on before a link was met."""
    link = link_name(tree.links[last])
    readers = ", ".join(f"%{reader.name} = {short_label(reader)}" for reader in node.users)
    found = f"none: it is read by {readers or 'nothing'}"
    cure = _for_layers(tree.links[last]) or "add it, or wrap the link in Maybe(…)"
    return differ("link", node, f"{link} after it", found, cure)


def _for_layers(tree: Tree) -> str | None:
    """Returns what to write where all that ``tree`` asks for are layers that tracing unfolds."""
    better = [in_place_of_layer(target) for target in tree.anchors() or (None,)]
    return None if None in better else better[0]


def missing_operand(tree: Op, node: Node, place: Place) -> Difference:
    """Returns the difference of a node that is read where a call on it must stand."""
    argument = f" as {place.argument}" if place.argument else ""
    expected, found = f"{describe(tree)}{argument}", f"%{node.name} = {short_label(node)} itself"
    cure = _for_layers(tree) or "add it, or admit its absence: Maybe(…)"
    return differ("link", place.reader, expected, found, cure)


def extra_node(link: Tree, node: Node) -> Difference:
    """Returns the difference of a node that stands between two links."""
    cure = "remove it (a conversion may do so), or put Wildcard(…) or Maybe(…) between the links"
    expected, found = f"{describe(link)} in this place", f"{short_label(node)} before it"
    return differ("extra", node, expected, found, cure)


def other_literal(place: Place, expected: str, value: Argument) -> Difference:
    """Returns the difference of a literal, or of a computed value in the place of one."""
    argument = f" as {place.argument}" if place.argument else ""
    cure = "change it, or admit it: OneOf(1, 2) lists values, Literal('name') takes any"
    if isinstance(value, (list, tuple)) and any(True for _ in input_nodes(value)):
        cure = _write_a_list(value)
    return differ("literal", place.reader, f"{expected}{argument}", describe_value(value), cure)
