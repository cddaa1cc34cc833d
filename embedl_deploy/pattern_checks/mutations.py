"""Near misses: small changes to a graph in which a pattern fits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import dtype_of, module_of, shape_of, value_of
from embedl_deploy.graph.traced_module import TracedModule
from embedl_deploy.graph.values import infer_value
from embedl_deploy.pattern_checks.sketch import cast_inputs, infer_again, make_batch_dynamic
from embedl_deploy.rewriting.difference import Aspect

Mutated = tuple[str, ...]
"""Names of the nodes that were changed; () where the mutation does not apply."""

Mutate = Callable[[TracedModule, list[Node], Random], Mutated]


@dataclass(frozen=True)
class Mutation:
    """A kind of near miss."""

    name: str
    """What changes."""

    mutate: Mutate
    """Changes a graph in place; gets the nodes that the match consumes."""

    aspects: frozenset[Aspect]
    """What an explanation of it may say differs."""

    words: str
    """Matches what a reason speaks of that ``check`` gives for it."""


def _extra_reader(graph_module: TracedModule, nodes: list[Node], random: Random) -> Mutated:
    inner = [node for node in nodes[:-1] if isinstance(value_of(node), Tensor)]
    if not inner:
        return ()
    node = random.choice(inner)
    (output,) = graph_module.graph.find_nodes(op="output")
    with graph_module.graph.inserting_before(output):
        extra = graph_module.graph.call_function(torch.ops.aten.clone.default, (node,))
    extra.meta["val"] = infer_value(extra)
    output.args = ((*_outputs(output), extra),)
    return (node.name,)


def _swapped_operands(graph_module: TracedModule, nodes: list[Node], random: Random) -> Mutated:
    """Swaps the first two operands of a call, or two items of a list that it reads."""
    binary = [node for node in nodes if sum(isinstance(a, Node) for a in node.args[:2]) == 2]
    lists = [node for node in nodes if len(_listed(node)) >= 2]
    if not binary and not lists:
        return ()
    node = random.choice([*binary, *lists])
    if node in binary:
        node.args = (node.args[1], node.args[0], *node.args[2:])
    else:
        place = random.randrange(len(_listed(node)) - 1)
        _exchange_list(node, lambda items: _swapped(items, place))
    infer_again(graph_module)
    return (node.name,)


def _longer_list(graph_module: TracedModule, nodes: list[Node], random: Random) -> Mutated:
    """Reads an item of a list once more."""
    lists = [node for node in nodes if _listed(node)]
    if not lists:
        return ()
    node = random.choice(lists)
    _exchange_list(node, lambda items: [*items, items[-1]])
    infer_again(graph_module)
    return (node.name,)


def _shorter_list(graph_module: TracedModule, nodes: list[Node], random: Random) -> Mutated:
    """Leaves the last item of a list out."""
    lists = [node for node in nodes if len(_listed(node)) >= 2]
    if not lists:
        return ()
    node = random.choice(lists)
    _exchange_list(node, lambda items: items[:-1])
    infer_again(graph_module)
    return (node.name,)


def _listed(node: Node) -> Sequence[Argument]:
    """Returns the first list of nodes that a call reads, () where it reads none."""
    for value in node.args:
        if isinstance(value, (list, tuple)) and any(isinstance(item, Node) for item in value):
            return value
    return ()


def _exchange_list(node: Node, change: Callable[[list[Argument]], list[Argument]]) -> None:
    before = _listed(node)
    args = [change(list(before)) if value is before else value for value in node.args]
    node.args = tuple(args)


def _swapped(items: list[Argument], place: int) -> list[Argument]:
    return [*items[:place], items[place + 1], items[place], *items[place + 2 :]]


def _changed_literal(graph_module: TracedModule, nodes: list[Node], random: Random) -> Mutated:
    places = [
        (node, position)
        for node in nodes
        for position, value in enumerate(node.args)
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    if not places:
        return ()
    node, position = random.choice(places)
    value = node.args[position]
    assert isinstance(value, (int, float)), "chosen so"
    changed: list[Argument] = list(node.args)
    changed[position] = value * 2 + 1
    node.args = tuple(changed)
    infer_again(graph_module)
    return (node.name,)


def _other_dtype(graph_module: TracedModule, nodes: list[Node], random: Random) -> Mutated:
    cast_inputs(graph_module, random.choice((torch.float64, torch.bfloat16)))
    return tuple(node.name for node in nodes)


def _aliased_inputs(graph_module: TracedModule, nodes: list[Node], random: Random) -> Mutated:
    del random
    inputs = graph_module.graph.find_nodes(op="placeholder")
    for position, first in enumerate(inputs):
        for second in inputs[position + 1 :]:
            if shape_of(first) == shape_of(second):
                second.replace_all_uses_with(first)
                return tuple(node.name for node in nodes)
    return ()


def _dynamic_batch(graph_module: TracedModule, nodes: list[Node], random: Random) -> Mutated:
    del random
    make_batch_dynamic(graph_module)
    return tuple(node.name for node in nodes)


def _training_mode(graph_module: TracedModule, nodes: list[Node], random: Random) -> Mutated:
    del random
    modules = [module for node in nodes if (module := module_of(node)) is not None]
    if not modules:
        return ()
    graph_module.training = True
    for module in modules:
        module.train()
    return tuple(node.name for node in nodes if module_of(node) is not None)


def _shared_module(graph_module: TracedModule, nodes: list[Node], random: Random) -> Mutated:
    """Calls one of the modules a second time, on another input."""
    calls = [node for node in nodes if module_of(node) is not None and len(node.args) == 1]
    if not calls:
        return ()
    node = random.choice(calls)
    (output,) = graph_module.graph.find_nodes(op="output")
    with graph_module.graph.inserting_before(output):
        read = node.all_input_nodes[0]
        other = graph_module.graph.call_function(torch.ops.aten.neg.default, (read,))
        again = graph_module.graph.call_module(str(node.target), (other,))
    for new in (other, again):
        new.meta["val"] = infer_value(new)
    output.args = ((*_outputs(output), again),)
    return (node.name, read.name)


def _other_module(graph_module: TracedModule, nodes: list[Node], random: Random) -> Mutated:
    """Puts a module there that no pattern names."""
    calls = [node for node in nodes if module_of(node) is not None and _keeps_shape(node)]
    if not calls:
        return ()
    node = random.choice(calls)
    graph_module.add_module("stranger", _Stranger())
    node.target = "stranger"
    node.args = node.args[:1]
    infer_again(graph_module)
    return (node.name,)


def _other_function(graph_module: TracedModule, nodes: list[Node], random: Random) -> Mutated:
    """Puts an op there that no pattern names, on the same tensors."""
    calls = [node for node in nodes if node.op == "call_function" and _keeps_shape(node)]
    calls = [node for node in calls if len(node.all_input_nodes) in _STRANGERS]
    if not calls:
        return ()
    node = random.choice(calls)
    reads = node.all_input_nodes
    node.target, node.args, node.kwargs = _STRANGERS[len(reads)], tuple(reads), {}
    infer_again(graph_module)
    return (node.name,)


def _extra_node(graph_module: TracedModule, nodes: list[Node], random: Random) -> Mutated:
    """Puts an op between two nodes of the match; both stand next to the change."""
    links = [(node, reader) for node in nodes for reader in node.users if reader in nodes]
    links = [(node, reader) for node, reader in links if isinstance(value_of(node), Tensor)]
    if not links:
        return ()
    node, reader = random.choice(links)
    with graph_module.graph.inserting_before(reader):
        extra = graph_module.graph.call_function(_STRANGERS[1], (node,))
    reader.replace_input_with(node, extra)
    infer_again(graph_module)
    return (extra.name, node.name, reader.name)


def _missing_node(graph_module: TracedModule, nodes: list[Node], random: Random) -> Mutated:
    """Takes a node out of the match; what stood around it stands next to the change."""
    calls = [node for node in nodes[:-1] if _keeps_shape(node) and len(node.all_input_nodes) == 1]
    if not calls:
        return ()
    node = random.choice(calls)
    before, readers = node.all_input_nodes[0], tuple(node.users)
    node.replace_all_uses_with(before)
    graph_module.graph.erase_node(node)
    infer_again(graph_module)
    return (before.name, *(reader.name for reader in readers))


_STRANGERS = {1: torch.ops.aten.sin.default, 2: torch.ops.aten.hypot.default}
"""Ops that no pattern names, by how many tensors they read."""


class _Stranger(nn.Module):
    """Keeps the shape of its input and nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin() * 0.7


