import inspect
import threading
from collections import UserDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from embedl_deploy.tuning.dimensions import BatchDim, DeclaredShapes, DynamicDim
from embedl_deploy.tuning.graph_spec import SizeRange
from embedl_deploy.tuning.recording import MAX_GRAPHS, MAX_SAMPLES, Recorder
from embedl_deploy.tuning.sample import Sample
from embedl_deploy.tuning.shapes import export_shapes, resized, tracing_sizes


def forward(x: Tensor, mask: Tensor | None = None, *rest: object, scale: float = 1.0) -> object:
    return x, mask, rest, scale


def nested(batch: object, /, flag: bool = False) -> object:
    return batch, flag


class Recording:
    """Records calls of a function and shows what came of them."""

    def __init__(self, function: object, declared: DeclaredShapes | None = None) -> None:
        assert callable(function)
        self.recorder = Recorder(inspect.signature(function), declared)

    def __call__(self, *args: object, **kwargs: object) -> Sample:
        snapshot = self.recorder.snapshot(args, kwargs)
        assert snapshot is not None
        self.recorder.add(snapshot)
        return snapshot.sample

    @property
    def descriptions(self) -> list[str]:
        return [graph.spec.describe() for graph in self.recorder.graphs]


def ids(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


def test_positional_keyword_and_defaulted_calls_are_one_graph() -> None:
    record = Recording(forward)
    x, mask = torch.randn(2, 3), torch.ones(2)

    record(x, mask)
    sample = record(mask=mask, x=x, scale=1.0)

    assert [graph.calls for graph in record.recorder.graphs] == [2]
    assert (len(sample.args), dict(sample.kwargs)) == (2, {})


def test_what_was_left_out_stays_left_out() -> None:
    sample = Recording(forward)(torch.ones(1), None, scale=0.5)

    assert (len(sample.args), dict(sample.kwargs)) == (1, {"scale": 0.5})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((torch.ones(2),), (torch.ones(2, 1),)),
        ((torch.ones(2),), (torch.ones(2).double(),)),
        ((torch.ones(2),), (torch.ones(2), torch.ones(2))),
        ((torch.ones(2), None, 1), (torch.ones(2), None, True)),
        (([torch.ones(2)],), ((torch.ones(2),),)),
    ],
    ids=["rank", "dtype", "structure", "constant", "container"],
)
def test_another_kind_of_input_is_another_graph(
    first: tuple[object, ...], second: tuple[object, ...]
) -> None:
    record = Recording(forward)

    record(*first)
    record(*second)

    assert len({graph.spec for graph in record.recorder.graphs}) == 2


def test_sizes_are_ranges_and_those_that_go_together_share_a_symbol() -> None:
    record = Recording(forward)

    record(ids(2, 5), ids(2, 7))
    record(ids(2, 6), ids(2, 7))
    record(ids(4, 5), ids(4, 7))

    (description,) = record.descriptions
    first, second = description.split("x: int64[")[1].split("]")[0].split(", ")
    assert first.endswith("=2..4")
    assert second.endswith("=5..6")
    assert f"mask: int64[{first}, 7]" in description
    assert first.split("=")[0] != second.split("=")[0]


def test_declared_sizes_count_before_those_that_were_seen() -> None:
    record = Recording(forward, {"x": {0: BatchDim(1, 64), -1: DynamicDim("n", 2, 9)}})

    record(ids(2, 5), ids(2))
    record(ids(3, 5), ids(3))

    assert record.recorder.graphs[0].spec.symbols == {
        "batch": SizeRange(1, 64, "batch", is_batch=True),
        "n": SizeRange(2, 9, "n"),
    }
    assert "mask: int64[batch=1..64]" in record.descriptions[0]


def test_a_size_outside_its_declared_range_is_refused() -> None:
    record = Recording(forward, {"x": {0: BatchDim(1, 4)}})

    with pytest.raises(ValueError, match=r"'batch' is declared to lie in \[1, 4\], got 5"):
        record(ids(5))


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"y": {0: BatchDim(1, 4)}}, "names y; forward has the parameters x, mask"),
        ({"x": {2: BatchDim(1, 4)}}, "x has 2 dimensions, none is number 2"),
        ({"x": {"n": 4}}, "x is a tensor: declare"),
        ({"mask": {"n": {0: BatchDim(1, 4)}}}, "mask has no key 'n'; it has \\['m'\\]"),
        ({"scale": {0: BatchDim(1, 4)}}, "scale is a float, which has no sizes"),
    ],
)
def test_a_declaration_that_does_not_fit_says_so(declared: DeclaredShapes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recording(forward, declared)(ids(2, 2), {"m": ids(2)})


@pytest.mark.parametrize("bounds", [(0, 4), (5, 4)])
def test_a_range_must_be_one(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="needs 1 <= min <= max"):
        DynamicDim("n", *bounds)


def test_samples_are_copies() -> None:
    x = torch.zeros(2)
    sample = Recording(nested)({"x": [x]})

    x.add_(1)

    (copy,) = (leaf for leaf in sample.leaves() if isinstance(leaf, Tensor))
    assert copy.tolist() == [0.0, 0.0]


def test_what_cannot_be_copied_is_recorded_as_it_is() -> None:
    lock, module = threading.Lock(), nn.Linear(1, 1)

    assert Recording(nested)([lock, module]).args == ([lock, module],)


def test_samples_are_few_and_of_many_sizes() -> None:
    record = Recording(forward)
    for _ in range(3 * MAX_SAMPLES):
        record(ids(1))
    for size in (7, 9):
        record(ids(size))

    (graph,) = record.recorder.graphs
    leaves = [sample.leaves()[0] for sample in graph.samples]
    sizes = [leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor)]

    assert graph.calls == 3 * MAX_SAMPLES + 2
    assert sorted(sizes) == [1] * (MAX_SAMPLES - 2) + [7, 9]


