"""The pass that merges operations which a backend runs as one kernel."""

from dataclasses import dataclass

from torch.fx import GraphModule

from embedl_deploy.rewriting import Pass, PassRecord, Pattern, apply_patterns


@dataclass(frozen=True)
class FusionPass(Pass):
    """Merges neighbouring operations. Exact: outputs move only by rounding."""

    name = "fusion"

    patterns: tuple[type[Pattern], ...] = ()
    """Where two matches overlap the larger wins; ties fall to graph order."""

    def run(self, graph_module: GraphModule) -> PassRecord:
        return apply_patterns(graph_module, self.patterns, self.name)
