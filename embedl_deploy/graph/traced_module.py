# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""The GraphModule that every stage returns, and copies of it that share tensors."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Self, cast

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import PythonCode

from embedl_deploy.graph.making import copy_node
from embedl_deploy.graph.record import RECORD, GraphRecord, StateLoader


class TracedModule(GraphModule):
    """A GraphModule that keeps what its graph does not call.

    Beyond ``torch.fx.GraphModule`` it

    - keeps parameters and modules that no node reads when it is copied: fused modules hold
      their parts by reference, and the parts live under their own names;
    - owns its parameters before it trains or is given others: ``train()`` and
      ``load_state_dict()`` first replace parameters shared with the user's model by copies, so
      that neither an optimizer nor other weights reach that model;
    - takes the ``state_dict`` of the model it came from, also where rewrites folded, split or
      merged its parameters: those are computed again;
    - can put off writing its Python code while it is rewritten.
    """

    deferred = False
    """Whether ``recompile`` waits for ``finish``; writing code takes longer than rewriting."""

    def __init__(self, *, deferred: bool = False) -> None:
        self.__dict__["deferred"] = deferred
        super().__init__(nn.Module(), Graph(), class_name="GraphModule")
        self.shares_parameters = False

    def recompile(self) -> PythonCode:
        if self.deferred:
            return PythonCode("", {}, {}, None)  # pyright: ignore[reportArgumentType]  # no prologue
        return super().recompile()

    def finish(self) -> Self:
        """Writes the Python code that was put off; returns the module itself."""
        self.deferred = False
        self.recompile()
        return self

    def train(self, mode: bool = True) -> Self:
        if mode and self.shares_parameters:
            own_tensors(self)
        return super().train(mode)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: Mapping[str, object],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if self.shares_parameters:
            own_tensors(self)
        record = self.meta.get(RECORD)
        loader = record.loader if isinstance(record, GraphRecord) else None
        if loader is not None:
            missing = _translate(self, loader, state_dict, prefix, error_msgs)
            missing_keys.extend(missing)
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )

    def __deepcopy__(self, memo: dict[int, object]) -> "TracedModule":
        result = TracedModule(deferred=True)
        memo[id(self)] = result
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            result.__dict__[name] = copy.deepcopy(self.__dict__[name], memo)
        result.shares_parameters = False
        _take_over(self, result, copy_graph(self.graph))
        return result if self.deferred else result.finish()


def _translate(
    module: nn.Module,
    loader: StateLoader,
    state: dict[str, Tensor],
    prefix: str,
    errors: list[str],
) -> list[str]:
    """Puts the weights of ``module`` in the place of the model's in ``state``.

    A state that has a key which only the rewritten graph has is the graph's own, and stays.

    Returns:
        The keys of the model that were not given and that the graph does not have itself.
    """
    model, own = dict.fromkeys(loader.keys()), module.state_dict()
    given = {key.removeprefix(prefix): key for key in state if key.startswith(prefix)}
    if any(key in own and key not in model for key in given):
        return []
    try:
        loaded = loader({key: state[full] for key, full in given.items()})
    except RuntimeError as error:
        errors.append(str(error))
        return []
    for key, full in given.items():
        if key in model and key not in own:
            del state[full]
    state.update((f"{prefix}{key}", tensor) for key, tensor in loaded.tensors.items())
    return [f"{prefix}{key}" for key in loaded.missing if key not in own]


def structural_copy(
    source: GraphModule, *, deferred: bool = False, node_map: dict[Node, Node] | None = None
) -> TracedModule:
    """Returns a copy whose nodes and containers are its own and whose leaves are shared.

    Rewriting the copy (erasing nodes, registering modules) leaves the source as it was.
    Parameters, buffers and leaf modules are the very objects of the source.

    Args:
        source: What to copy.
        deferred: Whether to put off writing Python code, see ``TracedModule.finish``.
        node_map: If given, receives the new node of each old one.
    """
    result = TracedModule(deferred=True)
    copy_tree(source, result)
    result.shares_parameters = True
    _take_over(source, result, copy_graph(source.graph, node_map))
    return result if deferred else result.finish()


def copy_graph(graph: Graph, node_map: dict[Node, Node] | None = None) -> Graph:
    """Returns a copy of ``graph`` with equal names, metadata and input and output structure."""
    result = Graph(tracer_cls=graph._tracer_cls)
    mapped: dict[Node, Node] = {} if node_map is None else node_map
    for node in graph.nodes:
        mapped[node] = copy_node(node, result, mapped.__getitem__)
    result.set_codegen(copy.copy(graph._codegen))
    return result


def copy_tree(source: nn.Module, target: nn.Module) -> None:
    """Registers in ``target`` all of ``source``: containers copied, everything else shared."""
    _copy_level(source, target, {})


def is_container(module: nn.Module) -> bool:
    """Tells whether a module only holds others, as the tracer builds them."""
    return type(module) is nn.Module