def _keeps_shape(node: Node) -> bool:
    if not node.all_input_nodes:
        return False
    before = node.all_input_nodes[0]
    same_shape = shape_of(before) is not None and shape_of(before) == shape_of(node)
    return same_shape and dtype_of(before) == dtype_of(node)


def _outputs(output: Node) -> tuple[Argument, ...]:
    returned = output.args[0]
    assert isinstance(returned, (tuple, list)), "sketches return tuples"
    return tuple(returned)


_OPERAND: frozenset[Aspect] = frozenset({"target", "value", "argument", "link", "same value"})

CHANGED_LITERAL = Mutation("changed literal", _changed_literal, frozenset({"literal"}), r"-?\d")
"""The near miss that is also made of each literal of an example in turn."""

MUTATIONS = (
    Mutation("extra reader", _extra_reader, frozenset({"readers"}), r"\bread|\bused\b"),
    Mutation("swapped operands", _swapped_operands, _OPERAND, "operand|order|shape|broadcast"),
    Mutation("longer list", _longer_list, _OPERAND, "operand|list"),
    Mutation("shorter list", _shorter_list, _OPERAND, "operand|list"),
    CHANGED_LITERAL,
    Mutation("other dtype", _other_dtype, frozenset({"dtype"}), "dtype|float|bf16|half"),
    Mutation("aliased inputs", _aliased_inputs, frozenset({"same value"}), "same|itself|once"),
    Mutation("dynamic batch", _dynamic_batch, frozenset({"shape"}), "dynamic|static|s[0-9]"),
    Mutation("training mode", _training_mode, frozenset({"training"}), "train|eval"),
    Mutation("shared module", _shared_module, frozenset({"readers"}), "shared|another|twice|read"),
    Mutation("other module", _other_module, frozenset({"target", "value"}), "_Stranger"),
    Mutation(
        "other function", _other_function, frozenset({"target", "value"}), r"aten\.(sin|hypot)"
    ),
    Mutation("extra node", _extra_node, frozenset({"extra", "target", "value"}), r"aten\.sin"),
    Mutation("missing node", _missing_node, _OPERAND, "expected"),
)
"""Every near miss that ``check_pattern`` makes."""
