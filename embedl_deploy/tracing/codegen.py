# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""The calling convention of a traced graph: names, nesting and classes of the model's own."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor
from torch.fx import Graph
from torch.fx import _pytree as fx_pytree
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree
from torch.utils._pytree import TreeSpec

from embedl_deploy.errors import InputError
from embedl_deploy.tracing.structures import Template, pack, unpack

_FLATTEN = "fx_pytree.tree_flatten_spec("
_UNFLATTEN = "pytree.tree_unflatten("

Fixed = tuple[tuple[int, str, object], ...]


class StructuredCodeGen(_PyTreeCodeGen):
    """A ``_PyTreeCodeGen`` that takes classes unknown to pytree and checks inputs without tensors.

    An input that is a number, a string or None was read while tracing and is part of the graph:
    another value is an error, not another result.
    """

    def __init__(self, pytree_info: _PyTreeInfo, outputs: Template | None, fixed: Fixed) -> None:
        super().__init__(pytree_info)
        self.outputs = outputs
        """How to rebuild the outputs; None where pytree can."""
        self.fixed = fixed
        """Position among the flat inputs, name and value of each input that is fixed."""

    def additional_globals(self) -> list[tuple[str, object]]:
        return [
            *super().additional_globals(),
            ("_flatten_inputs", self.flatten_inputs),
            ("_rebuild_outputs", self.rebuild_outputs),
        ]

    def gen_var_bindings(self, fn_args: list[str], free_vars: list[str], expanded_def: bool) -> str:
        code = super().gen_var_bindings(fn_args, free_vars, expanded_def)
        return code.replace(_FLATTEN, "_flatten_inputs(", 1)

    def generate_output(self, output_args: object, **options: object) -> str:
        code = super().generate_output(output_args, **options)  # pyright: ignore[reportArgumentType]  # passed on as received
        return code.replace(_UNFLATTEN, "_rebuild_outputs(", 1)

    def process_inputs(self, *inputs: object) -> object:
        return super().process_inputs(*cast("tuple[object, ...]", pack(inputs)[0]))

    def process_outputs(self, out: object) -> object:
        return unpack(super().process_outputs(out), self.outputs)

    def flatten_inputs(self, inputs: object, spec: TreeSpec) -> list[object]:
        """Returns the flat inputs of a call.

        Raises:
            InputError: An input that the graph was traced for has another value.
        """
        leaves: list[object] = fx_pytree.tree_flatten_spec(pack(inputs)[0], spec)
        for position, name, value in self.fixed:
            given = leaves[position]
            if isinstance(given, Tensor) or (given is not value and given != value):
                raise InputError(
                    f"input {name!r} was {value!r} when the model was traced and is part of the "
                    f"graph, got {given!r}: trace again for another value"
                )
        return leaves

    def rebuild_outputs(self, leaves: Sequence[object], spec: TreeSpec) -> object:
        """Returns the outputs as the model returned them."""
        return unpack(pytree.tree_unflatten(leaves, spec), self.outputs)


def complete_codegen(graph: Graph, outputs: Template | None, packed_inputs: bool = False) -> None:
    """Gives ``graph`` a ``StructuredCodeGen`` where pytree alone would not do."""
    placeholders = graph.find_nodes(op="placeholder")
    fixed = tuple(
        (position, node.name, node.meta["val"])
        for position, node in enumerate(placeholders)
        if isinstance(node.meta.get("val", node), (bool, int, float, str, type(None)))
    )
    codegen = graph._codegen
    if isinstance(codegen, _PyTreeCodeGen) and (packed_inputs or outputs is not None or fixed):
        graph.set_codegen(StructuredCodeGen(codegen.pytree_info, outputs, fixed))
