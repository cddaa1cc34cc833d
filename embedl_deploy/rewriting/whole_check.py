"""Checks that a graph still computes what it did, after each stage of rewriting."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.fx import GraphModule

from embedl_deploy.errors import VerificationError
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.graph.evaluate import evaluate, sample_value
from embedl_deploy.rewriting.pattern import Pattern
from embedl_deploy.rewriting.records import PassRecord

_SEED = 0


class WholeCheck:
    """Runs a graph on one set of random inputs before and after each stage.

    Each site is checked on its own nodes; this finds what only shows in the whole: rewrites that
    are wrong together, or that change a module which others call.
    """

    def __init__(self, graph_module: GraphModule, *, raises: bool) -> None:
        self.graph_module = graph_module
        self.raises = raises
        self.before = self._outputs()

    def after(self, record: PassRecord, patterns: Sequence[Pattern]) -> PassRecord:
        """Returns the record of a stage with a note where its rewrites moved the outputs too far.

        Raises:
            VerificationError: They did, and the check was asked to raise.
        """
        if not record.applied or self.before is None:
            return record
        now, before = self._outputs(), self.before
        self.before = now
        error = relative_error(now, before)
        allowed = max(rule.tolerance for rule in patterns)
        if error <= allowed:
            return record
        names = ", ".join(dict.fromkeys(site.pattern for site in record.applied))
        note = (
            f"the whole model's outputs moved by {error:.1e} in stage {record.name}, allowed "
            f"{allowed:.1e}, though each site passed its own check; applied were {names}"
        )
        if self.raises:
            raise VerificationError(note)
        return replace(record, notes=(*record.notes, note))

    def _outputs(self) -> object:
        """Returns what the graph yields, None where it does not run on random inputs."""
        generator = torch.Generator().manual_seed(_SEED)
        nodes = list(self.graph_module.graph.nodes)
        given = {
            node: sample_value(node, generator) for node in nodes if node.op == "placeholder"
        }
        calls = [node for node in nodes if node.op not in ("placeholder", "output")]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            try:
                known = {**given, **evaluate(calls, given)}
            except Exception:  # noqa: BLE001  # random inputs may be none that the model takes
                return None
        (output,) = self.graph_module.graph.find_nodes(op="output")
        return [known[read] for read in output.all_input_nodes]
