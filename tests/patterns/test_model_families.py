"""Blocks as model families write them: what is fused, and that outputs stay."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy.testing import randomize
from embedl_deploy.transformation import TransformationResult, transform

IMAGE = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
LINE = torch.randn(2, 8, 9, generator=torch.Generator().manual_seed(2))
VOLUME = torch.randn(2, 8, 4, 4, 4, generator=torch.Generator().manual_seed(3))


class Block(nn.Module):
    """A function of one tensor and of layers by name."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        self.names = tuple(layers)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *(getattr(self, name) for name in self.names))


class LayerNorm2d(nn.LayerNorm):
    """A layer norm over the channels of images, as ConvNeXt has it."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name is torch's
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def conv_norm_act(**options: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, 8, 3, **options), nn.BatchNorm2d(8), nn.SiLU())  # pyright: ignore[reportArgumentType]  # options by name


def squeeze_and_excite(x: Tensor, block: nn.Module, down: nn.Module, up: nn.Module) -> Tensor:
    y: Tensor = block(x)
    scale = functional.relu(down(y.mean((2, 3), keepdim=True)))
    return y * torch.sigmoid(up(scale))


def shuffled(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    left, right = x.chunk(2, 1)
    y = torch.cat([left, second(first(right))], 1)
    return y.view(2, 2, 4, 8, 8).transpose(1, 2).reshape(2, 8, 8, 8)


def layer_scaled(
    x: Tensor, norm: nn.Module, up: nn.Module, down: nn.Module, gamma: Tensor
) -> Tensor:
    return x + gamma * down(functional.gelu(up(norm(x))))


def swiglu(x: Tensor, gate: nn.Module, up: nn.Module, down: nn.Module) -> Tensor:
    y: Tensor = down(functional.silu(gate(x)) * up(x))
    return y


def geglu(x: Tensor, both: nn.Module, down: nn.Module) -> Tensor:
    value, gate = both(x).chunk(2, -1)
    y: Tensor = down(value * functional.gelu(gate))
    return y


def dropped_path(x: Tensor, block: nn.Module) -> Tensor:
    kept = functional.dropout(x.new_ones(2, 1, 1, 1), 0.2, training=block.training)
    return x + block(x) * kept


def branches(x: Tensor, first: nn.Module, second: nn.Module, pool: nn.Module) -> Tensor:
    return torch.cat([first(x), second(x), pool(x)], 1)


def splits(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    one, two, three = x[:, :2], x[:, 2:4], x[:, 4:]
    two = first(two)
    return torch.cat([one, two, second(torch.cat([two, three], 1))], 1)


def small(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU())


def addmm_conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    flat = torch.addmm(bias, x.reshape(-1, 8), weight)
    return functional.gelu(flat.view(2, 5, 16), approximate="tanh")


def addmm_transposed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.relu(torch.addmm(bias, x.reshape(-1, 8), weight.t()))


def log_odds(x: Tensor, linear: nn.Module) -> Tensor:
    rate = torch.tensor(0.3)
    return torch.sigmoid(linear(x) + torch.log(rate / (1 - rate)))


def log_odds_of_input(x: Tensor, linear: nn.Module) -> Tensor:
    rate = torch.sigmoid(x).mean(-1, keepdim=True)
    return torch.sigmoid(linear(x) + torch.log(rate / (1 - rate)))


def residual(x: Tensor, block: nn.Module) -> Tensor:
    y: Tensor = block(x)
    return functional.relu(y + x)


def commuted_residual(x: Tensor, block: nn.Module) -> Tensor:
    y: Tensor = block(x)
    return functional.relu(x + y)


def residual_by_keyword(x: Tensor, block: nn.Module) -> Tensor:
    return functional.relu(input=torch.add(x, other=block(x)))


def two_norms(x: Tensor, conv: nn.Module, first: nn.Module, second: nn.Module) -> Tensor:
    y: Tensor = second(conv(functional.relu(first(conv(x)))))
    return y


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def normed_linear(x: Tensor, weight: Tensor, linear: nn.Module) -> Tensor:
    return functional.gelu(linear(norm(x, weight)))


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape) / math.sqrt(shape[0]))


ONE_BLOCK = {"fuse-conv-norm-activation": 1}
CASES: dict[str, tuple[nn.Module, Tensor, dict[str, int]]] = {
    "depthwise": (conv_norm_act(groups=8), IMAGE, ONE_BLOCK),
    "dilated": (conv_norm_act(dilation=2, padding=2), IMAGE, ONE_BLOCK),
    "strided": (conv_norm_act(stride=2, padding=1), IMAGE, ONE_BLOCK),
    "transposed": (
        nn.Sequential(nn.ConvTranspose2d(8, 4, 2, 2), nn.BatchNorm2d(4), nn.ReLU()),
        IMAGE,
        ONE_BLOCK,
    ),
    "one dimension": (
        nn.Sequential(nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8), nn.GELU()),
        LINE,
        ONE_BLOCK,
    ),
    "three dimensions": (
        nn.Sequential(nn.Conv3d(8, 8, 3), nn.BatchNorm3d(8), nn.ReLU()),
        VOLUME,
        ONE_BLOCK,
    ),
    "group norm": (nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.ReLU()), IMAGE, {}),
    "layer norm over channels": (
        nn.Sequential(nn.Conv2d(8, 8, 1), LayerNorm2d(8), nn.Conv2d(8, 8, 1), nn.GELU()),
        IMAGE,
        {"fuse-conv-activation": 1},
    ),
    "squeeze and excitation": (
        Block(
            squeeze_and_excite,
            block=conv_norm_act(),
            down=nn.Conv2d(8, 2, 1),
            up=nn.Conv2d(2, 8, 1),
        ),
        IMAGE,
        {**ONE_BLOCK, "fuse-conv-activation": 2},
    ),
    "channel shuffle": (
        Block(shuffled, first=small(4), second=small(4)),
        IMAGE,
        {"fuse-conv-norm-activation": 2},
    ),
    "layer scale": (
        Block(
            layer_scaled,
            norm=nn.LayerNorm(8),
            up=nn.Linear(8, 16),
            down=nn.Linear(16, 8),
            gamma=weight(8),
        ),
        ROWS,
        {"fuse-linear-activation": 1},
    ),
    "SwiGLU": (
        Block(swiglu, gate=nn.Linear(8, 16), up=nn.Linear(8, 16), down=nn.Linear(16, 8)),
        ROWS,
        {"fuse-linear-activation": 1},
    ),
    "GEGLU": (Block(geglu, both=nn.Linear(8, 32), down=nn.Linear(16, 8)), ROWS, {}),
    "stochastic depth": (
        Block(dropped_path, block=conv_norm_act(padding=1)),
        IMAGE,
        ONE_BLOCK,
    ),
    "branches": (
        Block(branches, first=small(8), second=small(8), pool=nn.AvgPool2d(3, 1, 1)),
        IMAGE,
        {"fuse-conv-norm-activation": 2},
    ),
    "splits": (
        Block(splits, first=small(2), second=small(6)),
        IMAGE,
        {"fuse-conv-norm-activation": 2},
    ),
    "Conv1D as addmm": (
        Block(addmm_conv1d, weight=weight(8, 16), bias=weight(16)),
        ROWS,
        {"fuse-linear-activation": 1},
    ),
    "addmm with a transposed weight": (
        Block(addmm_transposed, weight=weight(16, 8), bias=weight(16)),
        ROWS,
        {"fuse-linear-activation": 1},
    ),
    "log odds": (Block(log_odds, linear=nn.Linear(8, 1)), ROWS, {}),
    "log odds of the input": (Block(log_odds_of_input, linear=nn.Linear(8, 1)), ROWS, {}),
    "residual": (
        Block(residual, block=nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))),
        IMAGE,
        {"fuse-conv-norm-add-activation": 1},
    ),
    "commuted residual": (
        Block(commuted_residual, block=nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))),
        IMAGE,
        {"fuse-conv-norm-add-activation": 1},
    ),
    "residual by keyword": (
        Block(residual_by_keyword, block=nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))),
        IMAGE,
        {"fuse-conv-norm-add-activation": 1},
    ),
    "one convolution, two norms": (
        Block(
            two_norms, conv=nn.Conv2d(8, 8, 1), first=nn.BatchNorm2d(8), second=nn.BatchNorm2d(8)
        ),
        IMAGE,
        {**ONE_BLOCK, "fuse-conv-norm": 1},
    ),
    "RMSNorm by hand": (
        Block(normed_linear, weight=weight(8), linear=nn.Linear(8, 16)),
        ROWS,
        {"fuse-linear-activation": 1},
    ),
}


def transformed(model: nn.Module, example: Tensor) -> TransformationResult:
    randomize(model.eval())
    result = transform(model, (example,), backend="tensorrt", verify=True)
    assert not [site for site in result.report.refusals() if "rolled back" in str(site)]
    torch.testing.assert_close(result.model(example), model(example), rtol=1e-4, atol=1e-5)
    return result


@pytest.mark.parametrize("name", CASES)
def test_fuses_what_the_block_holds(name: str) -> None:
    model, example, expected = CASES[name]

    result = transformed(model, example)

    counts = result.report.counts()
    assert {rule: count for rule, count in counts.items() if "fuse" in rule} == expected
    assert list(result.model.state_dict()) == list(model.state_dict())


class Deformable(nn.Module):
    """Samples its input where a convolution says."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        grid = torch.tanh(self.offsets(x)).permute(0, 2, 3, 1)
        return functional.grid_sample(x, grid, align_corners=False)


def test_leaves_deformable_sampling_alone() -> None:
    result = transformed(Deformable(), IMAGE)

    assert result.report.counts() == {"fuse-conv-activation": 1}
    assert any("grid_sample" in str(node.target) for node in result.model.graph.nodes)
