"""The contract of a strategy: how the engine of one graph is chosen."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from embedl_deploy.tuning.graph_spec import GraphSpec
from embedl_deploy.tuning.sample import Sample
from embedl_deploy.tuning.tuned_graph import TunedGraph


class TuneStrategy(ABC):
    """Chooses what runs one recorded graph of a module."""

    @abstractmethod
    def tune(
        self,
        module: nn.Module,
        name: str,
        graph_spec: GraphSpec,
        data: Sequence[Sample],
        device: torch.device,
        cache_dir: Path | None = None,
    ) -> TunedGraph:
        """Returns the graph's engine, or None for eager, with the table of what was tried.

        Args:
            module: The user's module, in eval mode; it is not changed.
            name: What messages call it.
            graph_spec: Structure and sizes of the inputs.
            data: Recorded calls, on the CPU.
            device: Where it runs.
            cache_dir: Where engines may keep what they compiled.
        """

    @abstractmethod
    def tune_dry_run(
        self,
        module: nn.Module,
        name: str,
        graph_spec: GraphSpec,
        data: Sequence[Sample],
        device: torch.device,
        cache_dir: Path | None = None,
    ) -> TunedGraph:
        """Returns the table of what ``tune`` would try; builds and changes nothing."""
