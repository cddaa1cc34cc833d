import json
import math
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from openvino import opset13
from torch import Tensor, nn

from benchmarks.accuracy.digits_nets import NETS
from benchmarks.accuracy.judge import is_significantly_worse, score
from benchmarks.accuracy.run import finished, read_rows
from benchmarks.accuracy.shares import all_macs, integer_linears, openvino_share, torch_share
from benchmarks.accuracy.tools import OURS, OURS_AS_TORCHAO, OURS_GPTQ
from benchmarks.accuracy.verdict import RATIO, Row, bars, mean_ratio, verdict
from embedl_deploy.quantize import ModulesToSkip, QuantConfig, convert, quantize

REFERENCE = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(200, 10, generator=torch.Generator().manual_seed(1))


def test_noise_is_relative_and_snr_is_its_level() -> None:
    found = score(REFERENCE * 1.1, REFERENCE)

    assert found.noise == pytest.approx(0.1)
    assert found.snr_db == pytest.approx(20.0)
    assert found.top1_agreement == 1.0
    assert found.kl > 0.0


def test_equal_outputs_have_no_noise() -> None:
    found = score(REFERENCE, REFERENCE)

    assert (found.noise, found.kl, found.snr_db) == (0.0, 0.0, math.inf)


def test_only_a_clear_difference_is_significant() -> None:
    small = score(REFERENCE + 0.10 * NOISE, REFERENCE).losses["noise"]
    large = score(REFERENCE + 0.12 * NOISE, REFERENCE).losses["noise"]
    shuffled = small[torch.randperm(200, generator=torch.Generator().manual_seed(2))]

    assert is_significantly_worse(large, small)
    assert not is_significantly_worse(small, large)
    assert not is_significantly_worse(shuffled, small)


@pytest.mark.parametrize("name", list(NETS))
def test_every_net_gives_ten_scores(name: str) -> None:
    build, _ = NETS[name]

    assert build().eval()(torch.zeros(2, 1, 16, 16)).shape == (2, 10)


def test_top1_is_judged_by_the_truth_where_there_is_one() -> None:
    truth = REFERENCE.argmax(1)
    truth[:50] = (truth[:50] + 1) % 10

    found = score(REFERENCE, REFERENCE, truth)

    assert float(found.losses["top1"].mean()) == pytest.approx(0.25)
    assert found.top1_agreement == 1.0


def test_each_measure_is_compared_with_the_peer_that_is_best_in_it() -> None:
    scores = {
        OURS: score(REFERENCE + 0.2 * NOISE, REFERENCE),
        "far": score(REFERENCE + 0.4 * NOISE, REFERENCE),
        "near": score(REFERENCE + 0.1 * NOISE, REFERENCE),
    }

    found = verdict(scores, {OURS: 0.9, "far": 0.9, "near": 0.8}, ["noise", "kl"])

    assert found["best peer"] == "near"
    assert found[RATIO] == pytest.approx(2.0)
    assert found["significantly worse"] == {"noise": True, "kl": True}
    assert found["int8 share at or above the peers'"] is True
    assert verdict({OURS: scores[OURS]}, {OURS: 0.9}, ["noise"]) == {}


def test_a_peer_that_takes_fewer_layers_is_compared_with_ours_on_as_few() -> None:
    scores = {
        OURS: score(REFERENCE + 0.2 * NOISE, REFERENCE),
        OURS_AS_TORCHAO: score(REFERENCE + 0.05 * NOISE, REFERENCE),
        "few layers": score(REFERENCE + 0.1 * NOISE, REFERENCE),
        "all layers": score(REFERENCE + 0.25 * NOISE, REFERENCE),
    }
    shares = {OURS: 0.9, OURS_AS_TORCHAO: 0.3, "few layers": 0.3, "all layers": 0.9}

    found = verdict(scores, shares, ["noise"])

    assert found["compared with"] == {"few layers": OURS_AS_TORCHAO, "all layers": OURS}
    assert (found["best peer"], found[RATIO]) == ("all layers", pytest.approx(0.8))
    assert found["significantly worse"] == {"noise": False}
    assert found["int8 share at or above the peers'"] is True


def test_of_ours_on_the_same_layers_the_better_counts() -> None:
    scores = {
        OURS: score(REFERENCE + 0.2 * NOISE, REFERENCE),
        OURS_GPTQ: score(REFERENCE + 0.1 * NOISE, REFERENCE),
        "peer": score(REFERENCE + 0.2 * NOISE, REFERENCE),
    }

    found = verdict(scores, dict.fromkeys(scores, 0.9), ["noise"])

    assert found["compared with"] == {"peer": OURS_GPTQ}
    assert found[RATIO] == pytest.approx(0.5)


def test_what_a_tool_runs_as_one_operation_counts_in_the_total() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    rows = torch.randn(2, 4, 8)

    # Four projections of 8 by 8 and two products of 8 by 16, for 8 rows; two products of attention.
    assert all_macs(layer.eval(), (rows,)) == 8 * (4 * 64 + 2 * 128) + 2 * 2 * 4 * 4 * 8


