"""One tensor that may be smoothed: what was seen of it, and how its factors are applied."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph.nodes import module_of
from embedl_deploy.graph.transposed_linear import TransposedLinear
from embedl_deploy.graph.values import infer_value
from embedl_deploy.modules.kinds import LinearLayer
from embedl_deploy.patterns.smooth import MoveOutliersIntoLinears
from embedl_deploy.patterns.smooth.readers import linear_readers, linear_that_reads
from embedl_deploy.rewriting import PatternMatch
from embedl_deploy.rewriting.workspace import Workspace

_ROWS_PER_BATCH = 32
_MOST_ROWS = 256


@dataclass
class SmoothingSite:
    """A tensor, the linear layers that read it, and what calibration saw of it."""

    match: PatternMatch
    value: Node
    producer: nn.Module
    layers: tuple[LinearLayer, ...]
    peaks: Tensor | None = None
    """Largest magnitude per channel, shape (in,)."""

    rows: Tensor | None = None
    """A sample of the rows seen, spread over the batches, shape (rows, in)."""

    batches: int = 0
    """How many were seen."""

    stride: int = 1
    """Every how many batches rows are taken; doubles whenever there are too many rows."""

    @classmethod
    def of(cls, match: PatternMatch) -> "SmoothingSite":
        """Returns the site of a match of a smooth pattern."""
        value = match["value"]
        producer = module_of(value)
        assert producer is not None, "smooth patterns match modules"
        layers = (linear_that_reads(reader, value) for reader in linear_readers(value))
        return cls(match, value, producer, tuple(layer for layer in layers if layer is not None))

    def weights(self) -> list[Tensor]:
        """Returns the weights of the layers, shape (out, in) each."""
        return [
            (layer.weight.t() if isinstance(layer, TransposedLinear) else layer.weight).detach()
            for layer in self.layers
        ]

    def apply(self, graph_module: GraphModule, factors: Tensor) -> None:
        """Divides the tensor by the factors and multiplies the weights by them."""
        for layer in self.layers:
            per_input = factors[:, None] if isinstance(layer, TransposedLinear) else factors
            _replace(layer, "weight", layer.weight, layer.weight * per_input)
        if not isinstance(self.match.pattern, MoveOutliersIntoLinears):
            _insert_product(graph_module, self.value, 1.0 / factors)
            return
        for name in ("weight", "bias"):
            old = getattr(self.producer, name, None)
            if old is not None:
                _replace(self.producer, name, old, old / factors)

    def take(self, seen: Iterable[tuple[Tensor | None, Tensor | None]]) -> None:
        """Takes over what several processes saw: peaks and rows of each, in a fixed order.

        The peaks are those of all the data; the rows are a sample of it, as in one process.
        """
        known = [(peaks, rows) for peaks, rows in seen if peaks is not None and rows is not None]
        if not known:
            return
        self.peaks = torch.stack([peaks for peaks, _ in known]).amax(0)
        rows = torch.cat([rows for _, rows in known])
        self.rows = rows[:: max(1, len(rows) // _MOST_ROWS)][:_MOST_ROWS].clone()

    @contextmanager
    def watching(self) -> Generator[None]:
        """Collects peaks and rows while the model runs."""

        def observe(module: nn.Module, args: object, output: Tensor) -> None:
            del module, args
            rows = output.detach().reshape(-1, output.shape[-1])
            peaks = rows.abs().amax(0)
            self.peaks = peaks if self.peaks is None else torch.maximum(self.peaks, peaks)
            if self.batches % self.stride == 0:
                self._sample(rows)
            self.batches += 1

        handle = self.producer.register_forward_hook(observe)
        try:
            yield
        finally:
            handle.remove()

    def _sample(self, rows: Tensor) -> None:
        sample = rows[:: max(1, rows.shape[0] // _ROWS_PER_BATCH)][:_ROWS_PER_BATCH].clone()
        self.rows = sample if self.rows is None else torch.cat([self.rows, sample])
        if len(self.rows) > _MOST_ROWS:
            self.rows = self.rows[::2].clone()
            self.stride *= 2


def _replace(module: nn.Module, name: str, old: Tensor, new: Tensor) -> None:
    setattr(module, name, nn.Parameter(new.detach().to(old.dtype), old.requires_grad))


def _insert_product(graph_module: GraphModule, value: Node, factors: Tensor) -> None:
    """Makes the linear readers of ``value`` read its product with ``factors``."""
    workspace = Workspace(graph_module)
    readers = linear_readers(value)
    dtype = getattr(value.meta.get("val"), "dtype", factors.dtype)
    path, _ = workspace.tensor_path_for(
        factors.to(dtype), workspace.container_of(value), "smoothing_factors"
    )
    with graph_module.graph.inserting_after(value):
        constant = graph_module.graph.get_attr(path)
    with graph_module.graph.inserting_after(constant):
        product = graph_module.graph.call_function(torch.ops.aten.mul.Tensor, (value, constant))
    for node in (constant, product):
        for key in ("stack_trace", "nn_module_stack"):
            if key in value.meta:
                node.meta[key] = value.meta[key]
        node.meta["val"] = infer_value(node)
    for reader in readers:
        reader.args = (product, *reader.args[1:])
