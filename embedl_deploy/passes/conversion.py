"""The pass that spells a graph the way its target can take it."""

from dataclasses import dataclass

from torch.fx import GraphModule

from embedl_deploy.rewriting import Pass, PassRecord, Pattern, apply_patterns


@dataclass(frozen=True)
class ConversionPass(Pass):
    """Respells operations until nothing is left to respell. Exact up to rounding."""

    name = "conversion"

    patterns: tuple[type[Pattern], ...] = ()
    """Run to a fixpoint; two that undo each other are an error that names them."""

    def run(self, graph_module: GraphModule) -> PassRecord:
        return apply_patterns(graph_module, self.patterns, self.name, until_fixpoint=True)
