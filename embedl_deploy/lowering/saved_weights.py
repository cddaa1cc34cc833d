"""Which weights of a lowered model its file holds: without fallback, engines have their own."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import Node

from embedl_deploy.errors import CheckpointError
from embedl_deploy.lowering.assembly import Assembly
from embedl_deploy.lowering.graph_file import fields
from embedl_deploy.lowering.literals import Json, decode, encode


def left_out(assembly: Assembly, tensors: Mapping[str, Tensor], fallback: bool) -> tuple[str, ...]:
    """Returns the weights that nothing reads but engines that hold them themselves."""
    if fallback:
        return ()
    inside: dict[Node, str] = {
        node: subgraph.name for subgraph in assembly.partition.subgraphs for node in subgraph.nodes
    }
    read: dict[str, bool] = {}
    for node in assembly.core.module.graph.find_nodes(op="get_attr"):
        engines = [assembly.slots.get(inside.get(user, "")) for user in node.users]
        is_held = all(slot is not None and not slot.engine.needs_module for slot in engines)
        name = str(node.target)
        read[name] = read.get(name, True) and is_held
    return tuple(name for name, is_held in read.items() if is_held and name in tensors)


def described(tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> Json:
    """Returns types and shapes of the tensors that are left out."""
    return {name: [encode(tensors[name].dtype), list(tensors[name].shape)] for name in names}


def stand_ins(data: Json) -> dict[str, Tensor]:
    """Returns tensors without values in place of those that were left out.

    Raises:
        CheckpointError: The description is damaged.
    """
    found: dict[str, Tensor] = {}
    for name, described_as in fields(data, "table of weights left out").items():
        match described_as:
            case [saved_dtype, list() as sizes]:
                dtype = decode(saved_dtype)
                shape = [size for size in sizes if type(size) is int]
                if isinstance(dtype, torch.dtype) and len(shape) == len(sizes):
                    found[name] = torch.empty(shape, dtype=dtype, device="meta")
                    continue
            case _:
                pass
        raise CheckpointError(f"the description of weight {name[:80]} is damaged")
    return found
