# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""A flat ATen graph together with the tensors it reads, before it becomes a module again."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils._pytree import TreeSpec

from embedl_deploy.errors import TracingError
from embedl_deploy.graph.record import GraphRecord, has_record, record_of
from embedl_deploy.tracing.ranges import declared_ranges

_STATE_KINDS = (
    InputKind.PARAMETER,
    InputKind.BUFFER,
    InputKind.CONSTANT_TENSOR,
    InputKind.CUSTOM_OBJ,
)


@dataclass(frozen=True)
class State:
    """One parameter, buffer or constant of a program."""

    tensor: Tensor

    persistent: bool
    """Whether it belongs to the ``state_dict``."""

    lifted: bool = False
    """Whether it is a literal of the forward code rather than an attribute of the model."""


@dataclass
class Program:
    """A graph whose parameters, buffers and constants are ``get_attr`` nodes."""

    graph: Graph

    state: dict[str, State]
    """By fully qualified name, in the order of the model's ``state_dict``."""

    attributes: dict[str, object]
    """What else ``get_attr`` nodes may name: the bodies of higher-order operations, objects."""

    origin: nn.Module | None
    """The model that was traced, where there is one: train and eval flags are read from it."""

    record: GraphRecord = field(default_factory=GraphRecord)

    def __post_init__(self) -> None:
        if self.record.signature is None and isinstance(self.origin, nn.Module):
            self.record.signature = _forward_signature(self.origin)

    def names_of(self) -> dict[int, list[str]]:
        """Returns every name of each tensor, by ``id``: tied tensors have several."""
        names: dict[int, list[str]] = {}
        for name, state in self.state.items():
            names.setdefault(id(state.tensor), []).append(name)
        return names


def _forward_signature(model: nn.Module) -> inspect.Signature | None:
    """Returns names, kinds and defaults of what ``forward`` takes, without annotations."""
    if isinstance(model, GraphModule):
        return record_of(model).signature if has_record(model) else None
    parameters = inspect.signature(model.forward).parameters.values()
    bare = [inspect.Parameter(p.name, p.kind, default=p.default) for p in parameters]
    return inspect.Signature(bare)


def program_of_export(exported: ExportedProgram, origin: nn.Module | None) -> Program:
    """Returns the program that ``exported`` holds, around the tensors of ``origin`` if given."""
    signature = exported.graph_signature
    _check_outputs(exported)
    specs = iter(signature.input_specs)
    graph = Graph()
    mapped: dict[Node, Node] = {}
    attributes: dict[str, object] = {}
    for node in exported.graph.nodes:
        spec = next(specs) if node.op == "placeholder" else None
        if spec is not None and spec.kind in _STATE_KINDS:
            mapped[node] = _state_node(graph, node, str(spec.target))
        else:
            mapped[node] = graph.node_copy(node, mapped.__getitem__)
        if node.op == "get_attr":
            name = str(node.target)
            attributes[name] = _attribute(exported.graph_module, name)
    state = _state_of_origin(origin) if origin is not None else {}
    _add_exported_state(exported, signature.input_specs, state, attributes)
    graph.set_codegen(_codegen(exported))
    record = GraphRecord(range_constraints=declared_ranges(exported))
    tied = _with_ties(state) if origin is None else state
    return Program(graph, tied, attributes, origin, record)


def program_of_graph_module(graph_module: GraphModule) -> Program:
    """Returns the program in the result of ``ExportedProgram.module()``."""
    graph = Graph()
    mapped: dict[Node, Node] = {}
    attributes: dict[str, object] = {}
    state = _state_of_origin(graph_module)
    for node in graph_module.graph.nodes:
        if node.op == "call_module" and str(node.target) == "_guards_fn":
            continue
        mapped[node] = graph.node_copy(node, mapped.__getitem__)
        name = str(node.target)
        if node.op == "get_attr" and name not in state:
            value = _attribute(graph_module, name)
            if isinstance(value, Tensor):
                state[name] = State(value, persistent=False, lifted=True)
            else:
                attributes[name] = value
    graph.set_codegen(graph_module.graph._codegen)
    return Program(graph, _with_ties(state), attributes, None)


def modules_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields every path of ``model`` with its module; a shared module has several paths."""
    yield from cast("Iterator[tuple[str, nn.Module]]", model.named_modules(remove_duplicate=False))


def _check_outputs(exported: ExportedProgram) -> None:
    for spec in exported.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise TracingError(
                f"the program writes to {spec.target!r} in every call ({spec.kind.name}): a traced "
                "graph keeps no state between calls. Call eval() before exporting the model, or "
                "give what torch.export.export returned, before run_decompositions"
            )


def _state_node(graph: Graph, node: Node, name: str) -> Node:
    attribute = graph.create_node("get_attr", name, name=name.replace(".", "_"))
    attribute.meta = dict(node.meta)
    return attribute


def _attribute(owner: object, name: str) -> object:
    for part in name.split("."):
        owner = getattr(owner, part)
    return owner


def _state_of_origin(origin: nn.Module) -> dict[str, State]:
    state: dict[str, State] = {}
    for path, module in modules_of(origin):
        prefix = f"{path}." if path else ""
        for name, tensor in _direct_tensors(module):
            persistent = name not in module._non_persistent_buffers_set
            state[prefix + name] = State(tensor, persistent)
    return state


def _direct_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    named: tuple[Mapping[str, Tensor | None], ...] = (module._parameters, module._buffers)
    for group in named:
        for name, tensor in group.items():
            if tensor is not None:
                yield name, tensor


def _add_exported_state(
    exported: ExportedProgram,
    specs: list[InputSpec],
    state: dict[str, State],
    attributes: dict[str, object],
) -> None:
    buffers = set(exported.graph_signature.inputs_to_buffers.values())
    for name, tensor in exported.state_dict.items():
        if isinstance(tensor, Tensor):
            state.setdefault(name, State(tensor, persistent=True))
    for spec in specs:
        if spec.kind not in _STATE_KINDS or spec.target is None or spec.target in state:
            continue
        value = exported.constants.get(spec.target)
        if isinstance(value, Tensor):
            state[spec.target] = State(value, persistent=False, lifted=spec.target not in buffers)
        else:
            attributes[spec.target] = value


def _with_ties(state: dict[str, State]) -> dict[str, State]:
    """Makes one parameter of those that share one storage: saving a program separates them."""
    first: dict[tuple[object, ...], Tensor] = {}
    tied: dict[str, State] = {}
    for name, entry in state.items():
        tensor = entry.tensor
        if not isinstance(tensor, nn.Parameter) or tensor.numel() == 0 or tensor.is_meta:
            tied[name] = entry
            continue
        layout = (tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)
        key = (tensor.data_ptr(), *layout)
        tied[name] = State(first.setdefault(key, tensor), entry.persistent, entry.lifted)
    return tied


def _codegen(exported: ExportedProgram) -> _PyTreeCodeGen:
    in_spec = cast("TreeSpec", exported.call_spec.in_spec)
    signature = exported.module_call_graph[0].signature
    names = list(signature.forward_arg_names or []) if signature is not None else []
    if not names:
        positional, keyword = in_spec.child(0), in_spec.child(1)
        names = [f"arg_{i}" for i in range(positional.num_children)]
        names.extend(cast("list[str]", keyword.context))
    return _PyTreeCodeGen(_PyTreeInfo(names, in_spec, exported.call_spec.out_spec))
