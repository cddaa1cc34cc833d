"""The pass that makes activations and weights easier to quantize."""

from dataclasses import dataclass

from torch.fx import GraphModule

from embedl_deploy.rewriting import Pass, PassRecord, Pattern, apply_patterns


@dataclass(frozen=True)
class SmoothPass(Pass):
    """Moves outliers from activations into weights. Exact up to rounding."""

    name = "smooth"

    patterns: tuple[type[Pattern], ...] = ()
    """Tried on the fused graph: scales need the weights that will run."""

    def run(self, graph_module: GraphModule) -> PassRecord:
        return apply_patterns(graph_module, self.patterns, self.name)
