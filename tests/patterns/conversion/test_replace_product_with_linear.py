from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.graph import graph_text
from embedl_deploy.graph.transposed_linear import TransposedLinear
from embedl_deploy.patterns import ReplaceProductWithLinear
from embedl_deploy.quantize import check_qdq, convert, quantize
from embedl_deploy.rewriting import apply_patterns
from embedl_deploy.testing import check_refusal
from embedl_deploy.tracing import trace
from embedl_deploy.transformation import transform

SIZES = {"b": 2, "i": 5, "j": 7, "h": 6, "n": 3, "d": 4, "u": 1, "v": 1}
_noise = torch.Generator().manual_seed(0)


def noise(letters: str) -> Tensor:
    return torch.randn([SIZES[letter] for letter in letters], generator=_noise)


class Product(nn.Module):
    """Computes ``product(x, weight)`` with a parameter."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor], weight: str) -> None:
        super().__init__()
        self.product = product
        self.weight = nn.Parameter(noise(weight))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight)


def einsum(equation: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, weight: torch.einsum(equation, x, weight)


TAKEN: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str, str]] = {
    "XLNet's queries": (einsum("ibh,hnd->ibnd"), "ibh", "hnd"),
    "XLNet's output": (einsum("ibnd,hnd->ibh"), "ibnd", "hnd"),
    "columns in another order": (einsum("ibh,hnd->dbin"), "ibh", "hnd"),
    "summed in the middle": (einsum("bhi,hd->bid"), "bhi", "hd"),
    "summed in another order": (einsum("bndi,dhn->bih"), "bndi", "dhn"),
    "dots of the activation": (einsum("...h,nh->...n"), "bih", "nh"),
    "dots of the weight alone": (einsum("...ih,...hd->...id"), "ih", "bhd"),
    "the result left open": (einsum("ih,hd"), "ih", "hd"),
    "one column": (einsum("bih,h->bi"), "bih", "h"),
    "one row": (einsum("h,hnd->nd"), "h", "hnd"),
    "a number": (einsum("h,h->"), "h", "h"),
    "the weight first": (lambda x, w: torch.einsum("hnd,ibh->ibnd", w, x), "ibh", "hnd"),
    "the weight first in a product": (lambda x, w: w @ x, "bih", "di"),
    "a reshaped weight": (lambda x, w: x @ w.reshape(6, 12), "bih", "hnd"),
    "a normalised weight": (lambda x, w: x @ (w / w.square().sum(0).sqrt()), "bih", "hd"),
    "a vector": (lambda x, w: x @ w.exp(), "bih", "h"),
    "a vector in a linear layer": (nn.functional.linear, "bih", "h"),
    "a batch of one": (torch.matmul, "bih", "uhd"),
    "a batch of one that widens": (torch.matmul, "ih", "uhd"),
    "one weight for each batch": (
        lambda x, w: torch.bmm(x, w.unsqueeze(0).expand(2, -1, -1)),
        "bih",
        "hd",
    ),
    "an einsum with a weight for each batch": (
        lambda x, w: torch.einsum("bih,bhd->bdi", x, w.expand(2, -1, -1)),
        "bih",
        "uhd",
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_product_with_a_weight_is_a_linear_layer(name: str) -> None:
    product, activation, weight = TAKEN[name]
    model, other, x = Product(product, weight), Product(product, weight), noise(activation)

    result = transform(model, (x,), patterns=[ReplaceProductWithLinear], verify="raise")

    assert result.report.counts() == {"replace-product-with-linear": 1}
    assert "Linear(in_features" in graph_text(result.model)
    torch.testing.assert_close(result.model(x), model(x))
    result.model.load_state_dict(other.state_dict())
    torch.testing.assert_close(result.model(x), other(x))


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str, str, str]] = {
    "a weight per head": (einsum("bih,bhd->bid"), "bih", "bhd", "'b' of 'bih,bhd->bid' has a"),
    "a batch of weights": (torch.bmm, "bih", "bhd", "has a weight of its own at each place"),
    "dots of both": (einsum("...ih,...hd->...id"), "bih", "bhd", "a weight of its own"),
    "an outer product": (einsum("bi,d->bid"), "bi", "d", "sums over no index of both"),
    "elementwise": (einsum("bih,h->bih"), "bih", "h", "sums over no index of both"),
    "rows are summed": (einsum("bih,hd->bd"), "bih", "hd", "sums over 'i' of one tensor alone"),
    "columns are summed": (einsum("bih,hd->bi"), "bih", "hd", "sums over 'd' of one tensor"),
    "a repeated index": (einsum("bii,id->bd"), "bii", "id", "takes one index of a tensor twice"),
    "a repeated index of the weight": (einsum("bi,ii->b"), "bi", "ii", "twice"),
    "a broadcast sum": (einsum("biu,hd->bid"), "biu", "hd", "no index of both"),
    "a sum that is broadcast": (einsum("bih,hd->bid"), "biu", "hd", "'h' of 'bih,hd->bid' is"),
    "integers": (lambda x, w: x.long() @ w.long(), "bih", "hd", "torch.int64 by torch.int64"),
    "three tensors": (
        lambda x, w: torch.einsum("bih,hd,d->bid", x, w, w[0]),
        "bih",
        "hd",
        "it multiplies 3 tensors, not two",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_is_no_linear_map(name: str) -> None:
    product, activation, weight, because = REFUSED[name]
    example = noise(activation)

    check_refusal(
        ReplaceProductWithLinear(), Product(product, weight), because=because, example=example
    )


def test_products_of_activations_and_of_weights_are_passed_over() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(noise("bih")), nn.Parameter(noise("bhd"))

        def forward(self, x: Tensor) -> Tensor:
            return x @ x.mT + (self.first @ self.second).sum()

    graph = trace(Other(), (noise("bih"),))

    record = apply_patterns(graph, [ReplaceProductWithLinear])

    assert not record.applied
    assert not record.refused


@pytest.mark.parametrize(
    ("equation", "weight", "kind"),
    [("bih,hd->bid", "hd", TransposedLinear), ("bih,dh->bid", "dh", nn.Linear)],
)
def test_a_matrix_stays_the_parameter_it_is(
    equation: str, weight: str, kind: type[nn.Module]
) -> None:
    model = Product(einsum(equation), weight)

    graph = transform(model, (noise("bih"),), patterns=[ReplaceProductWithLinear]).model

    layers = [module for module in graph.modules() if isinstance(module, kind)]
    assert [layer.weight is model.weight for layer in layers] == [True]


def test_the_batch_may_have_any_size() -> None:
    model, x = Product(einsum("ibnd,hnd->bhi"), "hnd"), noise("ibnd")
    sizes = {0: torch.export.Dim("rows", min=2, max=50), 1: torch.export.Dim("batch", min=2, max=9)}

    graph = transform(
        model, (x,), dynamic_shapes=(sizes,), patterns=[ReplaceProductWithLinear], verify="raise"
    ).model

    longer = torch.cat([x, 2 * x, x])
    assert "Linear(in_features=12" in graph_text(graph)
    torch.testing.assert_close(graph(longer), model(longer))


def test_what_a_weight_is_computed_from_stays_for_others() -> None:
    def twice(x: Tensor, weight: Tensor) -> Tensor:
        scaled = weight * 2
        return x @ scaled @ scaled.T + scaled.sum()

    model, x = Product(twice, "hd"), noise("bih")

    result = transform(model, (x,), patterns=[ReplaceProductWithLinear], verify="raise")

    assert result.report.counts() == {"replace-product-with-linear": 2}
    torch.testing.assert_close(result.model(x), model(x))


class Heads(nn.Module):
    """Attention's projections as XLNet writes them: one for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Parameter(noise("hnd")), nn.Parameter(noise("hnd"))

    def forward(self, x: Tensor) -> Tensor:
        heads = torch.einsum("ibh,hnd->ibnd", x, self.q).tanh()
        return torch.einsum("ibnd,hnd->ibh", heads, self.o)


@pytest.mark.parametrize("backend", ["inductor", "tensorrt"])
def test_such_layers_are_quantized_on_both_operands(backend: str) -> None:
    model, x = Heads().eval(), noise("ibh")

    quantized = quantize(model, (x,), forward_loop=[(x,)], backend=backend)
    converted = convert(quantized)

    codes = [node for node in converted.graph.nodes if "weight_codes" in str(node.target)]
    assert len(codes) == 2
    assert check_qdq(quantized) == check_qdq(converted) == ()
    assert torch.norm(converted(x) - model(x)) < 0.05 * torch.norm(model(x))


def test_such_layers_are_trained_through_the_parameters_of_the_model() -> None:
    model, x = Heads().eval(), noise("ibh")

    copied = deepcopy(quantize(model, (x,), forward_loop=[(x,)], backend="inductor"))
    copied.train()(x).square().sum().backward()

    trained = dict(copied.named_parameters(remove_duplicate=False))
    assert all(trained[name].grad is not None for name in ("q", "o"))
    assert model.q.grad is None