def test_a_constant_that_is_new_each_time_does_not_fill_the_memory() -> None:
    record = Recording(forward)
    for step in range(MAX_GRAPHS + 5):
        record(ids(1), scale=float(step))

    assert len(record.recorder.graphs) == MAX_GRAPHS
    assert record.recorder.left_out == 5


@dataclass
class Batch:
    x: Tensor
    name: str = "first"


class Slots:
    """An object of the user's with tensors inside, as caches are."""

    def __init__(self, *keys: Tensor) -> None:
        self.keys = list(keys)


def test_a_cache_that_the_call_fills_is_recorded_as_it_was_before() -> None:
    cache = Slots()
    sample = Recording(nested)(cache)

    cache.keys.append(ids(2))

    (copy,) = sample.args
    assert isinstance(copy, Slots)
    assert copy.keys == []


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (Batch(ids(2)), ["batch['x']"]),
        (UserDict({"a": ids(2)}), ["batch['data']['a']"]),
        (Slots(ids(2), ids(3)), ["batch['keys'][0]", "batch['keys'][1]"]),
        ({"a": (ids(2), [ids(1)])}, ["batch['a'][0]", "batch['a'][1][0]"]),
    ],
    ids=["dataclass", "UserDict", "cache", "nested"],
)
def test_nested_and_user_defined_inputs(value: object, names: list[str]) -> None:
    record = Recording(nested)

    sample = record(value)

    assert [tensor.name for tensor in record.recorder.graphs[0].spec.tensors] == names
    assert type(sample.args[0]) is type(value)
    assert sample.args[0] is not value


class Registered:
    """A class that pytree knows without names of its keys, as those of transformers are."""

    def __init__(self, *values: object) -> None:
        self.values = list(values)


@pytest.fixture
def _registered() -> Iterator[None]:
    pytree.register_pytree_node(
        Registered, lambda it: (it.values, None), lambda values, _: Registered(*values)
    )
    yield
    del pytree.SUPPORTED_NODES[Registered]
    del pytree.SUPPORTED_SERIALIZED_TYPES[Registered]


@pytest.mark.usefixtures("_registered")
def test_classes_registered_without_key_names_are_taken() -> None:
    record = Recording(nested)

    record(Registered(ids(2), {"m": ids(1)}))

    names = [tensor.name for tensor in record.recorder.graphs[0].spec.tensors]
    assert names == ["batch[0]", "batch[1]['m']"]


def test_a_sample_is_resized_by_repeating_it() -> None:
    record = Recording(forward, {"x": {0: BatchDim(1, 5)}})
    record(torch.tensor([[1, 2], [3, 4]]), torch.tensor([7]))
    graph = record.recorder.graphs[0]

    larger = resized(graph.samples[0], graph.spec, {"batch": 5}).leaves()

    assert [leaf.tolist() for leaf in larger if isinstance(leaf, Tensor)] == [
        [[1, 2], [3, 4], [1, 2], [3, 4], [1, 2]],
        [7],
    ]
    assert graph.spec.range_ends() == [{"batch": 1}, {"batch": 5}]


def test_shapes_for_export_share_a_dim_where_sizes_go_together() -> None:
    declared = {"x": {0: BatchDim(1, 5)}, "mask": {"m": {0: BatchDim(1, 5)}}}
    record = Recording(forward, declared)
    record(ids(1, 2), {"m": ids(1)})
    graph = record.recorder.graphs[0]

    sizes = tracing_sizes(graph.samples[0], graph.spec)
    shapes = export_shapes(forward, graph.samples[0], graph.spec)

    assert sizes == {"batch": 2}
    assert shapes is not None
    x, mask = shapes["x"], cast("Mapping[str, object]", shapes["mask"])["m"]
    assert str(x) == str(mask)
    assert "batch" in str(x)
