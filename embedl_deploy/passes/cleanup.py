"""The pass that drops what no output needs."""

from dataclasses import dataclass

from torch.fx import GraphModule

from embedl_deploy.rewriting import Pass, PassRecord


@dataclass(frozen=True)
class CleanupPass(Pass):
    """Erases calls that nothing reads and that have no side effect. Exact."""

    name = "cleanup"

    def run(self, graph_module: GraphModule) -> PassRecord:
        before = len(graph_module.graph.nodes)
        graph_module.graph.eliminate_dead_code()
        erased = before - len(graph_module.graph.nodes)
        return PassRecord(self.name, notes=(f"erased {erased} nodes",) if erased else ())
