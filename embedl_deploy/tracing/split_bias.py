"""Takes apart linear calls whose bias is no parameter, so that their weight finds its module."""

import torch
from torch import nn
from torch.fx import Node

from embedl_deploy.graph.nodes import bound_arguments
from embedl_deploy.tracing.program import Program, State


def split_computed_biases(program: Program) -> None:
    """Spells ``linear(x, weight, bias)`` with a computed bias as ``linear(x, weight) + bias``.

    A module registers its bias, so a call with one that is put together on the way (the query,
    key and value biases of BEiT, joined) or is a buffer could be no module. A bias of constant
    zeros, as VideoMAE gives its keys, is left out. Exact up to the rounding of the sum.
    """
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default):
        bound = bound_arguments(node)
        x, weight, bias = bound["input"], bound["weight"], bound["bias"]
        if not isinstance(bias, Node) or not _is_parameter(weight, program):
            continue
        if _is_parameter(bias, program):
            continue
        with program.graph.inserting_before(node):
            product = total = program.graph.call_function(node.target, (x, weight))
            if not _is_always_zero(bias, program):
                total = program.graph.call_function(torch.ops.aten.add.Tensor, (product, bias))
        for made in (product, total):
            made.meta = dict(node.meta)
        node.replace_all_uses_with(total)
        program.graph.erase_node(node)


def _is_parameter(argument: object, program: Program) -> bool:
    state = _state_of(argument, program)
    return state is not None and isinstance(state.tensor, nn.Parameter)


def _is_always_zero(bias: Node, program: Program) -> bool:
    """Tells whether a bias is zero and no ``state_dict`` can make it anything else."""
    state = _state_of(bias, program)
    if state is None or state.persistent or state.tensor.requires_grad:
        return False
    return not bool(state.tensor.any())


def _state_of(argument: object, program: Program) -> State | None:
    if not isinstance(argument, Node) or argument.op != "get_attr":
        return None
    return program.state.get(str(argument.target))