def row_with(ratio: float, *, top1: float, is_worse: bool = False) -> Row:
    return {
        RATIO: ratio,
        "significantly worse": {"noise": False, "kl": is_worse},
        "int8 share at or above the peers'": True,
        "top1 of fp32": 0.98,
        "tools": {OURS: {"top1": top1}},
    }


def test_bars_are_met_by_all_rows_or_not_at_all() -> None:
    good, bad = row_with(0.5, top1=0.978), row_with(1.0, top1=0.97, is_worse=True)

    assert mean_ratio({"a": good, "b": bad}) == pytest.approx(math.sqrt(0.5))
    assert all(bars({"a": good}).values())
    assert bars({"a": good, "b": bad}) == {
        "geometric mean at most 0.9": True,
        "no row significantly worse": False,
        "int8 share at or above the peers'": True,
        "trained nets lose at most 0.3%": False,
    }


def test_only_rows_of_this_commit_and_these_tools_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "accuracy.json"
    rows = {
        "mine": {"commit": "abc", "asked": ["a", "b"]},
        "older": {"commit": "abd", "asked": ["a", "b"]},
        "fewer": {"commit": "abc", "asked": ["a"]},
    }
    file.write_text(json.dumps({"rows": rows}))

    assert list(finished(read_rows(file), ["a", "b"], "abc")) == ["mine"]
    assert finished(read_rows(file), ["a", "b"], "abc+") == {}
    assert read_rows(tmp_path / "none.json") == {}


def test_linear_layers_left_in_float_are_counted() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)).eval()
    rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    config = QuantConfig(skip=ModulesToSkip(stub={"1"}, weight={"1"}))

    graph = quantize(model, (rows,), config, forward_loop=[rows], backend="inductor")

    assert integer_linears(convert(graph)) == (1, 2)


class ScaledCodes(nn.Module):
    """A weight as nncf spells it, and an activation that is rounded to codes or not."""

    codes: Tensor
    scale: Tensor

    def __init__(self, *, rounds: bool) -> None:
        super().__init__()
        self.rounds = rounds
        self.register_buffer("codes", torch.randint(-127, 127, (4, 8), dtype=torch.int8))
        self.register_buffer("scale", torch.full((4, 1), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        if self.rounds:
            ops = torch.ops.quantized_decomposed
            grid = (0.1, 0, -128, 127, torch.int8)
            x = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *grid), *grid)
        return nn.functional.linear(x.flatten(1), self.codes * self.scale - 0.0 * self.scale)


@pytest.mark.parametrize("rounds", [True, False])
def test_weights_spelled_as_scaled_codes_count_if_the_activation_is_rounded(rounds: bool) -> None:
    share = torch_share(
        ScaledCodes(rounds=rounds),
        nn.Sequential(nn.Flatten(), nn.Linear(8, 4)),
        (torch.randn(2, 8),),
    )

    assert share == float(rounds)


def test_openvino_products_count_where_both_operands_are_codes() -> None:
    image = opset13.parameter([1, 3, 8, 8], np.float32)
    low, high = (opset13.constant(np.float32(value)) for value in (-1, 1))
    codes = opset13.fake_quantize(image, low, high, low, high, 256)
    weight = opset13.constant(np.ones((4, 3, 3, 3), np.int8))
    scaled = opset13.multiply(opset13.convert(weight, "f32"), opset13.constant(np.float32(0.1)))
    sides = ([1, 1], [0, 0], [0, 0], [1, 1])
    inner = opset13.convolution(codes, scaled, *sides)
    rounded = opset13.fake_quantize(inner, low, high, low, high, 256)
    rows = opset13.reshape(rounded, opset13.constant([4, 36]), False)
    product = opset13.matmul(rows, opset13.constant(np.ones((36, 3), np.float32)), False, False)
    # The stub of ``openvino.Model`` does not type-check against itself.
    model = openvino.Model([product], [image])  # pyright: ignore[reportGeneralTypeIssues]

    integers, floats = 36 * 4 * 27, 4 * 36 * 3
    assert openvino_share(model) == pytest.approx(integers / (integers + floats))


def test_attention_that_openvino_runs_as_one_op_counts_as_float() -> None:
    states = opset13.parameter([1, 2, 5, 8], np.float32)
    low, high = (opset13.constant(np.float32(value)) for value in (-1, 1))
    codes = opset13.fake_quantize(states, low, high, low, high, 256)
    weight = opset13.convert(opset13.constant(np.ones((8, 8), np.int8)), "f32")
    query = opset13.matmul(codes, weight, False, False)
    rounded = opset13.fake_quantize(query, low, high, low, high, 256)
    attended = opset13.scaled_dot_product_attention(rounded, rounded, rounded)
    model = openvino.Model([attended], [states])  # pyright: ignore[reportGeneralTypeIssues]

    linear, attention = 10 * 8 * 8, 10 * 5 * (8 + 8)
    assert openvino_share(model) == pytest.approx(linear / (linear + attention))
