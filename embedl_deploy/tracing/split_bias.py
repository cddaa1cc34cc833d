"""Takes apart linear calls whose bias is no parameter, so that their weight finds its module."""

import torch
from torch import nn
from torch.fx import Node

from embedl_deploy.graph.nodes import bound_arguments
from embedl_deploy.tracing.program import Program


def split_computed_biases(program: Program) -> None:
    """Spells ``linear(x, weight, bias)`` with a computed bias as ``linear(x, weight) + bias``.

    A module registers its bias, so a call with one that is put together on the way (the query,
    key and value biases of BEiT, joined) could be no module. Exact up to the rounding of the sum.
    """
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default):
        bound = bound_arguments(node)
        x, weight, bias = bound["input"], bound["weight"], bound["bias"]
        if isinstance(bias, Node) and _is_parameter(weight, program) and bias.op != "get_attr":
            with program.graph.inserting_before(node):
                product = program.graph.call_function(node.target, (x, weight))
                total = program.graph.call_function(torch.ops.aten.add.Tensor, (product, bias))
            for made in (product, total):
                made.meta = dict(node.meta)
            node.replace_all_uses_with(total)
            program.graph.erase_node(node)


def _is_parameter(argument: object, program: Program) -> bool:
    if not isinstance(argument, Node) or argument.op != "get_attr":
        return False
    state = program.state.get(str(argument.target))
    return state is not None and isinstance(state.tensor, nn.Parameter)
