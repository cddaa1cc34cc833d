import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.errors import CalibrationError, CheckpointError, OutputPathError, SearchError
from embedl_deploy.passes.precision_groups import PrecisionGroup, groups_of
from embedl_deploy.quantize import (
    PrecisionSearchResult,
    QuantConfig,
    WeightFakeQuantize,
    load_config,
    quantize,
    save_config,
    search_precision,
)
from embedl_deploy.transformation import transform

GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [torch.randn(2, 8, generator=GENERATOR) for _ in range(3)]
CONFIG = QuantConfig(smooth=None)
DROP = 4e-6
"""Kept by some groups, not by all."""


class Net(nn.Module):
    """Four layers, the second of which has a channel that int8 cannot do justice to."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.c, self.d = nn.Linear(8, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.a.weight[0] *= 300.0
            self.b.weight[:, 0] /= 300.0

    def forward(self, x: Tensor) -> Tensor:
        return self.d(torch.relu(self.c(self.b(self.a(x)).tanh())))


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def fused() -> GraphModule:
    return transform(net(), (BATCHES[0],), backend=INDUCTOR).model


def fidelity(model: nn.Module) -> float:
    """Returns minus the relative squared error against the float model."""
    exact = net()
    with torch.no_grad():
        noise = sum(float((model(x) - exact(x)).square().sum()) for x in BATCHES)
        return -noise / sum(float(exact(x).square().sum()) for x in BATCHES)


def one_each(quantized: GraphModule, groups: Sequence[PrecisionGroup]) -> list[float]:
    del quantized
    return [1.0] * len(groups)


def nothing_saved(quantized: GraphModule, groups: Sequence[PrecisionGroup]) -> list[float]:
    del quantized
    return [-1.0] * len(groups)


def one_for_all(quantized: GraphModule, groups: Sequence[PrecisionGroup]) -> list[float]:
    del quantized, groups
    return [1.0]


def always_ten(graphs: Sequence[GraphModule]) -> list[float]:
    return [10.0] * len(graphs)


def one_less_each(graphs: Sequence[GraphModule]) -> list[float]:
    return [10.0 - count(graph) for graph in graphs]


def never_a_number(model: nn.Module) -> float:
    del model
    return float("nan")


def in_words(model: nn.Module) -> str:
    del model
    return "good"


def infinite_if_quantized(model: nn.Module) -> float:
    return float("inf") if count(model) else 1.0


def count(graph: nn.Module) -> int:
    return sum(isinstance(module, WeightFakeQuantize) for module in graph.modules())


def search(model: nn.Module, **options: object) -> PrecisionSearchResult:
    options = {"data": BATCHES, "metric": fidelity, "config": CONFIG, "costs": one_each} | options
    return search_precision(model, **options)  # pyright: ignore[reportArgumentType]  # as a user may


def test_everything_is_quantized_where_the_drop_allows_it(fused: GraphModule) -> None:
    found = search(fused, max_drop=1.0)

    assert found.quantized == ("a", "b", "c", "d")
    assert found.config == CONFIG
    assert len(found.trials) == 1
    assert found.drop == -fidelity(quantize(fused, config=CONFIG, forward_loop=BATCHES))


def test_backs_off_until_the_metric_keeps_to_the_drop(fused: GraphModule) -> None:
    everything = search(fused, max_drop=1.0).drop
    limit = everything / 50

    found = search(fused, max_drop=limit)

    assert 0.0 < found.drop <= limit
    assert 0 < len(found.quantized) < 4
    assert len(found.trials) > 1
    assert found.float_metric - found.trials[0].metric > limit
    worst = max(found.groups, key=lambda group: group.error)
    assert worst.name in found.in_float
    assert "left in float: max_drop=" in worst.reason


def test_the_configuration_gives_quantize_what_was_chosen(
    fused: GraphModule, tmp_path: Path
) -> None:
    found = search(fused, max_drop=search(fused, max_drop=1.0).drop / 50)
    save_config(found.config, tmp_path / "config.json")

    again = quantize(
        net(),
        (BATCHES[0],),
        load_config(tmp_path / "config.json"),
        BATCHES,
        freeze_weights=True,
        backend=INDUCTOR,
    )

    assert tuple(group.name for group in groups_of(again).groups) == found.quantized
    assert fidelity(again) == found.chosen.metric


def test_bytes_are_kept_with_the_least_error(fused: GraphModule) -> None:
    smallest = search(fused, max_drop=1.0).chosen.bytes
    found = search(fused, max_bytes=smallest + 200)
    errors = {group.name: group.error for group in found.groups}
    savings = {group.name: group.saving for group in found.groups}

    assert found.chosen.bytes <= smallest + 200
    assert found.float_bytes - found.chosen.bytes == sum(savings[name] for name in found.quantized)
    for name in found.in_float:
        for other in found.quantized:
            swapped = found.chosen.bytes + savings[other] - savings[name]
            assert swapped > smallest + 200 or errors[name] >= errors[other]


def test_latency_is_measured_and_backed_off_where_the_prediction_is_wrong(
    fused: GraphModule,
) -> None:
    seen: list[int] = []

    def measure(graphs: Sequence[GraphModule]) -> list[float]:
        seen.extend(map(count, graphs))
        return [10.0 - count(graph) ** 2 / 2 for graph in graphs]

    found = search(fused, max_latency_ms=6.0, measure=measure)

    # Two of four look enough from both ends, 10 ms and 2 ms; measured they take 8.
    assert seen == [0, 4, 2, 3]
    assert len(found.quantized) == 3
    assert (found.float_latency_ms, found.chosen.latency_ms) == (10.0, 5.5)
    assert found.everything is not None
    assert found.everything.latency_ms == 2.0
    kept = max(found.groups, key=lambda group: group.error)
    assert found.in_float == (kept.name,)


def test_a_float_model_that_is_fast_enough_stays_as_it_is(fused: GraphModule) -> None:
    found = search(fused, max_latency_ms=11.0, measure=always_ten)

    assert found.quantized == ()
    assert found.drop == pytest.approx(0.0, abs=1e-9)


def test_what_loses_time_is_never_quantized(fused: GraphModule) -> None:
    def measure(graphs: Sequence[GraphModule]) -> list[float]:
        return [10.0 - count(graph) + 3.0 * ("b" in quantized_names(graph)) for graph in graphs]

    found = search(fused, max_drop=1.0, costs="measured", measure=measure)

    assert found.in_float == ("b",)
    assert "saves nothing" in next(group.reason for group in found.groups if group.name == "b")


def test_what_is_fastest_as_a_whole_is_chosen_where_savings_mislead(fused: GraphModule) -> None:
    def measure(graphs: Sequence[GraphModule]) -> list[float]:
        # Each group saves on average, yet three are faster than four.
        return [(10.0, 8.0, 7.0, 6.0, 6.5)[count(graph)] for graph in graphs]

    found = search(fused, max_drop=1.0, costs="measured", measure=measure)

    assert len(found.quantized) == 3
    assert (found.float_latency_ms, found.chosen.latency_ms) == (10.0, 6.0)
    assert found.everything is not None
    assert found.everything.latency_ms == 6.5


def test_what_pays_only_next_to_its_like_is_quantized(fused: GraphModule) -> None:
    def measure(graphs: Sequence[GraphModule]) -> list[float]:
        # Each alone loses 3 ms, the last one gains 5: in the mean and as the first they differ.
        return [(10.0, 13.0, 14.0, 13.0, 8.0)[count(graph)] for graph in graphs]

    found = search(fused, max_drop=1.0, costs="measured", measure=measure)

    assert len(found.quantized) == 4
    assert found.chosen.latency_ms == 8.0
    assert all("it saves" in group.reason for group in found.groups)


def test_of_equally_fast_choices_the_one_with_the_least_error_is_taken(fused: GraphModule) -> None:
    def measure(graphs: Sequence[GraphModule]) -> list[float]:
        return [10.0 - min(count(graph), 3) - 0.01 * count(graph) for graph in graphs]

    found = search(fused, max_drop=1.0, costs="measured", measure=measure)

    assert len(found.quantized) == 3
    worst = max(found.groups, key=lambda group: group.error)
    assert found.in_float == (worst.name,)


def test_the_fastest_keeps_to_the_drop(fused: GraphModule) -> None:
    def measure(graphs: Sequence[GraphModule]) -> list[float]:
        return [10.0 - count(graph) for graph in graphs]

    limit = search(fused, max_drop=1.0).drop / 50
    found = search(fused, max_drop=limit, costs="measured", measure=measure)

    assert found.drop <= limit
    assert 0 < len(found.quantized) < 4


def test_says_that_the_float_model_is_the_fastest(fused: GraphModule) -> None:
    everything = quantize(fused, config=CONFIG, forward_loop=BATCHES)
    signatures = {group.signature for group in groups_of(everything).groups}
    calls: list[int] = []

    def measure(graphs: Sequence[GraphModule]) -> list[float]:
        calls.append(len(graphs))
        if len(calls) <= len(signatures):  # to know what is saved
            return [(10.0, 9.0, 11.0, 10.5, 10.1)[count(graph)] for graph in graphs]
        return [10.0, *(10.2 for _ in graphs[1:])]

    with pytest.raises(SearchError, match=r"faster than the float model: it takes 10 ms, the fas"):
        search(fused, max_drop=1.0, costs="measured", measure=measure)


def quantized_names(graph: GraphModule) -> tuple[str, ...]:
    return tuple(group.name for group in groups_of(graph).groups) if count(graph) else ()


def test_two_searches_find_the_same(fused: GraphModule, tmp_path: Path) -> None:
    one = search(fused, max_drop=DROP, state=tmp_path / "one.json", sensitivity="gradient")

    two = search(
        net(),
        max_drop=DROP,
        state=tmp_path / "two.json",
        sensitivity="gradient",
        args=(BATCHES[0],),
        backend=INDUCTOR,
    )

    assert one == two
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def interrupted_at(step: str) -> Callable[[str], None]:
    def progress(told: str) -> None:
        if told == step:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    "step",
    ["sensitivities, batch 2", "checking 4 of 4 groups quantized", "metric of the float model"],
)
def test_an_interrupted_search_goes_on(fused: GraphModule, tmp_path: Path, step: str) -> None:
    whole = search(fused, max_drop=DROP)
    steps: list[str] = []

    with pytest.raises(KeyboardInterrupt):
        search(fused, max_drop=DROP, state=tmp_path / "state", progress=interrupted_at(step))
    found = search(fused, max_drop=DROP, state=tmp_path / "state", progress=steps.append)

    assert found == whole
    assert "sensitivities, batch 1" not in steps or step == "metric of the float model"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_what_was_tried_is_not_tried_again_under_another_budget(
    fused: GraphModule, tmp_path: Path
) -> None:
    first = search(fused, max_drop=DROP, state=tmp_path / "state")
    steps: list[str] = []

    again = search(fused, max_drop=DROP, state=tmp_path / "state", progress=steps.append)
    search(fused, max_drop=1.0, state=tmp_path / "state", progress=steps.append)

    assert again == first
    assert steps == ["quantizing everything"] * 2


def other_metric(model: nn.Module) -> float:
    return fidelity(model)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"metric": other_metric}, "another metric"),
        ({"data": BATCHES[:2]}, "another data"),
        ({"config": replace(CONFIG, bias_correction=False)}, "another configuration"),
        ({"sensitivity": "gradient"}, "another method"),
    ],
)
def test_refuses_the_state_of_another_search(
    fused: GraphModule, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    search(fused, max_drop=1.0, state=tmp_path / "state")

    with pytest.raises(CheckpointError, match=named):
        search(fused, max_drop=1.0, state=tmp_path / "state", **change)


def test_refuses_the_state_of_other_weights_and_damaged_ones(
    fused: GraphModule, tmp_path: Path
) -> None:
    path = tmp_path / "state"
    search(fused, max_drop=1.0, state=path)
    document = json.loads(path.read_text())
    document["fingerprint"]["weights"] = "0" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="another weights: name another file"):
        search(fused, max_drop=1.0, state=path)

    path.write_text(path.read_text()[:-40])
    with pytest.raises(CheckpointError, match="holds no state of a search"):
        search(fused, max_drop=1.0, state=path)
    with pytest.raises(OutputPathError, match="there is no folder"):
        search(fused, max_drop=1.0, state=tmp_path / "none" / "state")


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "takes one of max_drop, max_latency_ms, max_bytes, got none"),
        ({"max_drop": 0.1, "max_bytes": 5}, "got max_drop and max_bytes"),
        ({"max_drop": -0.1}, "max_drop must be finite and at least 0, got -0.1"),
        ({"max_latency_ms": 0.0}, "max_latency_ms must be finite and above 0"),
        ({"max_bytes": float("nan")}, "max_bytes must be finite"),
    ],
)
def test_refuses_budgets_that_make_no_sense(
    fused: GraphModule, budget: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        search(fused, **budget)


@pytest.mark.parametrize("data", [None, [], iter(())])
def test_refuses_to_search_without_data(fused: GraphModule, data: object) -> None:
    with pytest.raises(CalibrationError, match="needs data"):
        search(fused, max_drop=0.1, data=data)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (never_a_number, "a finite number, got nan for the float model"),
        (in_words, "one number, got str for the float model"),
        (infinite_if_quantized, "got inf for the model with 4"),
    ],
)
def test_refuses_metrics_that_cannot_be_compared(
    fused: GraphModule, metric: Callable[[nn.Module], object], message: str
) -> None:
    with pytest.raises(SearchError, match=message):
        search(fused, max_drop=0.1, metric=metric)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": 1e-12}, r"the least drop found .* with 1 of 4 groups, of the float model's"),
        ({"max_bytes": 100}, r"the smallest possible is \d+ with 4 of 4 groups quantized"),
        (
            {"max_latency_ms": 5.0, "measure": one_less_each},
            "the fastest found takes 6 with 4 of 4 groups quantized, the float model 10",
        ),
        ({"max_drop": 1.0, "costs": nothing_saved}, "save anything"),
        ({"max_drop": 1.0, "costs": one_for_all}, "one finite number for each of 4 groups"),
    ],
)
def test_says_what_comes_closest_where_no_choice_keeps_to_the_budget(
    fused: GraphModule, options: dict[str, object], message: str
) -> None:
    with pytest.raises(SearchError, match=message):
        search(fused, **options)


def test_refuses_a_model_in_which_nothing_is_quantized() -> None:
    fused = transform(nn.Sequential(nn.ReLU()).eval(), (BATCHES[0],), backend=INDUCTOR).model

    with pytest.raises(SearchError, match="there is nothing to choose"):
        search(fused, max_drop=0.1)
