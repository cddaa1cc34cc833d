# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""A graph while it is rewritten: an index of candidates and the registry of names."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import cast

from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

from embedl_deploy.graph.nodes import Target as Callee
from embedl_deploy.graph.nodes import module_at, module_of, module_path, parts_of, value_of
from embedl_deploy.graph.traced_module import container_at, is_container


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
            if isinstance(anchor, type):
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

    def __init__(self, graph_module: GraphModule, *, is_body: bool = False) -> None:
        self.graph_module = graph_module
        self.is_body = is_body
        self.values: dict[object, object] = {}
        self.containers: set[str] = set()
        self._counts: dict[str, int] = {}
        """The last number tried behind each wished path."""

    @cached_property
    def index(self) -> CandidateIndex:
        """The calls by what they run; made when patterns are looked for."""
        return CandidateIndex(self.graph_module)

    @cached_property
    def paths(self) -> dict[int, str]:
        """Where each module is registered first, by the identity of the module."""
        return {id(module): path for path, module in named_modules(self.graph_module) if path}

    @cached_property
    def fake_mode(self) -> FakeTensorMode | None:
        """The mode that the graph's recorded values belong to."""
        for node in self.graph_module.graph.nodes:
            if isinstance(value_of(node), Tensor):
                return detect_fake_mode(value_of(node))
        return None

    @cached_property
    def _tensor_paths(self) -> dict[int, str]:
        tensors: Iterable[tuple[str, Tensor]] = (
            *self.graph_module.named_parameters(),
            *self.graph_module.named_buffers(),
        )
        return {id(tensor): path for path, tensor in tensors}

    def path_for(self, module: nn.Module, owner: str) -> tuple[str, bool]:
        """Returns the path of ``module``, and whether it was registered just now."""
        known = self.paths.get(id(module))
        if known is not None:
            return known, False
        path = self._free_path(owner, snake(type(module).__name__))
        parent, _, name = path.rpartition(".")
        self.container(parent)._modules[name] = module
        self.paths[id(module)] = path
        if module.training != self.graph_module.training and not parts_of(module):
            module.train(self.graph_module.training)
        return path, True

    def tensor_path_for(self, tensor: Tensor, owner: str, name: str) -> tuple[str, bool]:
        """Returns the path of a parameter or buffer, and whether it was registered just now."""
        known = self._tensor_paths.get(id(tensor))
        if known is not None:
            return known, False
        path = self._free_path(owner, name)
        parent, _, leaf = path.rpartition(".")
        container = self.container(parent)
        if isinstance(tensor, nn.Parameter):
            container.register_parameter(leaf, tensor)
        else:
            container.register_buffer(leaf, tensor)
        self._tensor_paths[id(tensor)] = path
        return path, True

    def container(self, path: str) -> nn.Module:
        """Returns the container at ``path``, made if need be."""
        known = module_at(self.graph_module, path) if path else self.graph_module
        if known is not None:
            return known
        here = path
        while here and module_at(self.graph_module, here) is None:
            self.containers.add(here)
            here = here.rpartition(".")[0]
        return container_at(self.graph_module, path)

    def forget(self, path: str) -> None:
        """Takes back a registration, and the containers that were made for it."""
        parent, _, name = path.rpartition(".")
        owner = module_at(self.graph_module, parent) if parent else self.graph_module
        if owner is None:
            return
        self._counts.clear()
        module = owner._modules.pop(name, None)
        tensor = owner._parameters.pop(name, None) if name in owner._parameters else None
        if name in owner._buffers:
            tensor = owner._buffers.pop(name)
        if tensor is not None:
            self._tensor_paths.pop(id(tensor), None)
        if module is not None and self.paths.get(id(module)) == path:
            del self.paths[id(module)]
        if parent in self.containers and _is_empty(owner):
            self.containers.discard(parent)
            self.forget(parent)

    def container_of(self, node: Node) -> str:
        """Returns the path of the innermost container around ``node`` that there is."""
        path = module_path(node)
        while path:
            module = module_at(self.graph_module, path)
            if module is not None and is_container(module):
                return path
            path = path.rpartition(".")[0]
        return ""

    def _free_path(self, owner: str, name: str) -> str:
        container = module_at(self.graph_module, owner) if owner else self.graph_module
        wished = f"{owner}.{name}" if owner else name
        if container is None or not _has_name(container, name):
            return wished
        count = self._counts.get(wished, 0) + 1
        while _has_name(container, f"{name}_{count}"):
            count += 1
        self._counts[wished] = count
        return f"{wished}_{count}"


def named_modules(
    module: nn.Module, *, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """Yields ``module`` and each module below with its path, in the order of torch's method.

    That passes each module up through a generator per level.
    """
    seen: set[int] = set()
    pending: list[tuple[str, nn.Module]] = [("", module)]
    while pending:
        path, here = item = pending.pop()
        if remove_duplicate:
            if id(here) in seen:
                continue
            seen.add(id(here))
        yield item
        prefix = f"{path}." if path else ""
        below = reversed(here._modules.items())
        pending += [(prefix + name, child) for name, child in below if child is not None]


def _has_name(module: nn.Module, name: str) -> bool:
    """Tells what ``hasattr`` does, which is slow on modules: their lookup raises."""
    tables = (module._modules, module._parameters, module._buffers, module.__dict__)
    return any(name in table for table in tables) or hasattr(type(module), name)


def _is_empty(container: nn.Module) -> bool:
    return not (container._modules or container._parameters or container._buffers)


@lru_cache(maxsize=1024)
def snake(name: str) -> str:
    """Returns ``FusedConvBNReLU`` as ``fused_conv_bn_relu``."""
    parts = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z\d])([A-Z])", r"\1_\2", parts).lower().replace("re_lu", "relu")