def own_tensors(graph_module: TracedModule) -> None:
    """Replaces every parameter and buffer by a copy; modules and ties stay as they were.

    Leaf modules are copied too, since they may be shared with the module this one came from.
    """
    memo: dict[int, object] = {}
    for name in ("_parameters", "_buffers", "_modules"):
        graph_module.__dict__[name] = copy.deepcopy(graph_module.__dict__[name], memo)
    graph_module.shares_parameters = False


def container_at(root: nn.Module, path: str) -> nn.Module:
    """Returns the module at ``path``, making the containers on the way that do not exist."""
    module = root
    for name in filter(None, path.split(".")):
        child = module._modules.get(name)
        if child is None:
            child = nn.Module()
            child.training = root.training
            module._modules[name] = child
        module = child
    return module


def with_own_modules(
    source: GraphModule, *, deferred: bool = False, shares_layers: bool = False
) -> TracedModule:
    """Returns a copy whose module objects and buffers are its own and whose parameters are shared.

    What a deep copy that is told to keep parameters gives, in a third of the time.

    Args:
        source: What to copy.
        deferred: Whether to put off writing Python code, see ``TracedModule.finish``.
        shares_layers: Whether torch's own layers stay the very objects of the source, as they do
            in a structural copy, and only fused modules, quantizers and the like are copied.
    """
    memo: dict[int, object] = {}
    for module in source.modules():
        memo.update((id(held), held) for held in module._parameters.values() if held is not None)
        if shares_layers and _is_layer(module):
            memo[id(module)] = module
    result = TracedModule(deferred=True)
    memo[id(source)] = result
    _copy_attributes(source, result, memo, ("_parameters", "_buffers", "_modules"))
    result._non_persistent_buffers_set.update(source._non_persistent_buffers_set)
    result.shares_parameters = True
    _take_over(source, result, copy_graph(source.graph))
    return result if deferred else result.finish()


def _own(value: object, memo: dict[int, object]) -> object:
    """Returns a deep copy of an attribute of a module; plain modules are copied by hand."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    kind = type(value)
    if kind in (dict, OrderedDict, set, tuple, list) and not value:
        return cast("object", kind())
    if id(value) in memo:
        return memo[id(value)]
    if kind in (dict, OrderedDict):
        made_dict = cast("dict[object, object]", kind())
        for key, item in cast("dict[object, object]", value).items():
            made_dict[key] = _own(item, memo)
        return made_dict
    if kind is tuple:
        return tuple(_own(item, memo) for item in cast("tuple[object, ...]", value))
    if not isinstance(value, nn.Module) or not _is_plain(type(value)):
        return copy.deepcopy(value, memo)
    made = type(value).__new__(type(value))
    memo[id(value)] = made
    _copy_attributes(value, made, memo, tuple(value.__dict__))
    return made


def _copy_attributes(
    source: nn.Module, target: nn.Module, memo: dict[int, object], names: Iterable[str]
) -> None:
    for name in names:
        target.__dict__[name] = _own(source.__dict__[name], memo)


def _is_layer(module: nn.Module) -> bool:
    """Tells whether a module is one of torch's own that holds no other modules."""
    kind = type(module)
    is_torch = kind.__module__.startswith("torch.nn.modules.")
    return is_torch and not module._modules and kind is not nn.Module


def _is_plain(kind: type[nn.Module]) -> bool:
    """Tells whether instances hold nothing but their attributes, so that these may be copied."""
    custom = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__copy__")
    return all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in custom)


def _take_over(source: GraphModule, result: TracedModule, graph: Graph) -> None:
    result.graph = graph
    result.meta = _copy_meta(source.meta)
    result.training = source.training
    _copy_hooks(source, result)


def _copy_meta(meta: Mapping[str, object]) -> dict[str, object]:
    return {key: copy.copy(value) for key, value in meta.items()}


def _copy_level(source: nn.Module, target: nn.Module, containers: dict[int, nn.Module]) -> None:
    target._parameters.update(source._parameters)
    target._buffers.update(source._buffers)
    target._non_persistent_buffers_set.update(source._non_persistent_buffers_set)
    for name, child in source._modules.items():
        target._modules[name] = None if child is None else _copy_child(child, containers)


def _copy_child(child: nn.Module, containers: dict[int, nn.Module]) -> nn.Module:
    if not is_container(child) and not isinstance(child, GraphModule):
        return child
    known = containers.get(id(child))
    if known is not None:
        return known
    if isinstance(child, GraphModule):
        # The body of a condition or loop: rewriting reaches into it.
        body = containers[id(child)] = structural_copy(child)
        body.shares_parameters = False
        return body
    known = containers[id(child)] = nn.Module()
    known.training = child.training
    _copy_level(child, known, containers)
    _copy_hooks(child, known)
    return known


def _copy_hooks(source: nn.Module, target: nn.Module) -> None:
    names: Iterable[str] = (
        "_state_dict_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
    )
    for name in names:
        target.__dict__[name].update(source.__dict__[name])
