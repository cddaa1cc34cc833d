# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Lifts the bodies of conditions, loops and scans."""

from torch._ops import HigherOrderOperator, OpOverload
from torch.fx import GraphModule, Node

from embedl_deploy.graph.nodes import bound_arguments, source_line
from embedl_deploy.graph.traced_module import TracedModule, structural_copy
from embedl_deploy.tracing.clean import name_sizes, remove_asserts, views_as_reshapes
from embedl_deploy.tracing.functional import make_functional
from embedl_deploy.tracing.inline import inline_blocks
from embedl_deploy.tracing.lift import lift
from embedl_deploy.tracing.lift_table import LIFT_TABLE
from embedl_deploy.tracing.module_tree import register
from embedl_deploy.tracing.program import Program

_NOTE = (
    "layers inside conditions, loops and autocast blocks keep their weights as operands, which "
    "torch's own operations need for gradients: they stay ATen calls there and are not fused or "
    "quantized"
)


def lift_bodies(program: Program) -> None:
    """Turns activations, pools and the like inside bodies into modules; weights stay operands.

    Dropout stays a call there: the body does not know which module of the model it was.
    """
    calls = _calls_of_bodies(program)
    for name, body in list(program.attributes.items()):
        if isinstance(body, GraphModule):
            program.attributes[name] = _lifted(body, program, calls.get(name))


def _calls_of_bodies(program: Program) -> dict[str, Node]:
    """Returns the operation that runs each body, by the body's name."""
    calls: dict[str, Node] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, HigherOrderOperator):
            bodies = [read for read in node.all_input_nodes if read.op == "get_attr"]
            calls.update((str(body.target), node) for body in bodies)
    return calls


def _lifted(body: GraphModule, outer: Program, call: Node | None) -> TracedModule:
    result = structural_copy(body, deferred=True)
    result.shares_parameters = False
    _name_sources(result, call)
    children = {name: child for name, child in result._modules.items() if child is not None}
    program = Program(result.graph, {}, dict(children), outer.origin, outer.record)
    inline_blocks(program)
    remove_asserts(program.graph)
    make_functional(program)
    views_as_reshapes(program.graph)
    name_sizes(program.graph)
    lift_bodies(program)
    modules = lift(program, in_body=True)
    result._modules.clear()
    for path, attribute in program.attributes.items():
        setattr(result, path, attribute)
    for path, made in modules.items():
        register(result, path, made.build())
    if _NOTE not in outer.record.notes and any(map(_is_layer, program.graph.nodes)):
        outer.record.notes.append(_NOTE)
    return result.finish()


def _name_sources(body: GraphModule, call: Node | None) -> None:
    """Gives nodes that come from code that torch wrote the line of the operation."""
    trace = None if call is None else call.meta.get("stack_trace")
    for node in body.graph.nodes:
        if node.op.startswith("call_") and (source_line(node) or "<").startswith("<"):
            node.meta["stack_trace"] = trace


def _is_layer(node: Node) -> bool:
    """Tells whether ``node`` computes a layer whose weight is an operand of its body."""
    if not isinstance(node.target, OpOverload) or node.target not in LIFT_TABLE:
        return False
    weight = bound_arguments(node).get("weight")
    return isinstance(weight, Node) and weight.op == "placeholder"
