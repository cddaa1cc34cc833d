"""Lifts the bodies of conditions, loops and scans."""

from torch.fx import GraphModule

from embedl_deploy.graph.traced_module import TracedModule, structural_copy
from embedl_deploy.tracing.clean import name_sizes, remove_asserts, views_as_reshapes
from embedl_deploy.tracing.functional import make_functional
from embedl_deploy.tracing.lift import lift
from embedl_deploy.tracing.module_tree import register
from embedl_deploy.tracing.program import Program

_NOTE = (
    "layers inside conditions and loops keep their weights as operands, which torch's own "
    "operations need for gradients: they stay ATen calls there and are not fused or quantized"
)


def lift_bodies(program: Program) -> None:
    """Turns activations, pools and the like inside bodies into modules; weights stay operands."""
    for name, body in list(program.attributes.items()):
        if isinstance(body, GraphModule):
            program.attributes[name] = _lifted(body, program)
            if _NOTE not in program.record.notes:
                program.record.notes.append(_NOTE)


def _lifted(body: GraphModule, outer: Program) -> TracedModule:
    result = structural_copy(body, deferred=True)
    result.shares_parameters = False
    children: dict[str, object] = dict(body.named_children())
    program = Program(result.graph, {}, children, outer.origin)
    remove_asserts(program.graph)
    make_functional(program)
    views_as_reshapes(program.graph)
    name_sizes(program.graph)
    lift_bodies(program)
    for path, child in program.attributes.items():
        if isinstance(child, GraphModule):
            register(result, path, child)
    for path, made in lift(program).items():
        register(result, path, made.build())
    return result.finish()
