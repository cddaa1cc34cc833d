from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.passes.sites import sites_of
from embedl_deploy.quantization.site import Site
from embedl_deploy.quantize import insert_qdq
from embedl_deploy.transformation import transform


def sites_in(model: nn.Module, *shape: int) -> list[Site]:
    """Returns the sites of a model with its quantizers in place, in graph order."""
    graph = transform(model.eval(), (torch.randn(shape),), backend=INDUCTOR).model
    return [site for sites in sites_of(insert_qdq(graph)).values() for site in sites]


def test_a_convolution_is_read_with_its_attributes() -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, (3, 5), (2, 1), (1, 2), groups=4), nn.Hardswish())

    assert sites_in(model, 2, 8, 10, 12) == [
        Site(
            "conv",
            (2, 8, 10, 12),
            (16, 2, 3, 5),
            (2, 16, 5, 12),
            (2, 1),
            (1, 2),
            (1, 1),
            4,
            activation="Hardswish",
        )
    ]


def test_padding_by_name_is_read_as_numbers() -> None:
    (same,) = sites_in(nn.Conv2d(4, 4, (3, 5), padding="same", dilation=(2, 1)), 1, 4, 9, 9)

    assert same.padding == (2, 2)


def test_what_an_int8_kernel_wrote_arrives_in_codes() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))

    first, second = sites_in(model, 1, 4, 8, 8)

    assert (first.reads, first.writes_codes) == ("float32", True)
    assert (second.reads, second.writes_codes) == ("codes", False)


def test_what_a_loop_made_arrives_in_float_32() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))

    first, second = sites_in(model, 3, 8)

    assert (first.writes_codes, second.reads) == (False, "float32")


class TwoReaders(nn.Module):
    """Two layers read one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(8, 6)
        self.right = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) * self.right(x)


def test_one_conversion_serves_all_readers_and_is_counted_at_the_first() -> None:
    assert [site.reads for site in sites_in(TwoReaders(), 3, 8)] == ["float32", "codes"]


class Attention(nn.Module):
    """Attention and the projection of what it yields."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 16)

    def forward(self, q: Tensor) -> Tensor:
        attended = functional.scaled_dot_product_attention(q, q[..., :5, :], q[..., :5, :])
        return self.project(attended.transpose(1, 2).flatten(2))


def test_attention_is_two_products_and_a_float_kernel() -> None:
    scores, values, project = sites_in(Attention(), 1, 2, 7, 8)

    assert scores == Site("matmul", (1, 2, 7, 8), (1, 2, 8, 5), (1, 2, 7, 5), reads="bfloat16")
    assert values == Site("matmul", (1, 2, 7, 5), (1, 2, 5, 8), (1, 2, 7, 8), reads="bfloat16")
    assert project.reads == "bfloat16"


class Products(nn.Module):
    """A product of two activations."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ x.transpose(-1, -2)


def test_a_product_of_two_activations_is_a_site() -> None:
    assert sites_in(Products(), 2, 5, 7) == [
        Site("matmul", (2, 5, 7), (2, 7, 5), (2, 5, 5), reads="bfloat16")
    ]


class Block(nn.Module):
    """A residual block whose input is quantized for its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.second(torch.relu(self.first(x)))) + x)


def test_a_skip_connection_arrives_as_the_placement_has_it() -> None:
    shared = sites_in(Block(), 1, 4, 6, 6)[1]
    before = transform(Block().eval(), (torch.randn(1, 4, 6, 6),), backend=INDUCTOR).model

    in_float = [site for sites in sites_of(before).values() for site in sites][1]

    assert (shared.residual, shared.activation) == ("codes", "ReLU")
    assert replace(in_float, reads="codes") == replace(shared, residual="float")


class AttendsToItself(nn.Module):
    """Attention whose three operands are one tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, x, x)


class AddsItsInput(nn.Module):
    """A convolution added to what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)) + x)


def test_operands_that_are_one_tensor_count_one_by_one() -> None:
    attended = sites_in(AttendsToItself(), 1, 2, 7, 8)
    (added,) = sites_in(AddsItsInput(), 1, 2, 7, 8)

    assert [site.weight_shape for site in attended] == [(1, 2, 8, 7), (1, 2, 7, 8)]
    assert added.residual == "codes"


def test_bias_is_there_where_the_layer_or_its_norm_gives_one() -> None:
    bare = nn.Conv2d(4, 4, 1, bias=False)
    normed = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))

    assert [sites_in(model, 1, 4, 2, 2)[0].has_bias for model in (bare, normed)] == [False, True]
