# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""What one match builds, with a journal to take it back."""

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import Argument, Target

from embedl_deploy.graph.making import make_node
from embedl_deploy.graph.nodes import module_of, parts_of, value_of
from embedl_deploy.graph.values import infer_value
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.workspace import Workspace


class Edit:
    """What one match builds, with a journal to take it back; the ``Builder`` of its match."""

    def __init__(self, workspace: Workspace, match: PatternMatch, before: Node) -> None:
        self.workspace = workspace
        self.match = match
        self.before = before
        self.nodes: list[Node] = []
        self.created: list[Node] = []
        """Every node that came into the graph since, those that were made by hand included."""
        self.registered: list[str] = []
        self.replaced_keys: dict[str, tuple[str, ...]] = {}
        self.moved: list[tuple[Node, Node]] = []

    def move_up(self, late: Sequence[Node]) -> None:
        """Moves nodes, in graph order, to where the replacement will stand."""
        for node in late:
            self.moved.append((node, node.next))
            self.before.prepend(node)

    def call_module(
        self, module: nn.Module, args: tuple[Argument, ...], kwargs: dict[str, Argument]
    ) -> Node:
        owner = self.workspace.container_of(self.match.first)
        path = ""
        for part in (*parts_of(module), module):
            path, is_new = self.workspace.path_for(part, owner)
            if is_new:
                self.registered.append(path)
        return self._insert(lambda graph: make_node(graph, "call_module", path, args, kwargs))

    def call_function(
        self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Argument]
    ) -> Node:
        return self._insert(lambda graph: make_node(graph, "call_function", target, args, kwargs))

    def get_attr(self, tensor: Tensor, name: str, replaces: tuple[str, ...]) -> Node:
        owner = self.workspace.container_of(self.match.first)
        if tensor.requires_grad and not isinstance(tensor, nn.Parameter):
            # As a buffer it would drag its history along, which nothing can copy or load into.
            tensor = nn.Parameter(tensor.detach().clone())
        path, is_new = self.workspace.tensor_path_for(tensor, owner, name)
        if is_new:
            self.registered.append(path)
        for key in replaces:
            self.replaced_keys[key] = (*self.replaced_keys.get(key, ()), path)
        return self._insert(lambda graph: graph.get_attr(path))

    def undo(self) -> None:
        """Takes back every node, registration and move, last first."""
        for node in reversed(self.created):
            if not node._erased:
                node.graph.erase_node(node)
        for node, follower in reversed(self.moved):
            follower.prepend(node)
        for path in reversed(self.registered):
            self.workspace.forget(path)

    def infer_values(self) -> None:
        """Computes the recorded value of every new node, equal calls only once."""
        # Imported late: it takes sympy, and importing that takes as long as the whole package.
        from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

        known, mode = self.workspace.values, self.workspace.fake_mode
        for node in self.nodes:
            key = _call_key(node)
            if key is not None and key in known:
                node.meta["val"] = known[key]
                continue
            node.meta["val"] = value = infer_value(node, mode)
            if key is not None and not free_unbacked_symbols(cast("Tensor", value)):
                known[key] = value

    def _insert(self, make: Callable[[Graph], Node]) -> Node:
        graph = self.workspace.graph_module.graph
        with graph.inserting_before(self.before):
            node = make(graph)
        traced = self.match.first.meta
        node.meta.update((key, traced[key]) for key in _KEPT if key in traced)
        self.nodes.append(node)
        return node


def _call_key(node: Node) -> object:
    """Returns what decides the value of a call, None where it must be computed each time."""
    if node.op == "call_function":
        callee: object = node.target
    else:
        module = module_of(node)
        callee = None if module is None else _config(module)
    reads = node.all_input_nodes
    if callee is None or not all(isinstance(value_of(read), Tensor) for read in reads):
        return None
    return (callee, _argument_key(node.args), _argument_key(node.kwargs))


def _config(module: nn.Module) -> object:
    """Returns what decides the shapes that a module yields, None where that is not known."""
    if not type(module).__module__.startswith(_DESCRIBED):
        return None
    inner = [_config(child) for child in (*parts_of(module), *module._modules.values()) if child]
    if None in inner:
        return None
    held = (*module._parameters.values(), *module._buffers.values())
    shapes = tuple(_tensor_key(tensor) for tensor in held if tensor is not None)
    settings = tuple(
        (name, value if value.__class__ in _ATOMS else repr(value))
        for name, value in module.__dict__.items()
        if name[0] != "_" and not isinstance(value, nn.Module)
    )
    return (type(module), settings, shapes, tuple(inner))


_ATOMS = frozenset({bool, int, float, str, type(None)})
"""Kinds of settings that are compared as they are."""

_KEPT = ("stack_trace", "nn_module_stack")
"""What a new node takes over from the first node that it replaces."""

_DESCRIBED = ("torch.nn.", "embedl_deploy.")
"""Where modules come from whose plain attributes say all that decides what they compute."""


def _argument_key(argument: object) -> object:
    if isinstance(argument, Node):
        return _tensor_key(cast("Tensor", value_of(argument)))
    if isinstance(argument, (list, tuple)):
        return tuple(_argument_key(item) for item in cast("tuple[object]", argument))
    if isinstance(argument, dict):
        items = cast("dict[str, object]", argument).items()
        return tuple((name, _argument_key(item)) for name, item in items)
    return (type(argument), repr(argument))


def _tensor_key(value: Tensor) -> object:
    sizes = cast("tuple[object, ...]", (*value.shape, *value.stride()))
    shape = tuple(size if isinstance(size, int) else str(size) for size in sizes)
    return (shape, value.dtype, value.device)
