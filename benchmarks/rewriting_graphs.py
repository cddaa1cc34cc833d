"""Large graphs of known structure, as exporting and as tracing would give them."""

from abc import ABC, abstractmethod

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import Argument, Target

from embedl_deploy.graph import TracedModule, record_of
from embedl_deploy.graph.traced_module import container_at

_ATEN = torch.ops.aten
_CHANNELS = 4
_IMAGE = (1, _CHANNELS, 4, 4)
_TOKENS = (1, 16, _CHANNELS)
_CONV_BLOCK, _TOKEN_BLOCK = 17, 11
"""Nodes of one block in an exported graph, reads of parameters and buffers included."""

_BLOCKS_PER_STAGE = 50


def lifted_graph(exported_nodes: int) -> TracedModule:
    """Returns what tracing makes of a model whose exported graph has that many nodes."""
    build = _Lifted()
    return build.finish(_network(build, exported_nodes))


def exported_graph(exported_nodes: int) -> GraphModule:
    """Returns the graph of ATen calls of the same model."""
    build = _Exported()
    return build.finish(_network(build, exported_nodes))


class _Build(ABC):
    """A graph under construction."""

    def __init__(self) -> None:
        self.root = TracedModule(deferred=True)
        self.graph: Graph = self.root.graph
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    @abstractmethod
    def layer(self, leaf: nn.Module, path: str, value: Node, shape: tuple[int, ...]) -> Node:
        """Adds the call of a layer."""

    def call(
        self, op: str, target: Target, args: tuple[Argument, ...], shape: tuple[int, ...], path: str
    ) -> Node:
        made = self.graph.create_node(op, target, args)
        with self.mode:
            made.meta["val"] = torch.empty(shape)
        line = f'  File "model.py", line {len(path)}, in forward\n    x = self.{path}(x)\n'
        made.meta["stack_trace"] = line
        made.meta["nn_module_stack"] = {path: (path, "torch.nn.modules.module.Module")}
        return made

    def finish(self, value: Node) -> TracedModule:
        self.graph.output(value)
        record_of(self.root)
        return self.root.eval().finish()

    def register(self, leaf: nn.Module, path: str) -> None:
        parent, _, name = path.rpartition(".")
        container_at(self.root, parent).add_module(name, leaf.eval())


class _Lifted(_Build):
    def layer(self, leaf: nn.Module, path: str, value: Node, shape: tuple[int, ...]) -> Node:
        self.register(leaf, path)
        return self.call("call_module", path, (value,), shape, path)


class _Exported(_Build):
    def layer(self, leaf: nn.Module, path: str, value: Node, shape: tuple[int, ...]) -> Node:
        self.register(leaf, path)
        state = {**dict(leaf.named_parameters()), **dict(leaf.named_buffers())}
        state.pop("num_batches_tracked", None)
        reads = [
            self.call("get_attr", f"{path}.{name}", (), tuple(tensor.shape), path)
            for name, tensor in state.items()
        ]
        if isinstance(leaf, nn.LayerNorm):
            args = (value, list(leaf.normalized_shape), *reads)
            return self.call("call_function", _ATEN.layer_norm.default, args, shape, path)
        target, rest = _ATEN_CALLS[type(leaf)]
        return self.call("call_function", target, (value, *reads, *rest), shape, path)


_ATEN_CALLS: dict[type[nn.Module], tuple[Target, tuple[Argument, ...]]] = {
    nn.Conv2d: (_ATEN.conv2d.default, (None, [1, 1], [1, 1])),
    nn.BatchNorm2d: (_ATEN.batch_norm.default, (False, 0.1, 1e-5, True)),
    nn.ReLU: (_ATEN.relu.default, ()),
    nn.Linear: (_ATEN.linear.default, ()),
    nn.GELU: (_ATEN.gelu.default, ()),
}


def _network(build: _Build, exported_nodes: int) -> Node:
    value = build.call("placeholder", "image", (), _IMAGE, "")
    for index in range(max(1, exported_nodes // 2 // _CONV_BLOCK)):
        value = _conv_block(build, value, _path("stages", index))
    shape: list[Argument] = list(_TOKENS)
    value = build.call("call_function", _ATEN.view.default, (value, shape), _TOKENS, "")
    for index in range(max(1, exported_nodes // 2 // _TOKEN_BLOCK)):
        value = _token_block(build, value, _path("layers", index))
    return value


def _path(name: str, index: int) -> str:
    return f"{name}.{index // _BLOCKS_PER_STAGE}.{index % _BLOCKS_PER_STAGE}"


def _conv_block(build: _Build, value: Node, path: str) -> Node:
    skip = value
    for step in (1, 2):
        conv = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, bias=False)
        value = build.layer(conv, f"{path}.conv{step}", value, _IMAGE)
        value = build.layer(nn.BatchNorm2d(_CHANNELS), f"{path}.norm{step}", value, _IMAGE)
        if step == 1:
            value = build.layer(nn.ReLU(), f"{path}.relu1", value, _IMAGE)
    value = build.call("call_function", _ATEN.add.Tensor, (value, skip), _IMAGE, path)
    return build.layer(nn.ReLU(), f"{path}.relu2", value, _IMAGE)


def _token_block(build: _Build, value: Node, path: str) -> Node:
    skip = value
    value = build.layer(nn.LayerNorm(_CHANNELS), f"{path}.norm", value, _TOKENS)
    value = build.layer(nn.Linear(_CHANNELS, _CHANNELS), f"{path}.up", value, _TOKENS)
    value = build.layer(nn.GELU(), f"{path}.act", value, _TOKENS)
    value = build.layer(nn.Linear(_CHANNELS, _CHANNELS), f"{path}.down", value, _TOKENS)
    return build.call("call_function", _ATEN.add.Tensor, (skip, value), _TOKENS, path)
