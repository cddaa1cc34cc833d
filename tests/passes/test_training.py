from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.errors import PreconditionError
from embedl_deploy.graph import record_of
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.quantization.learned_step import LearnedStep
from embedl_deploy.quantize import (
    Precision,
    QatConfig,
    QatTraining,
    QuantConfig,
    QuantStub,
    TensorQuantConfig,
    WeightFakeQuantize,
    convert,
    insert_qdq,
    prepare_qat,
    quantize,
)
from embedl_deploy.rewriting import TransformationReport
from embedl_deploy.transformation import transform

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(64, 3, 6, 6, generator=GENERATOR)
LABELS = (IMAGES.mean((2, 3)) @ torch.randn(3, 4, generator=GENERATOR)).argmax(1)
INT4 = QuantConfig(weight=TensorQuantConfig(Precision.INT4, per_channel=True))
BOTH = pytest.mark.parametrize("learned", [True, False])


class Net(nn.Module):
    """Convolution with norm, a plain one, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    for _ in range(20):
        model(IMAGES)  # the statistics of the norm become those of the data
    return model.eval()


def int4(model: nn.Module | None = None) -> GraphModule:
    return quantize(model or net(), (IMAGES,), INT4, forward_loop=[IMAGES], backend=TENSORRT)


def optimizer_of(training: QatTraining) -> torch.optim.Optimizer:
    return torch.optim.AdamW(training.parameter_groups(), lr=1e-2)


def train(training: QatTraining, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses: list[float] = []
    for step in steps:
        rows = slice(16 * (step % 4), 16 * (step % 4) + 16)
        loss = functional.cross_entropy(training.model(IMAGES[rows]), LABELS[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        training.step()
        losses.append(float(loss.detach()))
    return losses


def parts(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [part for part in model.modules() if isinstance(part, kind)]


@BOTH
def test_training_lowers_the_loss_of_the_rounded_model(learned: bool) -> None:
    training = prepare_qat(int4(), QatConfig(learned_steps=learned))

    losses = train(training, optimizer_of(training), range(100))

    assert sum(losses[-4:]) < 0.85 * sum(losses[:4])


@BOTH
def test_starts_from_the_values_of_the_quantized_graph(learned: bool) -> None:
    quantized = int4()
    expected = quantized(IMAGES)

    training = prepare_qat(quantized, QatConfig(learned_steps=learned, freeze_norms_after=0))
    training.model.eval()

    torch.testing.assert_close(training.model(IMAGES), expected, rtol=0, atol=1e-5)


@BOTH
def test_what_was_trained_is_what_converts(learned: bool) -> None:
    training = prepare_qat(int4(), QatConfig(learned_steps=learned, freeze_norms_after=6))
    train(training, optimizer_of(training), range(12))
    training.model.eval()
    trained = training.model(IMAGES)

    finished = training.finish()
    converted = convert(finished)

    torch.testing.assert_close(finished(IMAGES), trained, rtol=0, atol=1e-5)
    torch.testing.assert_close(converted(IMAGES), trained, rtol=0, atol=1e-5)
    kinds = {type(part) for part in finished.modules()}
    assert QuantStub in kinds
    assert WeightFakeQuantize in kinds
    assert not [kind for kind in kinds if kind.__name__.startswith(("Trainable", "Learned"))]
    codes = {name: value for name, value in converted.state_dict().items() if "codes" in name}
    assert len(codes) == 3
    assert all(int(value.min()) >= -8 and int(value.max()) <= 7 for value in codes.values())


def test_neither_the_model_nor_the_quantized_graph_is_trained() -> None:
    model = net()
    quantized = int4(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rounded = quantized(IMAGES)
    training = prepare_qat(quantized)

    train(training, optimizer_of(training), range(4))

    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert torch.equal(quantized(IMAGES), rounded)
    assert not quantized.training


def test_steps_are_learned_without_decay_and_stay_positive() -> None:
    training = prepare_qat(int4())
    weights, steps = training.parameter_groups()
    stubs = parts(training.model, QuantStub)
    before = [float(stub.scale) for stub in stubs if isinstance(stub, QuantStub)]

    train(training, torch.optim.AdamW([weights, steps], lr=0.5), range(8))

    assert steps["weight_decay"] == 0.0
    after = [float(stub.scale) for stub in stubs if isinstance(stub, QuantStub)]
    assert all(scale > 0 for scale in after)
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_followed_ranges_move_with_the_activations_until_they_freeze() -> None:
    config = QatConfig(learned_steps=False, freeze_ranges_after=2)
    training = prepare_qat(int4(), config)
    (first, *_) = parts(training.model, QuantStub)
    assert isinstance(first, QuantStub)
    before = float(first.scale)

    for _ in range(2):
        training.model(10 * IMAGES)
        training.step()
    moved = float(first.scale)
    training.model(10 * IMAGES)

    # Two steps of 1 % towards a range that is ten times as wide.
    assert moved / before == pytest.approx(10 - 9 * 0.99**2, rel=1e-3)
    assert float(first.scale) == moved
    weights = parts(training.model, WeightFakeQuantize)
    assert weights
    assert all(isinstance(weight, WeightFakeQuantize) and weight.frozen for weight in weights)


def norm_of(model: nn.Module) -> nn.BatchNorm2d:
    (norm,) = parts(model, nn.BatchNorm2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


def test_norms_freeze_on_time_whatever_train_says() -> None:
    training = prepare_qat(int4(), QatConfig(freeze_norms_after=3))
    optimizer = optimizer_of(training)
    norm = norm_of(training.model)
    start = norm.running_mean.clone() if norm.running_mean is not None else None
    train(training, optimizer, range(3))
    assert norm.running_mean is not None
    frozen = norm.running_mean.clone()

    training.model.train()
    train(training, optimizer, range(3, 6))

    assert start is not None
    assert not torch.equal(start, frozen)
    assert torch.equal(norm.running_mean, frozen)
    training.model.eval()
    in_eval = training.model(IMAGES)
    training.model.train()
    torch.testing.assert_close(training.model(IMAGES), in_eval)


def test_frozen_steps_no_longer_move() -> None:
    training = prepare_qat(int4(), QatConfig(freeze_ranges_after=2))
    optimizer = optimizer_of(training)
    train(training, optimizer, range(2))
    scales = {key: value.clone() for key, value in training.model.state_dict().items()}

    train(training, optimizer, range(2, 6))

    now = training.model.state_dict()
    moved = {key for key, value in scales.items() if not torch.equal(value, now[key])}
    assert moved
    assert not [key for key in moved if key.endswith((".scale", "log_growth", "extremes"))]


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("interrupted_after", [2, 5, 9])
def test_an_interrupted_training_ends_where_the_whole_one_does(
    learned: bool, interrupted_after: int
) -> None:
    config = QatConfig(learned, freeze_norms_after=4, freeze_ranges_after=7)
    whole = prepare_qat(int4(), config)
    train(whole, optimizer_of(whole), range(12))
    first = prepare_qat(int4(), config)
    optimizer = optimizer_of(first)
    train(first, optimizer, range(interrupted_after))

    second = prepare_qat(int4(), config)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(first.state_dict())
    restored = optimizer_of(second)
    restored.load_state_dict(optimizer.state_dict())
    train(second, restored, range(interrupted_after, 12))

    assert torch.equal(second.finish()(IMAGES), whole.finish()(IMAGES))


def test_trained_norms_take_over_the_bias_correction() -> None:
    quantized = int4()
    corrected = [part for part in quantized.modules() if isinstance(part, WeightedFused)]
    assert all(part.bias_correction is not None for part in corrected)

    training = prepare_qat(quantized)

    kept = [part for part in training.model.modules() if isinstance(part, WeightedFused)]
    assert {type(part).__name__ for part in kept if part.bias_correction is None} == {
        "FusedConvBNReLU"
    }
    assert len(kept) == len(corrected) == 3


def test_the_report_says_how_it_was_trained() -> None:
    training = prepare_qat(int4(), QatConfig(freeze_norms_after=1))
    train(training, optimizer_of(training), range(2))

    report = record_of(training.finish()).report

    assert isinstance(report, TransformationReport)
    assert report.passes[-1].name == "training"
    assert report.passes[-1].notes == (
        "2 optimizer steps, rounding steps learned, norms frozen after 1",
    )


@pytest.mark.parametrize(
    ("made", "because"),
    [
        (lambda: transform(net(), (IMAGES,), backend=TENSORRT).model, "without quantizers"),
        (
            lambda: insert_qdq(transform(net(), (IMAGES,), backend=TENSORRT).model, config=INT4),
            "3 have no scale yet",
        ),
    ],
)
def test_refuses_a_graph_that_is_not_ready(made: Callable[[], GraphModule], because: str) -> None:
    with pytest.raises(PreconditionError, match=because):
        prepare_qat(made())


def test_refuses_a_schedule_that_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"freeze_norms_after must be .*got -1"):
        QatConfig(freeze_norms_after=-1)
    with pytest.raises(ValueError, match=r"holds 'steps', got \['weight'\]"):
        prepare_qat(int4()).load_state_dict({"weight": 1})


def test_the_whole_graph_learns_its_steps() -> None:
    training = prepare_qat(int4())

    assert len(parts(training.model, LearnedStep)) == 6
