"""Writes out ``torch.vmap``: the operations between its entry and its exit, on whole batches."""

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import Argument, map_arg

from embedl_deploy.tracing.program import Program, State

_ENTER = "_vmap_increment_nesting"
_EXIT = "_vmap_decrement_nesting"
_LOAD = "lazy_load_decompositions"


def write_out_vmap(program: Program) -> None:
    """Replaces every vmap region of ``program`` by plain ATen operations."""
    for region in _regions(program):
        _replace(program, region)
    for node in list(program.graph.nodes):
        if _name(node) == _LOAD and not node.users:
            program.graph.erase_node(node)


def _regions(program: Program) -> list[list[Node]]:
    regions: list[list[Node]] = []
    depth = 0
    for node in program.graph.nodes:
        name = _name(node)
        if name == _ENTER:
            if depth == 0:
                regions.append([])
            depth += 1
        if depth:
            regions[-1].append(node)
        if name == _EXIT:
            depth -= 1
    return regions


def _name(node: Node) -> str:
    return str(getattr(node.target, "__name__", "")) if node.op == "call_function" else ""


def _replace(program: Program, region: list[Node]) -> None:
    inside = dict.fromkeys(region)
    read = dict.fromkeys(
        source for node in region for source in node.all_input_nodes if source not in inside
    )
    inputs = [node for node in read if str(node.target) not in program.attributes]
    outputs = [node for node in region if any(user not in inside for user in node.users)]
    if not outputs:
        # A mask that the model made and then did without.
        for node in reversed(region):
            program.graph.erase_node(node)
        return
    run = _runner(program, region, inputs, outputs)
    traced = make_fx(run)(*(node.meta.get("val") for node in inputs))
    mapped: dict[Node, Node] = {}
    sources = iter(inputs)
    with program.graph.inserting_before(region[-1]):
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                mapped[node] = next(sources)
            elif node.op == "output":
                results = cast("Sequence[Node]", node.args[0])
                for old, new in zip(outputs, results, strict=True):
                    old.replace_all_uses_with(mapped[new], lambda user: user not in inside)
            else:
                mapped[node] = program.graph.node_copy(node, mapped.__getitem__)
                _complete(program, mapped[node], node, traced, outputs[0])
    for node in reversed(region):
        program.graph.erase_node(node)


def _runner(
    program: Program, region: list[Node], inputs: list[Node], outputs: list[Node]
) -> Callable[..., list[object]]:
    """Returns the function that runs ``region`` on the values of ``inputs``."""

    def run(*values: object) -> list[object]:
        known: dict[Node, object] = dict(zip(inputs, values, strict=True))

        def value(node: Node) -> Argument:
            found = known[node] if node in known else program.attributes[str(node.target)]
            return cast("Argument", found)

        for node in region:
            if node.op == "get_attr":
                continue
            args = cast("tuple[object, ...]", map_arg(node.args, value))
            kwargs = cast("dict[str, object]", map_arg(node.kwargs, value))
            known[node] = cast("Callable[..., object]", node.target)(*args, **kwargs)
        return [known[node] for node in outputs]

    return run


def _complete(program: Program, copied: Node, node: Node, traced: object, like: Node) -> None:
    """Gives a new node the place in the user's code that its region has."""
    for key in ("nn_module_stack", "stack_trace"):
        if key in like.meta:
            copied.meta[key] = like.meta[key]
    value: object = getattr(traced, str(node.target), None) if node.op == "get_attr" else None
    if isinstance(value, Tensor):
        name = f"_vmap_constant_{len(program.state)}"
        program.state[name] = State(value, persistent=False, lifted=True)
        copied.target = name
