"""Casts what a graph computes in float32 to a shorter float type, products first."""

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from embedl_deploy.engines.integer_graph import is_quantization, operation
from embedl_deploy.graph.nodes import dtype_of
from embedl_deploy.graph.values import infer_value

_PRODUCTS = frozenset(
    {
        "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d",
        "conv_transpose3d", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum",
        "scaled_dot_product_attention", "layer_norm", "group_norm", "batch_norm", "instance_norm",
    }
)  # fmt: skip
"""What runs in the short type: its float32 operands are cast. All else follows its operands."""

_FLOAT32_ONLY = (
    "linalg_", "_linalg_", "cholesky", "qr", "svd", "lu_", "triangular_solve", "ormqr", "geqrf",
    "fft_", "_fft_", "stft", "istft", "histc", "multinomial",
)  # fmt: skip
"""How the names of operations begin that have no kernel in short types on the CPU."""


def cast_rest(graph_module: GraphModule, dtype: torch.dtype) -> None:
    """Makes products, norms and what follows from them run in ``dtype``.

    - Parameters are cast where they are read. Buffers, inputs and dequantized tensors are cast
      only for a product: masks and positions keep their range, and a residual that is added
      after an int8 convolution stays in the form that its kernel is found in.
    - An operation that ``dtype`` does not admit goes on in float32.
    - Outputs come back in the type they had.

    Outputs move by about the resolution of ``dtype``: 2⁻⁸ relative for bfloat16 and each value.
    """
    _Caster(graph_module, dtype).run()


class _Caster:
    """Walks the graph once, recording the new value of each node."""

    def __init__(self, graph_module: GraphModule, dtype: torch.dtype) -> None:
        self.graph_module = graph_module
        self.graph: Graph = graph_module.graph
        self.dtype = dtype
        self.casts: dict[tuple[Node, torch.dtype], Node] = {}
        names = graph_module.named_parameters(remove_duplicate=False)
        self.parameters = {name for name, _ in names}

    def run(self) -> None:
        outputs = self.graph.output_node()
        original = {node: dtype_of(node) for node in outputs.all_input_nodes}
        for node in tuple(self.graph.nodes):
            if node.op == "get_attr" and str(node.target) in self.parameters:
                self.follow(node)
            elif node.op == "call_function":
                self.call(node)
        for node, dtype in original.items():
            if dtype is not None and dtype_of(node) != dtype:
                outputs.replace_input_with(node, self.cast(node, dtype))
        self.graph.lint()
        self.graph_module.recompile()

    def call(self, node: Node) -> None:
        if is_quantization(node):
            return
        if operation(node) in _PRODUCTS:
            self.cast_operands(node, torch.float32, self.dtype)
        elif operation(node).startswith(_FLOAT32_ONLY):
            self.cast_operands(node, self.dtype, torch.float32)
        try:
            node.meta["val"] = infer_value(node)
        except (RuntimeError, TypeError, ValueError):
            self.cast_operands(node, self.dtype, torch.float32)
            node.meta["val"] = infer_value(node)

    def follow(self, node: Node) -> None:
        """Lets every reader of ``node`` but quantization read it in the short type."""
        if dtype_of(node) is not torch.float32:
            return
        readers = [user for user in node.users if not is_quantization(user)]
        for reader in readers:
            if reader.op != "output":
                reader.replace_input_with(node, self.cast(node, self.dtype))

    def cast_operands(self, node: Node, before: torch.dtype, after: torch.dtype) -> None:
        def cast(operand: Node) -> Node:
            return self.cast(operand, after) if dtype_of(operand) is before else operand

        node.args, node.kwargs = map_arg((node.args, node.kwargs), cast)

    def cast(self, node: Node, dtype: torch.dtype) -> Node:
        """Returns ``node`` in ``dtype``; one cast per node serves all readers."""
        known = self.casts.get((node, dtype))
        if known is not None:
            return known
        target = torch.ops.prims.convert_element_type.default
        with self.graph.inserting_before(_place_after(node)):
            read = self.bounded(node, dtype)
            result = self.graph.call_function(target, (read, dtype))
        result.meta = {key: value for key, value in node.meta.items() if key != "val"}
        result.meta["val"] = infer_value(result)
        self.casts[node, dtype] = result
        return result

    def bounded(self, node: Node, dtype: torch.dtype) -> Node:
        """Keeps a mask's lowest float32 from becoming -inf: a row of these would become NaN."""
        feeds_attention = any(
            operation(user) == "scaled_dot_product_attention" and node not in user.args[:3]
            for user in node.users
        )
        if not feeds_attention or dtype is torch.float32:
            return node
        result = self.graph.call_function(
            torch.ops.aten.clamp_min.default, (node, torch.finfo(dtype).min)
        )
        result.meta["val"] = infer_value(result)
        return result


def _place_after(node: Node) -> Node:
    following = node.next
    while following.op == "placeholder":
        following = following.next
    return following
