import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.zoo.cases import Case
from benchmarks.zoo.coverage import converted_macs, float_macs
from benchmarks.zoo.quantized import (
    REASONS,
    earlier_rows,
    error_of_noise,
    quantized_row,
    run_case,
    summarise,
)
from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.quantization.placement import Decision, Placement
from embedl_deploy.quantize import ModulesToSkip, QuantConfig, convert, quantize

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
STEM, HEAD, PRODUCTS = 2 * 64 * 4 * 27, 2 * 64 * 5 * 4, 2 * 2 * 64 * 64 * 4


class Net(nn.Module):
    """A convolution, two products of activations, a transposed operand and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.stem(x).flatten(2).transpose(1, 2)
        return self.head((rows @ rows.transpose(1, 2)) @ rows)


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def test_the_total_is_that_of_torch_without_products_of_activations() -> None:
    assert float_macs(net(), (IMAGE,), {}) == (STEM + HEAD, PRODUCTS)


def test_counts_every_layer_of_a_quantized_model() -> None:
    model = quantize(net(), (IMAGE,), forward_loop=[IMAGE], backend=INDUCTOR)

    count = converted_macs(convert(model), (IMAGE,), {})

    assert count.covered == count.total == STEM + HEAD


def test_products_of_constants_count_for_nothing_and_yield_no_weight() -> None:
    class Positions(Net):
        def forward(self, x: Tensor) -> Tensor:
            positions = self.head(self.head.weight)
            return super().forward(x) @ positions.t()

    total, aside = float_macs(Positions().eval(), (IMAGE,), {})

    assert total == STEM + HEAD
    assert aside == PRODUCTS + 5 * 4 * 5 + 2 * 64 * 5 * 5


@pytest.mark.parametrize("field", ["stub", "weight"])
def test_a_layer_with_one_float_operand_is_not_covered(field: str) -> None:
    skip = ModulesToSkip(**{field: {"head"}})
    config = QuantConfig(skip=skip, smooth=None)
    model = quantize(net(), (IMAGE,), config, [IMAGE], backend=INDUCTOR)

    count = converted_macs(convert(model), (IMAGE,), {})

    assert count.covered == STEM
    (missed,) = count.uncovered
    assert missed.macs == HEAD
    assert missed.float_operands == ("activation" if field == "stub" else "weight",)


def test_a_float_model_is_not_covered_at_all() -> None:
    model = quantize(net(), (IMAGE,), forward_loop=[IMAGE], backend=INDUCTOR)
    converted = convert(model)
    for node in list(converted.graph.nodes):
        if "dequantize_per_tensor" in node.name:
            node.replace_all_uses_with(node.all_input_nodes[0].all_input_nodes[0])
    converted.graph.eliminate_dead_code()
    converted.recompile()

    assert converted_macs(converted, (IMAGE,), {}).covered == 0


def test_a_row_says_what_is_in_float_and_why() -> None:
    class Double(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).double() @ torch.ones(5, 2, dtype=torch.float64)

    row = quantized_row(Double().eval(), (IMAGE,), {}, INDUCTOR)

    assert row["covered_macs"] == STEM + HEAD
    assert row["findings"] == []
    assert str(row["float"]).count("'reason'") == 1
    assert REASONS[0] in str(row["float"])


def test_a_recurrent_layer_is_in_float_because_the_table_says_so() -> None:
    class Reads(Net):
        def __init__(self) -> None:
            super().__init__()
            self.reader = nn.GRUCell(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.reader(super().forward(x)[:, 0])

    placement = INDUCTOR.placement
    assert isinstance(placement, Placement)
    decision = Decision(quantized=True, reason="it has a kernel for it")
    decisions = {**placement.decisions, "recurrent-layer": decision}
    other = replace(INDUCTOR, placement=replace(placement, decisions=decisions))

    row = quantized_row(Reads().eval(), (IMAGE,), {}, INDUCTOR)
    unexcused = quantized_row(Reads().eval(), (IMAGE,), {}, other)

    assert row["covered_macs"] == STEM + HEAD
    assert f"'reason': '{REASONS[1]}'" in str(row["float"]).replace('"', "'")
    assert str(unexcused["float"]).count("'reason': ''") == str(row["float"]).count("'reason'") > 0


def test_a_run_fails_on_a_failure_a_finding_or_a_share_below_the_bar() -> None:
    known: dict[str, object] = {"commit": "abc"}
    fine: dict[str, object] = {**known, "findings": [], "share": 0.9, "share_with_excused": 0.95}
    rows: list[dict[str, object]] = [
        {"model": "fine", **fine},
        {"model": "broken", **known, "failure": "ValueError: no"},
        {"model": "found", **fine, "findings": ["QDQ001"]},
        {"model": "short", **fine, "share": 0.5, "share_with_excused": 0.94},
        {"model": "large", **known, "left_out": "too large"},
    ]

    summary = summarise(rows)

    assert (summary["failed"], summary["findings"]) == (["broken"], ["found"])
    assert (summary["below"], summary["left_out"]) == (["short"], ["large"])
    assert (summary["commits"], summary["lowest_share"]) == ({"abc": 5}, 0.5)


def test_a_model_that_cannot_be_quantized_is_a_row_with_its_failure() -> None:
    case = Case("net", net, lambda _: ((IMAGE,), {}))

    assert run_case(case, "inductor")["share"] == 1.0
    assert "no placement" in str(run_case(case, "lattice")["failure"])
    assert "left_out" not in run_case(case, "inductor", largest=1.0)
    assert "left_out" in run_case(case, "inductor", largest=1e-9)


def test_a_resumed_run_repeats_what_fell_short_and_knows_the_commit_of_each_row(
    tmp_path: Path,
) -> None:
    fine: dict[str, object] = {"findings": [], "share_with_excused": 0.95}
    rows: list[dict[str, object]] = [
        {"model": "old", **fine},
        {"model": "newer", **fine, "commit": "newer"},
        {"model": "broken", "failure": "ValueError: no"},
        {"model": "found", **fine, "findings": ["QDQ001"]},
        {"model": "short", **fine, "share_with_excused": 0.94},
        {"model": "large", "left_out": "too large"},
    ]
    output = tmp_path / "rows.json"
    output.write_text(json.dumps({"machine": {"commit": "older"}, "rows": rows}))

    kept = earlier_rows(output)

    assert [(row["model"], row["commit"]) for row in kept] == [("old", "older"), ("newer", "newer")]
    assert earlier_rows(tmp_path / "none.json") == []


def test_noise_behind_every_layer_tells_a_network_that_amplifies_it() -> None:
    torch.manual_seed(0)
    steady = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).eval()
    rows = torch.randn(8, 16)

    class Cancels(nn.Module):
        """Subtracts two layers that agree in all but a thousandth."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(16, 16), nn.Linear(16, 16)
            self.other.load_state_dict({k: 0.999 * v for k, v in self.one.state_dict().items()})

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) - self.other(x)

    assert 0.01 < error_of_noise(steady, (rows,), {}) < 0.05
    assert error_of_noise(Cancels().eval(), (rows,), {}) > 5
    assert torch.equal(steady(rows), steady(rows))  # the hooks are gone


def test_cases_that_compare_in_float64_are_quantized_in_float32() -> None:
    case = Case("net", net, lambda _: ((IMAGE,), {}), in_float64=True)

    assert run_case(case, "inductor")["share"] == 1.0


def test_a_share_is_of_all_that_either_graph_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("net", net, lambda _: ((IMAGE,), {}))

    def stem_alone(*_: object) -> tuple[int, int]:
        return STEM, 0

    monkeypatch.setattr("benchmarks.zoo.quantized.float_macs", stem_alone)

    row = run_case(case, "inductor")

    assert (row["macs"], row["converted_macs"]) == (STEM, STEM + HEAD)
    assert row["share"] == row["share_with_excused"] == 1.0


def test_layers_that_read_nothing_but_made_up_positions_count_for_nothing() -> None:
    class Positions(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.head(torch.arange(4.0).sin())

    model = Positions().eval()
    converted = convert(quantize(model, (IMAGE,), forward_loop=[IMAGE], backend=INDUCTOR))

    total, _ = float_macs(model, (IMAGE,), {})

    assert total == converted_macs(converted, (IMAGE,), {}).covered == STEM + HEAD
