"""Removes copies and aliases of a tensor that is never written."""

import torch
from torch import Tensor
from torch.fx import Node

from embedl_deploy.graph.nodes import bound_arguments, value_of
from embedl_deploy.rewriting import Chain, Op, Pattern, PatternMatch, Phase, Refusal

_ATEN = torch.ops.aten
_KEPT_FORMATS = (None, torch.preserve_format)


def _keeps_layout(node: Node) -> bool:
    """Tells whether the copy lies in memory as the original does."""
    wanted = bound_arguments(node).get("memory_format")
    value = value_of(node.all_input_nodes[0])
    if not isinstance(value, Tensor):
        return False
    is_contiguous = node.target is _ATEN.contiguous.default
    if not is_contiguous and wanted in _KEPT_FORMATS:
        return True
    return wanted in (*_KEPT_FORMATS, torch.contiguous_format) and value.is_contiguous()


class RemoveNoOpCopy(Pattern):
    """Removes ``clone``, ``contiguous`` and ``alias`` where the layout stays as it is.

    Exact: graphs have no writes, so that nothing can tell a tensor from its copy. A copy of an
    input that is returned as it is stays, since the caller may write to it.
    """

    phase = Phase.CONVERSION
    tree = Chain(
        copy=(
            _ATEN.alias.default,
            Op(_ATEN.clone.default, where=_keeps_layout),
            Op(_ATEN.contiguous.default, where=_keeps_layout),
        )
    )

    def check(self, match: PatternMatch) -> Refusal | None:
        original = match.root.all_input_nodes[0]
        is_returned = any(reader.op == "output" for reader in match.root.users)
        if is_returned and original.op in ("placeholder", "get_attr"):
            return Refusal(f"the copy of %{original.name} is returned to the caller", match.root)
        return None

    def replace(self, match: PatternMatch) -> Node:
        return match.root.all_input_nodes[0]
