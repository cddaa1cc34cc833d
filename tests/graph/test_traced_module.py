import copy

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy.graph import TracedModule, graph_text, record_of, structural_copy
from embedl_deploy.graph.traced_module import own_tensors, with_own_modules
from embedl_deploy.modules import FusedConv
from embedl_deploy.patterns.fusion import FuseConvNormActivation
from embedl_deploy.rewriting import apply_patterns
from embedl_deploy.tracing import trace

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm2d(3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.first(self.second(x))))


def fail(module: nn.Module, args: object) -> None:
    raise RuntimeError(f"hooked {type(module).__name__} on {type(args).__name__}")


def fused() -> tuple[nn.Module, TracedModule]:
    model = Tied().eval()
    graph_module = trace(model, (IMAGE,))
    assert isinstance(graph_module, TracedModule)
    assert len(apply_patterns(graph_module, [FuseConvNormActivation]).applied) == 1
    return model, graph_module.finish()


def fused_module(graph_module: nn.Module) -> FusedConv:
    (found,) = [module for module in graph_module.modules() if isinstance(module, FusedConv)]
    return found


def test_a_deep_copy_keeps_what_no_node_reads() -> None:
    model, graph_module = fused()

    copied = copy.deepcopy(graph_module)

    assert list(copied.state_dict()) == list(graph_module.state_dict())
    assert set(copied.state_dict()) == set(model.state_dict())
    assert torch.equal(copied(IMAGE), model(IMAGE))
    assert graph_text(copied) == graph_text(graph_module)


def test_a_deep_copy_shares_nothing_and_keeps_ties_and_parts() -> None:
    _, graph_module = fused()

    copied = copy.deepcopy(graph_module)

    before = {id(value) for value in graph_module.parameters()}
    assert not before & {id(value) for value in copied.parameters()}
    assert copied.get_parameter("first.weight") is copied.get_parameter("second.weight")
    assert fused_module(copied).parts[0] is copied.get_submodule("first")
    record_of(copied).notes.append("a note")
    assert not record_of(graph_module).notes


def test_training_owns_the_parameters_first() -> None:
    model, graph_module = fused()
    assert graph_module.shares_parameters

    graph_module.train()

    assert not graph_module.shares_parameters
    originals = {id(value) for value in (*model.parameters(), *model.buffers())}
    assert not originals & {id(value) for value in graph_module.parameters()}
    assert fused_module(graph_module).parts[0] is graph_module.get_submodule("first")
    assert graph_module.get_submodule("norm").training
    assert not model.training
    graph_module(IMAGE)
    assert not torch.equal(
        graph_module.get_buffer("norm.running_mean"), model.get_buffer("norm.running_mean")
    )


def test_eval_keeps_sharing() -> None:
    _, graph_module = fused()

    graph_module.eval()

    assert graph_module.shares_parameters


def test_a_structural_copy_shares_leaves_and_owns_its_graph() -> None:
    _, graph_module = fused()
    nodes: dict[Node, Node] = {}

    copied = structural_copy(graph_module, node_map=nodes)
    copied.add_module("extra", nn.ReLU())
    record_of(copied).key_map["a"] = ()

    assert copied.get_submodule("first") is graph_module.get_submodule("first")
    assert not hasattr(graph_module, "extra")
    assert not record_of(graph_module).key_map
    assert list(nodes) == list(graph_module.graph.nodes)
    assert list(nodes.values()) == list(copied.graph.nodes)


def test_own_tensors_keeps_values_and_ties() -> None:
    _, graph_module = fused()
    weight = graph_module.get_parameter("first.weight")

    own_tensors(graph_module)

    assert graph_module.get_parameter("first.weight") is not weight
    assert torch.equal(graph_module.get_parameter("first.weight"), weight)
    assert graph_module.get_parameter("first.weight") is graph_module.get_parameter("second.weight")


def test_a_copy_with_own_modules_shares_parameters_only() -> None:
    _, graph_module = fused()

    copied = with_own_modules(graph_module)

    assert [id(value) for value in copied.parameters()] == [
        id(value) for value in graph_module.parameters()
    ]
    assert not {id(v) for v in copied.buffers()} & {id(v) for v in graph_module.buffers()}
    assert copied.get_submodule("first") is not graph_module.get_submodule("first")
    assert fused_module(copied).parts[0] is copied.get_submodule("first")
    assert copied.shares_parameters
    assert list(copied.state_dict()) == list(graph_module.state_dict())
    assert torch.equal(copied(IMAGE), graph_module(IMAGE))


def test_a_copy_with_own_modules_has_hooks_of_its_own() -> None:
    _, graph_module = fused()

    copied = with_own_modules(graph_module)
    copied.get_submodule("first").register_forward_pre_hook(fail)

    graph_module(IMAGE)
    with pytest.raises(RuntimeError, match="hooked"):
        copied(IMAGE)


def test_the_result_exports_again() -> None:
    model, graph_module = fused()

    program = torch.export.export(graph_module, (IMAGE,))

    torch.testing.assert_close(program.module()(IMAGE), model(IMAGE))


def test_code_is_written_when_it_is_asked_for() -> None:
    model, graph_module = fused()
    copied = structural_copy(graph_module, deferred=True)
    (output,) = copied.graph.find_nodes(op="output")
    output.args = ((next(iter(copied.graph.find_nodes(op="placeholder"))),),)

    copied.finish()

    assert torch.equal(copied(IMAGE), IMAGE)
    assert torch.equal(graph_module(IMAGE), model(IMAGE))
