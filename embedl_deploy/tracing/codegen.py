"""The calling convention of a traced graph: names, nesting and classes of the model's own."""

from collections.abc import Sequence
from typing import cast

from torch.fx import _pytree as fx_pytree
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree
from torch.utils._pytree import TreeSpec

from embedl_deploy.tracing.structures import Template, pack, unpack

_FLATTEN = "fx_pytree.tree_flatten_spec("
_UNFLATTEN = "pytree.tree_unflatten("


class StructuredCodeGen(_PyTreeCodeGen):
    """A ``_PyTreeCodeGen`` that also takes and returns classes unknown to pytree."""

    def __init__(self, pytree_info: _PyTreeInfo, outputs: Template | None) -> None:
        super().__init__(pytree_info)
        self.outputs = outputs

    def additional_globals(self) -> list[tuple[str, object]]:
        return [
            *super().additional_globals(),
            ("_flatten_inputs", _flatten_inputs),
            ("_rebuild_outputs", self._rebuild_outputs),
        ]

    def gen_var_bindings(
        self, fn_args: list[str], free_vars: list[str], expanded_def: bool
    ) -> str:
        code = super().gen_var_bindings(fn_args, free_vars, expanded_def)
        return code.replace(_FLATTEN, "_flatten_inputs(", 1)

    def generate_output(self, output_args: object, **options: object) -> str:
        code = super().generate_output(output_args, **options)  # pyright: ignore[reportArgumentType]  # passed on as received
        return code.replace(_UNFLATTEN, "_rebuild_outputs(", 1)

    def process_inputs(self, *inputs: object) -> object:
        return pytree.arg_tree_leaves(*cast("tuple[object, ...]", pack(inputs)[0]))

    def process_outputs(self, out: object) -> object:
        return unpack(super().process_outputs(out), self.outputs)

    def _rebuild_outputs(self, leaves: Sequence[object], spec: TreeSpec) -> object:
        return unpack(pytree.tree_unflatten(leaves, spec), self.outputs)


def _flatten_inputs(inputs: object, spec: TreeSpec) -> list[object]:
    return fx_pytree.tree_flatten_spec(pack(inputs)[0], spec)
