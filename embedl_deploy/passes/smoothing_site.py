"""One tensor that may be smoothed: what was seen of it, and how its factors are applied."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph.computed_weight import computation_of
from embedl_deploy.graph.nodes import module_of
from embedl_deploy.graph.transposed_linear import TransposedLinear
from embedl_deploy.graph.values import infer_value
from embedl_deploy.modules.kinds import PLAIN_CONVOLUTIONS
from embedl_deploy.patterns.smooth import MoveOutliersIntoLinears
from embedl_deploy.patterns.smooth.readers import (
    SmoothedLayer,
    layer_of,
    layer_readers,
    ways_to_layers,
)
from embedl_deploy.rewriting import PatternMatch
from embedl_deploy.rewriting.workspace import Workspace

_ROWS_PER_BATCH = 32
_MOST_ROWS = 256


@dataclass
class SmoothingSite:
    """A tensor, the layers that read it, and what calibration saw of it."""

    match: PatternMatch
    value: Node
    producer: nn.Module
    layers: tuple[SmoothedLayer, ...]
    lows: Tensor | None = None
    """Smallest value per channel, shape (in,)."""

    highs: Tensor | None = None
    """Largest value per channel, shape (in,)."""

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
        layers = (layer_of(reader) for reader in layer_readers(value))
        return cls(match, value, producer, tuple(layer for layer in layers if layer is not None))

    @property
    def has_convolutions(self) -> bool:
        """Whether a convolution is among the layers."""
        return any(isinstance(layer, PLAIN_CONVOLUTIONS) for layer in self.layers)

    @property
    def peaks(self) -> Tensor:
        """Returns the largest magnitude per channel, shape (in,)."""
        lows, highs = self.extremes()
        return torch.maximum(-lows, highs)

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Returns the smallest and largest value per channel, shape (in,) each."""
        assert self.lows is not None, "nothing was seen"
        assert self.highs is not None, "nothing was seen"
        return self.lows, self.highs

    def weights(self) -> list[Tensor]:
        """Returns the weights of the layers, shape (out, in) each.

        Every place of a convolution's kernel counts as outputs of its own.
        """
        return [_by_input(layer).detach() for layer in self.layers]

    def outputs(self) -> list[int]:
        """Returns how many outputs each layer has."""
        return [
            layer.weight.shape[1 if isinstance(layer, TransposedLinear) else 0]
            for layer in self.layers
        ]

    def apply(self, graph_module: GraphModule, factors: Tensor) -> Node:
        """Divides the tensor by the factors, the weights take them; returns what gives it now."""
        for layer in self.layers:
            # Channels lie along the second axis, in a transposed linear layer along the first.
            rank = layer.weight.dim()
            trailing = 1 if isinstance(layer, TransposedLinear) else rank - 2
            per_input = factors.reshape(-1, *(1,) * trailing)
            computation = computation_of(layer, "weight")
            if computation is None:
                _replace(layer, "weight", layer.weight, layer.weight * per_input)
            else:
                computation.scale(per_input)
        if not isinstance(self.match.pattern, MoveOutliersIntoLinears):
            return _insert_product(graph_module, self.value, 1.0 / factors)
        for name in ("weight", "bias"):
            old = getattr(self.producer, name, None)
            if old is not None:
                _replace(self.producer, name, old, old / factors)
        return self.value

    def seen(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns lows, highs and rows, for ``take``, on the CPU: each process has a device."""
        lows, highs, rows = (
            None if one is None else one.cpu() for one in (self.lows, self.highs, self.rows)
        )
        return lows, highs, rows

    def take(self, seen: Iterable[tuple[Tensor | None, Tensor | None, Tensor | None]]) -> None:
        """Takes over what several processes saw, in a fixed order.

        The extremes are those of all the data; the rows are a sample of it, as in one process.
        """
        known = list(seen)
        lows = [low for low, _, _ in known if low is not None]
        highs = [high for _, high, _ in known if high is not None]
        rows = [sample for _, _, sample in known if sample is not None]
        if not rows:
            return
        device = self.layers[0].weight.device
        self.lows = torch.stack(lows).amin(0).to(device)
        self.highs = torch.stack(highs).amax(0).to(device)
        every = torch.cat(rows)
        self.rows = every[:: max(1, len(every) // _MOST_ROWS)][:_MOST_ROWS].clone().to(device)

    @contextmanager
    def watching(self, producer: nn.Module | None = None) -> Generator[None]:
        """Collects extremes and rows while the model runs.

        Args:
            producer: The module that gives the tensor in a copy of the graph that runs instead.
        """

        def observe(module: nn.Module, args: object, output: Tensor) -> None:
            del module, args
            rows = output.detach().reshape(-1, output.shape[-1])
            lows, highs = rows.amin(0), rows.amax(0)
            self.lows = lows if self.lows is None else torch.minimum(self.lows, lows)
            self.highs = highs if self.highs is None else torch.maximum(self.highs, highs)
            if self.batches % self.stride == 0:
                self._sample(rows)
            self.batches += 1

        handle = (producer or self.producer).register_forward_hook(observe)
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


@dataclass(frozen=True)
class SmoothedTensor:
    """What became of a site."""

    site: SmoothingSite
    factors: Tensor
    """What each channel was divided by, shape (in,)."""

    def extremes(self) -> Tensor:
        """Returns the smallest and the largest value it takes after the division, shape (2,)."""
        lows, highs = self.site.extremes()
        inverse = 1.0 / self.factors
        return torch.stack([(lows * inverse).amin(), (highs * inverse).amax()]).double().cpu()


def _by_input(layer: SmoothedLayer) -> Tensor:
    if isinstance(layer, TransposedLinear):
        return layer.weight.t()
    return layer.weight.movedim(1, -1).flatten(0, -2)


def _replace(module: nn.Module, name: str, old: Tensor, new: Tensor) -> None:
    setattr(module, name, nn.Parameter(new.detach().to(old.dtype), old.requires_grad))


def _insert_product(graph_module: GraphModule, value: Node, factors: Tensor) -> Node:
    """Makes the layers that read ``value`` read its product with ``factors``."""
    workspace = Workspace(graph_module)
    ways = ways_to_layers(value)
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
    for way in ways:
        way.args = (product, *way.args[1:])
    return product
