"""The pass that places quantizers where a backend gains from them."""

from dataclasses import dataclass, field

from torch.fx import GraphModule

from embedl_deploy.passes.quantization import quantize_graph
from embedl_deploy.quantization.config import QuantConfig
from embedl_deploy.rewriting import Pass, PassRecord
from embedl_deploy.rewriting.backend import Backend


@dataclass(frozen=True)
class QuantizationPass(Pass):
    """Inserts quantizers, which round on purpose; they observe until they are calibrated."""

    name = "quantization"

    backend: Backend
    """Whose quantized patterns and placement are used; one without a placement inserts none."""

    config: QuantConfig = field(default_factory=QuantConfig)
    """Formats, calibration methods and what to leave out."""

    def run(self, graph_module: GraphModule) -> PassRecord:
        if not self.backend.quantized_patterns:
            return PassRecord(self.name)
        return quantize_graph(graph_module, None, self.config, self.backend)
