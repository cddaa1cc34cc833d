import copy
import pickle
import threading
import timeit
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves

from embedl_deploy.deployment import load_lowered, lower
from embedl_deploy.engines.recording import RecordingConfig, RecordingEngine
from embedl_deploy.errors import CheckpointError, InputError, LoweringError
from embedl_deploy.lowering import LoweredModule

BATCH = Dim("batch", min=1, max=64)


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class Nested(nn.Module):
    """Takes and returns containers; has defaults, a keyword-only scalar and an untouched input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(
        self,
        x: Tensor,
        parts: dict[str, Tensor],
        pair: Pair,
        flag: bool = True,
        *,
        scale: float = 2.0,
        mask: Tensor | None = None,
    ) -> dict[str, object]:
        y = self.linear(x) * scale + parts["a"].sum() + pair.left
        if mask is not None:
            y = y * mask
        return {
            "y": y if flag else -y,
            "same": parts["b"],
            "list": [Pair(y.sum(), y.mean()), (x.shape[0], None, 7)],
        }


def nested_inputs(batch: int = 6) -> tuple[object, ...]:
    x = torch.linspace(-1, 1, batch * 4).reshape(batch, 4)
    return x, {"a": torch.arange(3.0), "b": torch.ones(2)}, Pair(torch.ones(4), torch.ones(1))


NESTED_SHAPES = {"x": {0: BATCH}, "parts": {"a": None, "b": None}, "pair": Pair(None, None)}  # type: ignore[arg-type]  # torch.export wants the same class


def lowered_nested(**settings: object) -> LoweredModule:
    model = Nested().eval()
    return lower(model, nested_inputs(), engines="eager", dynamic_shapes=NESTED_SHAPES, **settings)  # type: ignore[arg-type]


def identity(batch: Dim | None = None, **config: object) -> LoweredModule:
    """A model of one ReLU, lowered to a recording engine."""
    engine = RecordingEngine(RecordingConfig(**config))  # type: ignore[arg-type]
    shapes = None if batch is None else ({0: batch},)
    return lower(nn.ReLU().eval(), (torch.randn(4, 3),), engines=engine, dynamic_shapes=shapes)


@pytest.mark.parametrize("batch", [1, 6, 64])
def test_takes_and_returns_what_the_model_does(batch: int) -> None:
    model = Nested().eval()
    lowered = lower(model, nested_inputs(), engines="eager", dynamic_shapes=NESTED_SHAPES)
    args = nested_inputs(batch)

    output, expected = lowered(*args), model(*args)

    torch.testing.assert_close(output, expected)
    assert type(output["list"][0]) is Pair
    assert output["list"][1] == (batch, None, 7)


def test_arguments_may_be_given_by_name_in_any_order() -> None:
    lowered = lowered_nested()
    x, parts, pair = nested_inputs()

    by_name = lowered(pair=pair, parts=parts, x=x, scale=2.0, flag=True, mask=None)

    torch.testing.assert_close(by_name, lowered(x, parts, pair))


def test_a_dict_may_hold_its_keys_in_another_order() -> None:
    lowered = lowered_nested()
    x, _, pair = nested_inputs()
    parts = {"a": torch.arange(3.0), "b": torch.ones(2)}
    turned = {"b": parts["b"], "a": parts["a"]}

    torch.testing.assert_close(lowered(x, turned, pair), lowered(x, parts, pair))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x": torch.zeros(65, 4)},
            r"x: dimension 0 must lie in \[1, 64\], got 65.*dynamic_shapes",
        ),
        ({"x": torch.zeros(6, 5)}, r"x: dimension 1 must be 4, .*got 5.*dynamic_shapes="),
        ({"x": torch.zeros(6, 4, 1)}, "x must have 2 dimensions"),
        ({"x": torch.zeros(6, 4).double()}, "x must have dtype torch.float32, got torch.float64"),
        ({"x": torch.zeros(6, 4, device="meta")}, "x must be on cpu, got meta"),
        ({"x": torch.zeros(6, 4).to_sparse()}, "x must be a dense tensor"),
        ({"x": 3}, "x must be a tensor, got 3"),
        ({"x": None}, "x must be a tensor, got None"),
        ({"parts": {"a": torch.zeros(3)}}, r"parts must hold the keys \['a', 'b'\]"),
        ({"parts": [torch.zeros(3)] * 2}, "parts must be a dict, got list"),
        ({"pair": (torch.ones(4), torch.ones(1))}, "pair must be a Pair, got tuple"),
        ({"scale": 3.0}, "scale was left at 2.0 when the model was traced"),
        ({"flag": False}, "flag was left at True"),
        ({"mask": torch.zeros(4)}, "mask was left at None"),
        ({"flag": 1}, "flag was left at True"),
    ],
)
def test_an_input_that_does_not_fit_is_named(change: dict[str, object], message: str) -> None:
    lowered = lowered_nested()
    x, parts, pair = nested_inputs()

    with pytest.raises(InputError, match=message):
        lowered(**{"x": x, "parts": parts, "pair": pair, **change})


def test_a_scalar_that_was_traced_must_stay_what_it_was() -> None:
    model = Nested().eval()
    lowered = lower(model, nested_inputs(), {"scale": 3.0}, engines="eager")

    with pytest.raises(InputError, match=r"scale must be 3.0, .*got 2.0"):
        lowered(*nested_inputs())


def test_sizes_that_were_equal_must_stay_equal() -> None:
    class Add(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    shapes = ({0: BATCH}, {0: BATCH})
    lowered = lower(
        Add().eval(), (torch.ones(4), torch.ones(4)), engines="eager", dynamic_shapes=shapes
    )

    with pytest.raises(InputError, match=r"y: dimension 0 must be .* = 5 .*got 6"):
        lowered(torch.ones(5), torch.ones(6))


def test_a_derived_size_must_follow_from_its_symbol() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([x, x]) + y

    shapes = ({0: BATCH}, {0: 2 * BATCH})
    lowered = lower(
        Halves().eval(), (torch.ones(4), torch.ones(8)), engines="eager", dynamic_shapes=shapes
    )

    assert lowered(torch.ones(5), torch.ones(10)).shape == (10,)
    with pytest.raises(InputError, match=r"y: dimension 0 must be 2\*\w+ = 10"):
        lowered(torch.ones(5), torch.ones(11))


def test_a_condition_that_tracing_relied_on_is_guarded() -> None:
    class Fold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(x.shape[0] // 2, 2).sum(1)

    shapes = ({0: Dim.DYNAMIC(min=4, max=64)},)
    lowered = lower(Fold().eval(), (torch.ones(8),), engines="eager", dynamic_shapes=shapes)

    assert lowered(torch.ones(6)).shape == (3,)
    with pytest.raises(InputError, match=r"must satisfy .*x: dimension 0"):
        lowered(torch.ones(7))


def test_a_strided_input_is_copied_into_the_layout_of_the_build() -> None:
    lowered = identity()
    x = torch.randn(3, 4).t()

    output = lowered(x)

    engine = lowered.assembly.slots["subgraph_0"].engine
    assert isinstance(engine, RecordingEngine)
    (given,) = engine.recorded.calls[-1]
    assert isinstance(given, Tensor)
    assert given.is_contiguous()
    torch.testing.assert_close(output, x.relu())


def test_an_input_that_the_engine_cannot_take_runs_eager_and_is_counted_once() -> None:
    lowered = identity(BATCH, infer_error="another size")
    x = torch.randn(5, 3)

    with pytest.warns(RuntimeWarning, match="subgraph_0 ran eager because RecordingEngine"):
        first = lowered(x)
    second = lowered(x)

    torch.testing.assert_close(first, x.relu())
    torch.testing.assert_close(second, x.relu())
    assert lowered.report.fallbacks == {("subgraph_0", "RuntimeError: another size"): 2}


def test_without_fallback_it_is_an_error_that_says_why() -> None:
    engine = RecordingEngine(RecordingConfig(infer_error="another size"))
    shapes = ({0: BATCH},)
    lowered = lower(
        nn.ReLU().eval(),
        (torch.randn(4, 3),),
        engines=engine,
        dynamic_shapes=shapes,
        fallback=False,
    )

    with pytest.raises(LoweringError, match=r"RecordingEngine cannot run subgraph_0.*another size"):
        lowered(torch.randn(5, 3))


def test_runs_without_gradients() -> None:
    x = torch.randn(4, 3, requires_grad=True)

    assert not identity()(x).requires_grad


def test_state_dict_holds_the_weights_under_the_names_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()

    lowered = lower(model, (torch.randn(2, 4),), engines="eager")

    assert list(lowered.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(dict(lowered.state_dict()), dict(model.state_dict()))


def test_a_copy_shares_the_engine_and_counts_for_itself() -> None:
    lowered = identity(BATCH, infer_error="another size")
    copied = copy.deepcopy(lowered)

    with pytest.warns(RuntimeWarning):
        copied(torch.randn(5, 3))

    slots = lowered.assembly.slots
    assert copied.assembly.slots["subgraph_0"].engine is slots["subgraph_0"].engine
    assert (lowered.report.fallback_count, copied.report.fallback_count) == (0, 1)


def test_training_moving_loading_and_pickling_are_refused() -> None:
    lowered = lower(nn.Linear(3, 3).eval(), (torch.randn(4, 3),), engines="eager")

    assert lowered.eval() is lowered
    assert lowered.to("cpu") is lowered
    with pytest.raises(LoweringError, match="only runs inference"):
        lowered.train()
    with pytest.raises(LoweringError, match=r"stays torch.float32 .*torch.float16"):
        lowered.half()
    with pytest.raises(LoweringError, match="hold their own copy"):
        lowered.load_state_dict(lowered.state_dict())
    with pytest.raises(LoweringError, match=r"use model\.save"):
        pickle.dumps(lowered)


def test_four_threads_get_their_own_rows() -> None:
    lowered = lowered_nested()
    wrong: list[int] = []

    def work(seed: int) -> None:
        x, parts, pair = nested_inputs()
        assert isinstance(x, Tensor)
        own = x + seed
        expected = lowered(own, parts, pair)["y"]
        wrong.extend(
            seed for _ in range(500) if not torch.equal(lowered(own, parts, pair)["y"], expected)
        )

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


@dataclass
class State:
    """Unknown to pytree."""

    hidden: Tensor
    step: int = 1


class Cell(nn.Module):
    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        hidden = torch.tanh(x + state.hidden) * state.step
        return hidden.sum(), State(hidden, state.step)


def test_classes_that_pytree_does_not_know_go_in_and_come_out(tmp_path: Path) -> None:
    x, state = torch.randn(3), State(torch.randn(3), 2)
    cell = Cell().eval()
    lowered = lower(cell, (x, state), engines="eager")
    lowered.save(tmp_path / "cell.lowered")

    loaded = load_lowered(tmp_path / "cell.lowered", classes=[State])

    expected = cell(x, state)
    for output in (lowered(x, state), loaded(x, state)):
        assert type(output[1]) is State
        torch.testing.assert_close((output[0], output[1].hidden), (expected[0], expected[1].hidden))
    with pytest.raises(CheckpointError, match=r"State: give the class to load"):
        load_lowered(tmp_path / "cell.lowered")


class Many(nn.Module):
    def forward(self, tensors: list[Tensor], **scalars: float) -> list[Tensor]:
        return [tensor * scalar for tensor, scalar in zip(tensors, scalars.values(), strict=True)]


def overhead_us(
    lowered: LoweredModule, args: tuple[object, ...], kwargs: dict[str, float]
) -> float:
    """Microseconds per call with an engine that returns at once."""
    engine = lowered.assembly.slots["subgraph_0"].engine
    results = engine.infer(*tree_leaves(args))
    engine._infer = lambda *_: results  # type: ignore[method-assign]
    with torch.no_grad():
        return min(timeit.repeat(lambda: lowered(*args, **kwargs), number=1000, repeat=7)) * 1e3


def test_a_call_with_one_tensor_costs_under_10_us() -> None:
    assert overhead_us(identity(BATCH), (torch.randn(4, 3),), {}) < 10


def test_a_call_with_20_tensors_and_20_scalars_costs_under_30_us() -> None:
    tensors = [torch.randn(4, 3) for _ in range(20)]
    scalars = {f"s{index}": index + 0.5 for index in range(20)}
    lowered = lower(Many().eval(), (tensors,), scalars, engines=RecordingEngine())

    assert overhead_us(lowered, (tensors,), scalars) < 30
