"""A graph while it is rewritten: an index of candidates, the registry of names, an undo journal."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import Argument, Target

from embedl_deploy.graph.nodes import module_at, module_of, module_path, parts_of, value_of
from embedl_deploy.graph.nodes import Target as Callee
from embedl_deploy.graph.traced_module import container_at, is_container
from embedl_deploy.graph.values import infer_value
from embedl_deploy.rewriting.match import PatternMatch


class CandidateIndex:
    """The calls of a graph by what they run, so that matching never walks the whole graph."""

    def __init__(self, graph_module: GraphModule) -> None:
        self._by_callee: dict[object, list[Node]] = {}
        for node in graph_module.graph.nodes:
            self.add(node)

    def add(self, node: Node) -> None:
        """Takes a node into the index; values and the output are left out."""
        if node.op == "call_module":
            self._by_callee.setdefault(type(module_of(node)), []).append(node)
        elif node.op == "call_function":
            self._by_callee.setdefault(node.target, []).append(node)

    def candidates(self, anchors: Iterable[Callee] | None) -> list[Node]:
        """Returns the live nodes that run one of ``anchors`` (None: anything), in graph order."""
        keys = self._by_callee if anchors is None else self._keys(anchors)
        found = [node for key in keys for node in self._by_callee[key] if not node._erased]
        return sorted(dict.fromkeys(found))

    def _keys(self, anchors: Iterable[Callee]) -> list[object]:
        keys: dict[object, None] = {}
        for anchor in anchors:
            if isinstance(anchor, type) and issubclass(anchor, nn.Module):
                kinds = (key for key in self._by_callee if isinstance(key, type))
                keys.update((kind, None) for kind in kinds if issubclass(kind, anchor))
            elif anchor in self._by_callee:
                keys[anchor] = None
            else:
                overloads = getattr(anchor, "overloads", None)
                names = cast("Sequence[str]", overloads()) if callable(overloads) else ()
                for name in names:
                    overload = getattr(anchor, name)
                    if overload in self._by_callee:
                        keys[overload] = None
        return list(keys)


class Workspace:
    """A graph, its index and its names, while a stage runs on it."""

    def __init__(self, graph_module: GraphModule) -> None:
        self.graph_module = graph_module
        self.index = CandidateIndex(graph_module)
        self.paths = {
            id(module): path
            for path, module in graph_module.named_modules(remove_duplicate=False)
            if path
        }
        self.values: dict[object, object] = {}

    def path_for(self, module: nn.Module, owner: str) -> tuple[str, bool]:
        """Returns the path of ``module``, and whether it was registered just now."""
        known = self.paths.get(id(module))
        if known is not None:
            return known, False
        path = self._free_path(owner, snake(type(module).__name__))
        parent, _, name = path.rpartition(".")
        container_at(self.graph_module, parent)._modules[name] = module
        self.paths[id(module)] = path
        return path, True

    def register_tensor(self, tensor: Tensor, owner: str, name: str) -> str:
        """Registers a parameter or buffer under a free name and returns its path."""
        path = self._free_path(owner, name)
        parent, _, leaf = path.rpartition(".")
        container = container_at(self.graph_module, parent)
        if isinstance(tensor, nn.Parameter):
            container.register_parameter(leaf, tensor)
        else:
            container.register_buffer(leaf, tensor)
        return path

    def forget(self, path: str) -> None:
        """Takes back a registration."""
        parent, _, name = path.rpartition(".")
        owner = module_at(self.graph_module, parent) if parent else self.graph_module
        if owner is None:
            return
        module = owner._modules.pop(name, None)
        owner._parameters.pop(name, None)
        owner._buffers.pop(name, None)
        if module is not None:
            self.paths.pop(id(module), None)

    def container_of(self, node: Node) -> str:
        """Returns the path of the innermost container around ``node``."""
        path = module_path(node)
        while path:
            module = module_at(self.graph_module, path)
            if module is None or is_container(module):
                return path
            path = path.rpartition(".")[0]
        return ""

    def _free_path(self, owner: str, name: str) -> str:
        container = module_at(self.graph_module, owner) if owner else self.graph_module
        prefix = f"{owner}." if owner else ""
        if container is None:
            return f"{prefix}{name}"
        taken = (*container._modules, *container._parameters, *container._buffers)
        candidate, count = name, 0
        while candidate in taken or hasattr(container, candidate):
            count += 1
            candidate = f"{name}_{count}"
        return f"{prefix}{candidate}"


class Edit:
    """What one match builds, with a journal to take it back; the ``Builder`` of its match."""

    def __init__(self, workspace: Workspace, match: PatternMatch, before: Node) -> None:
        self.workspace = workspace
        self.match = match
        self.before = before
        self.nodes: list[Node] = []
        self.registered: list[str] = []
        self.replaced_keys: dict[str, tuple[str, ...]] = {}

    def call_module(
        self, module: nn.Module, args: tuple[Argument, ...], kwargs: dict[str, Argument]
    ) -> Node:
        for part in (*parts_of(module), module):
            owner = self.workspace.container_of(self.match.first)
            path, is_new = self.workspace.path_for(part, owner)
            if is_new:
                self.registered.append(path)
        return self._insert(lambda graph: graph.call_module(path, args, kwargs))

    def call_function(
        self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Argument]
    ) -> Node:
        if not callable(target):
            raise TypeError(f"call_function takes a callable, got {target!r}")
        return self._insert(lambda graph: graph.call_function(target, args, kwargs))

    def get_attr(self, tensor: Tensor, name: str, replaces: tuple[str, ...]) -> Node:
        owner = self.workspace.container_of(self.match.first)
        path = self.workspace.register_tensor(tensor, owner, name)
        self.registered.append(path)
        self.replaced_keys.update((key, (path,)) for key in replaces)
        return self._insert(lambda graph: graph.get_attr(path))

    def undo(self) -> None:
        """Takes back every node and registration, last first."""
        for node in reversed(self.nodes):
            for reader in tuple(node.users):
                if reader in self.nodes:
                    continue
                raise RuntimeError(f"%{node.name} is already read by %{reader.name}")
            if not node._erased:
                node.graph.erase_node(node)
        for path in reversed(self.registered):
            self.workspace.forget(path)

    def infer_values(self) -> None:
        """Computes the recorded value of every new node, equal calls only once."""
        known = self.workspace.values
        for node in self.nodes:
            key = _call_key(node)
            if key is None or key not in known:
                value = infer_value(node)
                if key is not None:
                    known[key] = value
            node.meta["val"] = known[key] if key is not None else value

    def _insert(self, make: "Callable[[object], Node]") -> Node:
        graph = self.workspace.graph_module.graph
        with graph.inserting_before(self.before):
            node = make(graph)
        for key in ("stack_trace", "nn_module_stack"):
            if key in self.match.first.meta:
                node.meta[key] = self.match.first.meta[key]
        self.nodes.append(node)
        return node


def snake(name: str) -> str:
    """Returns ``FusedConvBNReLU`` as ``fused_conv_bn_relu``."""
    parts = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z\d])([A-Z])", r"\1_\2", parts).lower().replace("re_lu", "relu")


def _call_key(node: Node) -> object:
    """Returns what decides the value of a call, None where it must be computed each time."""
    module = module_of(node)
    callee: object = node.target if module is None else (type(module), _config(module))
    if node.op not in ("call_module", "call_function"):
        return None
    return (callee, _argument_key(node.args), _argument_key(node.kwargs))


def _config(module: nn.Module) -> str:
    own = [f"{name}{tuple(tensor.shape)}{tensor.dtype}" for name, tensor in module.named_parameters()]
    inner = [_config(part) for part in parts_of(module)]
    return f"{module!r}{own}{inner}{module.training}"


def _argument_key(argument: object) -> object:
    if isinstance(argument, Node):
        value = value_of(argument)
        return (_tensor_key(value) if isinstance(value, Tensor) else (id(value), "value"))
    if isinstance(argument, (list, tuple)):
        return tuple(_argument_key(item) for item in cast("tuple[object]", argument))
    if isinstance(argument, dict):
        items = cast("dict[str, object]", argument).items()
        return tuple((name, _argument_key(item)) for name, item in items)
    return repr(argument)


def _tensor_key(value: Tensor) -> object:
    return (tuple(str(size) for size in value.shape), value.dtype, value.device, value.stride())
