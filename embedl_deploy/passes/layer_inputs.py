"""What the weight of a layer multiplies, as columns of a matrix, and their second moments."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy.graph.transposed_linear import TransposedLinear
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.modules.fused_norm_linear import FusedNormLinear
from embedl_deploy.modules.kinds import LINEARS

_MOST_COLUMNS = 4096
"""Taken from one batch, spread over it."""

Convolution = nn.Conv1d | nn.Conv2d


@dataclass
class InputMoments:
    """Sums over the columns that one layer's weight multiplied so far."""

    products: Tensor | None = None
    """Σ x xᵀ, shape (groups, in, in), float64."""

    total: Tensor | None = None
    """Σ x, shape (groups, in), float64."""

    count: int = 0

    def add(self, columns: Tensor) -> None:
        """Takes in columns of shape (groups, in, count)."""
        products = (columns @ columns.transpose(1, 2)).double()
        total = columns.sum(2, dtype=torch.float64)
        self.products = products if self.products is None else self.products.add_(products)
        self.total = total if self.total is None else self.total.add_(total)
        self.count += columns.shape[2]

    def merge(self, other: "InputMoments") -> None:
        """Takes in what another process saw."""
        if other.products is None or other.total is None:
            return
        self.products = other.products + (0 if self.products is None else self.products)
        self.total = other.total + (0 if self.total is None else self.total)
        self.count += other.count

    def on_cpu(self) -> "InputMoments":
        """Returns the same for another process, which may have another device."""
        if self.products is None or self.total is None:
            return self
        return InputMoments(self.products.cpu(), self.total.cpu(), self.count)

    def gram(self, *, centred: bool) -> Tensor | None:
        """Returns E[x xᵀ], about the mean if ``centred``; ``None`` where nothing was seen."""
        if self.products is None or self.total is None or self.count == 0:
            return None
        gram, mean = self.products / self.count, self.total / self.count
        return gram - mean[:, :, None] * mean[:, None, :] if centred else gram


def unsupported(layer: WeightedFused) -> str | None:
    """Returns why the inputs of ``layer`` have no columns here, ``None`` if they do."""
    if isinstance(layer.weighted, (*LINEARS, nn.Conv1d, nn.Conv2d)):
        return None
    return f"the inputs of {type(layer.weighted).__name__} are not laid out as columns"


def weight_rows(layer: WeightedFused, weight: Tensor) -> Tensor:
    """Returns the folded weight as (groups, out / groups, in), in the order of the columns."""
    if isinstance(layer.weighted, TransposedLinear):
        return weight.t()[None]
    return weight.reshape(groups_of(layer), -1, weight[0].numel())


def as_weight(layer: WeightedFused, rows: Tensor, shape: torch.Size) -> Tensor:
    """Returns what ``weight_rows`` laid out in the layout of the weight again."""
    return rows[0].t() if isinstance(layer.weighted, TransposedLinear) else rows.reshape(shape)


def groups_of(layer: WeightedFused) -> int:
    """Returns how many groups of outputs read inputs of their own."""
    return layer.weighted.groups if isinstance(layer.weighted, Convolution) else 1


def input_columns(layer: WeightedFused, x: Tensor) -> Tensor:
    """Returns a sample of what the weight multiplies, float32, shape (groups, in, count).

    Args:
        layer: One that is not ``unsupported``.
        x: The input of the fused module.
    """
    if isinstance(layer, FusedNormLinear):
        x = layer.norm(x)
        x = x if layer.linear_input_stub is None else layer.linear_input_stub(x)
    weighted = layer.weighted
    if isinstance(weighted, Convolution):
        return _patches(weighted, x.float())
    is_image = layer.folded_weight_and_bias()[0].dim() > 2
    rows = (x.movedim(1, -1) if is_image else x).flatten(0, -2)
    return _spread(rows.float(), _MOST_COLUMNS).t()[None]


def _patches(conv: Convolution, x: Tensor) -> Tensor:
    """Returns the patches that a convolution multiplies its weight with."""
    sizes: Mapping[str, tuple[int, ...]] = {
        name: getattr(conv, name) for name in ("kernel_size", "dilation", "stride")
    }
    x = functional.pad(x, _padding(conv))
    if isinstance(conv, nn.Conv1d):
        x, sizes = x.unsqueeze(2), {name: (1, *size) for name, size in sizes.items()}
    if x.dim() == 3:
        x = x.unsqueeze(0)
    positions = max(1, x[0, 0].numel() // (sizes["stride"][0] * sizes["stride"][1]))
    images = _spread(x, max(1, 4 * _MOST_COLUMNS // positions))
    unfolded = functional.unfold(
        images, sizes["kernel_size"], sizes["dilation"], stride=sizes["stride"]
    )
    columns = _spread(unfolded.transpose(1, 2).flatten(0, 1), _MOST_COLUMNS).t()
    return columns.reshape(conv.groups, -1, columns.shape[1])


def _padding(conv: Convolution) -> list[int]:
    """Returns zeros to put around the input, last axis first, as ``functional.pad`` takes them."""
    around: list[int] = []
    for axis in reversed(range(len(conv.kernel_size))):
        if conv.padding == "valid":
            around += [0, 0]
        elif isinstance(conv.padding, str):
            total = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
            around += [total // 2, total - total // 2]
        else:
            around += [conv.padding[axis]] * 2
    return around


def _spread(rows: Tensor, most: int) -> Tensor:
    """Returns at most ``most`` of the rows, evenly spread."""
    return rows if len(rows) <= most else rows[:: -(-len(rows) // most)]
