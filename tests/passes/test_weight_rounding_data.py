from collections.abc import Iterable, Iterator
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.errors import CalibrationError
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes import weight_rounding
from embedl_deploy.quantization.rounded_weight import RoundedWeight
from embedl_deploy.quantization.weights import WeightFakeQuantize
from embedl_deploy.quantize import (
    Precision,
    QuantConfig,
    TensorQuantConfig,
    calibration_state,
    quantize,
    round_weights,
)

INT4 = TensorQuantConfig(Precision.INT4, per_channel=True)
NEAREST = QuantConfig(activation=None, weight=INT4, smooth=None)
MIXING = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(64, 12, generator=torch.Generator().manual_seed(1)) @ MIXING + 1.0


def calibrated() -> GraphModule:
    """Returns two layers with the nearest codes and bias corrections."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 8)).eval()
    return quantize(model, (ROWS,), NEAREST, [ROWS], backend=TENSORRT)


def layers_of(model: nn.Module) -> list[WeightedFused]:
    return [part for part in model.modules() if isinstance(part, WeightedFused)]


def modes_of(model: nn.Module) -> dict[str, bool]:
    named = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
    return {name: module.training for name, module in named}


def test_data_that_can_be_read_once_is_kept_for_all_passes() -> None:
    listed, streamed = calibrated(), calibrated()

    round_weights(listed, [ROWS])
    records = round_weights(streamed, iter([ROWS]))

    assert records[1].notes == ("2 biases corrected",)
    assert torch.equal(listed(ROWS), streamed(ROWS))


def test_each_module_gets_its_own_mode_back() -> None:
    model = calibrated().train()
    layers_of(model)[0].eval()
    seen: list[bool] = []

    def run(given: nn.Module) -> None:
        seen.extend(module.training for module in given.modules())
        given(ROWS)

    # What is rounded gets another quantizer: modes are told by name.
    modes = modes_of(model)
    round_weights(model, run)

    assert not any(seen)
    assert any(modes.values())
    found = modes_of(model)
    assert all(found[name] == mode for name, mode in modes.items() if "fake_quant" not in name)


class ReadOnce:
    """Data whose iterator is no iterator by name, and is empty the second time."""

    def __init__(self) -> None:
        self.rest = iter([ROWS])

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.rest


def require_unchanged(model: nn.Module, state: dict[str, Tensor]) -> None:
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)
    quantizers = [part for part in model.modules() if isinstance(part, WeightFakeQuantize)]
    assert not any(isinstance(one, RoundedWeight) or one.frozen for one in quantizers)
    assert not calibration_state(model)


@pytest.mark.parametrize("corrects_biases", [True, False])
def test_a_pass_without_data_is_an_error_and_leaves_the_model_as_it_was(
    corrects_biases: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_rounding, "_MOST_BYTES", 1)  # a pass for every layer
    model = calibrated()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    with pytest.raises(CalibrationError, match="never ran the model in pass 2: pass a collection"):
        round_weights(model, ReadOnce(), corrects_biases=corrects_biases)

    require_unchanged(model, before)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_loop_that_fails_leaves_the_model_as_it_was(failing: int) -> None:
    model, passes = calibrated(), list[int]()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def loop(running: nn.Module) -> None:
        running(ROWS)
        passes.append(1)
        if len(passes) == failing:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        round_weights(model, loop)

    require_unchanged(model, before)


def test_earlier_corrections_do_not_count() -> None:
    torch.manual_seed(0)
    images = torch.randn(16, 4, 6, 6)
    layers = (nn.ConvTranspose2d(4, 6, 2), nn.ReLU(), nn.Conv2d(6, 8, 3))
    model = nn.Sequential(*layers).eval()
    plain, corrected = (
        quantize(model, (images,), NEAREST, [images], backend=TENSORRT) for _ in range(2)
    )
    (transposed,) = [
        layer for layer in layers_of(corrected) if isinstance(layer.weighted, nn.ConvTranspose2d)
    ]
    transposed.bias_correction = torch.full((6,), 5.0)

    for graph in (plain, corrected):
        round_weights(graph, [images])

    for one, other in zip(layers_of(corrected), layers_of(plain), strict=True):
        assert one.bias_correction is not None
        assert other.bias_correction is not None
        assert torch.equal(one.bias_correction, other.bias_correction)
    assert torch.equal(corrected(images), plain(images))
