import copy
import inspect
import pickle
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.deployment import lower
from embedl_deploy.engines import EagerEngine
from embedl_deploy.errors import CheckpointError, PreconditionError
from embedl_deploy.tuning.dimensions import BatchDim
from embedl_deploy.tuning.graph_spec import GraphSpec
from embedl_deploy.tuning.module import Module
from embedl_deploy.tuning.sample import Sample
from embedl_deploy.tuning.shapes import export_shapes, resized, tracing_sizes
from embedl_deploy.tuning.states import ModuleState
from embedl_deploy.tuning.strategy import TuneStrategy
from embedl_deploy.tuning.tuned_graph import TunedGraph

SHAPES = {"x": {0: BatchDim(1, 8)}}


class Lowers(TuneStrategy):
    """Runs every graph as traced, and remembers what it was asked."""

    def __init__(self, *, keep: bool = True) -> None:
        self.keep = keep
        self.asked: list[str] = []

    def tune(
        self,
        module: nn.Module,
        name: str,
        graph_spec: GraphSpec,
        data: Sequence[Sample],
        device: torch.device,
        cache_dir: Path | None = None,
    ) -> TunedGraph:
        del device, cache_dir
        self.asked.append(f"{name}: {graph_spec.describe()}")
        if not self.keep:
            return TunedGraph(graph_spec, None, decision="stays eager")
        sample = resized(data[0], graph_spec, tracing_sizes(data[0], graph_spec))
        shapes = export_shapes(module.forward, sample, graph_spec)
        model = lower(module, sample.args, sample.kwargs, EagerEngine(), dynamic_shapes=shapes)
        return TunedGraph(graph_spec, model, decision="lowered")

    def tune_dry_run(
        self,
        module: nn.Module,
        name: str,
        graph_spec: GraphSpec,
        data: Sequence[Sample],
        device: torch.device,
        cache_dir: Path | None = None,
    ) -> TunedGraph:
        del module, data, device, cache_dir
        self.asked.append(f"dry {name}")
        return TunedGraph(graph_spec, None, decision="dry")


class Small(nn.Module):
    """Counts how often its own ``forward`` runs, which engines do not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.eager_runs = 0
        self.label = "mine"

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> object:
        self.eager_runs += 1
        y = self.linear(x) * scale
        return {"y": y if mask is None else y * mask}

    def described(self) -> str:
        return f"{self.label} of {self.linear.in_features}"


def data(batch: int = 3) -> Tensor:
    return torch.linspace(-1, 1, 4 * batch).reshape(batch, 4)


def output_of(module: object, *args: object, **kwargs: object) -> Tensor:
    assert callable(module)
    with torch.no_grad():
        return cast("dict[str, Tensor]", module(*args, **kwargs))["y"]


def noting(fired: list[str], what: str) -> Callable[..., None]:
    def hook(*_: object) -> None:
        fired.append(what)

    return hook


def small() -> Small:
    torch.manual_seed(0)
    return Small().eval()


def recorded(strategy: TuneStrategy | None = None) -> Module:
    wrapped = Module(small(), strategy=strategy, dynamic_shapes=SHAPES)
    wrapped(data())
    return wrapped


def tuned() -> Module:
    wrapped = recorded(Lowers())
    wrapped.tune()
    return wrapped


def in_state(state: ModuleState) -> Module:
    if state is ModuleState.TUNED:
        return tuned()
    wrapped = Module(small()) if state is ModuleState.INIT else recorded()
    if state is ModuleState.PASSTHROUGH:
        wrapped.enable_passthrough()
    return wrapped


def test_the_first_call_records() -> None:
    wrapped = Module(small())

    before = wrapped.state
    wrapped(data())

    assert (before, wrapped.state) == (ModuleState.INIT, ModuleState.RECORDING)
    assert len(wrapped.graph_specs) == 1


def test_a_tuned_module_computes_the_same_without_running_itself() -> None:
    wrapped = tuned()
    module = cast("Small", wrapped.module)
    expected = {batch: output_of(small(), data(batch)) for batch in (1, 3, 8)}
    runs = module.eager_runs

    outputs = {batch: output_of(wrapped, data(batch)) for batch in (1, 3, 8)}

    assert wrapped.state is ModuleState.TUNED
    assert all(torch.equal(outputs[batch], expected[batch]) for batch in expected)
    assert (module.eager_runs - runs, wrapped.eager_calls) == (0, 0)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((data(9),), {}),
        ((data().double(),), {}),
        ((data(), torch.ones(4)), {}),
        ((data(),), {"scale": 0.5}),
        ((data()[0],), {}),
    ],
    ids=["range", "dtype", "structure", "constant", "rank"],
)
def test_a_call_that_no_graph_takes_runs_eager_and_is_counted(
    args: tuple[Tensor, ...], kwargs: dict[str, object]
) -> None:
    wrapped = tuned()
    wrapped.module.double() if args[0].dtype is torch.float64 else None

    output = output_of(wrapped, *args, **kwargs)

    assert torch.equal(output, output_of(wrapped.module, *args, **kwargs))
    assert wrapped.eager_calls == 1


def test_each_graph_takes_its_own_calls() -> None:
    wrapped = recorded(Lowers())
    wrapped(data(), torch.ones(4))
    wrapped(data(), scale=0.5)
    wrapped.tune()
    module = cast("Small", wrapped.module)
    runs = module.eager_runs

    outputs = [
        output_of(wrapped, data()),
        output_of(wrapped, mask=torch.full((4,), 2.0), x=data()),
        output_of(wrapped, data(), None, scale=0.5),
    ]

    assert (module.eager_runs - runs, wrapped.eager_calls) == (0, 0)
    torch.testing.assert_close(outputs[1], 2 * outputs[0])
    torch.testing.assert_close(outputs[2], 0.5 * outputs[0])


def test_a_graph_that_stays_eager_is_counted() -> None:
    wrapped = recorded(Lowers(keep=False))
    wrapped.tune()

    output = output_of(wrapped, data())

    assert torch.equal(output, output_of(small(), data()))
    assert (wrapped.state, wrapped.eager_calls) == (ModuleState.TUNED, 1)


@pytest.mark.parametrize(
    ("state", "cure"),
    [
        (ModuleState.INIT, "call the module on some data first"),
        (ModuleState.PASSTHROUGH, "call enable_recording\\(\\)"),
        (ModuleState.TUNED, "enable_recording\\(force=True\\)"),
    ],
)
def test_tune_goes_only_while_recording(state: ModuleState, cure: str) -> None:
    with pytest.raises(ValueError, match=f"tune\\(\\) does not go in state .*{cure}"):
        in_state(state).tune()


@pytest.mark.parametrize("call", ["enable_passthrough", "enable_recording"])
def test_leaving_the_tuned_state_takes_force(call: str) -> None:
    wrapped = tuned()
    change = getattr(wrapped, call)
    assert callable(change)

    with pytest.raises(RuntimeError, match=rf"{call}\(force=True\)"):
        change()
    still = wrapped.state
    change(force=True)

    assert still is ModuleState.TUNED
    assert wrapped.state.value == call.removeprefix("enable_")
    assert torch.equal(output_of(wrapped, data()), output_of(small(), data()))


@pytest.mark.parametrize("state", [ModuleState.INIT, ModuleState.RECORDING])
def test_activate_needs_something_tuned(state: ModuleState) -> None:
    with pytest.raises(RuntimeError, match="activate\\(\\) does not go in state"):
        in_state(state).activate()


@pytest.mark.parametrize(
    "state", [ModuleState.INIT, ModuleState.RECORDING, ModuleState.PASSTHROUGH]
)
def test_to_dict_needs_something_tuned(state: ModuleState) -> None:
    with pytest.raises(RuntimeError, match="to_dict\\(\\) does not go in state"):
        in_state(state).to_dict()


@pytest.mark.parametrize(
    "state", [ModuleState.INIT, ModuleState.RECORDING, ModuleState.PASSTHROUGH]
)
def test_deactivate_does_nothing_unless_tuned(state: ModuleState) -> None:
    wrapped = in_state(state)

    wrapped.deactivate()

    assert wrapped.state is state


def test_activate_does_nothing_in_passthrough() -> None:
    wrapped = in_state(ModuleState.PASSTHROUGH)

    wrapped.activate()

    assert wrapped.state is ModuleState.PASSTHROUGH


def test_a_deactivated_module_runs_eager_until_it_is_activated() -> None:
    wrapped = tuned()
    module = cast("Small", wrapped.module)
    before = module.eager_runs

    wrapped.deactivate()
    output_of(wrapped, data())
    inactive, runs = wrapped.is_active, module.eager_runs
    wrapped.activate()
    output_of(wrapped, data())

    assert (inactive, wrapped.is_active) == (False, True)
    assert (runs - before, module.eager_runs - runs) == (1, 0)


def test_passthrough_records_nothing_and_recording_resumes() -> None:
    wrapped = recorded()

    wrapped.enable_passthrough()
    wrapped(data(), torch.ones(4))
    wrapped.enable_recording()
    wrapped(data(), scale=2.0)

    assert [graph.describe().split("scale=")[1] for graph in wrapped.graph_specs] == ["1.0", "2.0"]


def test_own_strategies_come_before_the_one_that_tune_gets() -> None:
    own, given = Lowers(keep=False), Lowers(keep=False)
    first, second = recorded(own), recorded()

    first.tune(strategy=given)
    second.tune(strategy=given)

    assert (len(own.asked), len(given.asked)) == (1, 1)


def test_a_list_of_strategies_follows_the_order_of_graphs() -> None:
    strategies = [Lowers(keep=False), Lowers(keep=False)]
    wrapped = Module(small(), name="net", strategies=strategies)
    wrapped(data())
    wrapped(data(), scale=2.0)

    wrapped.tune()

    assert [strategy.asked[0].split("scale=")[1] for strategy in strategies] == ["1.0", "2.0"]


def test_a_mapping_of_strategies_is_looked_up() -> None:
    probe = recorded()
    probe(data(), scale=2.0)
    first, second = probe.graph_specs
    strategies = {second: Lowers(keep=False), first: Lowers(keep=False)}
    wrapped = Module(small(), strategies=strategies, dynamic_shapes=SHAPES)
    wrapped(data())
    wrapped(data(), scale=2.0)

    wrapped.tune()

    assert "scale=2.0" in strategies[second].asked[0]
    assert "scale=1.0" in strategies[first].asked[0]


def test_a_wrong_count_of_strategies_is_refused() -> None:
    wrapped = Module(small(), strategies=[Lowers(), Lowers()])
    wrapped(data())

    with pytest.raises(ValueError, match="one per graph: got 2 for 1 graphs"):
        wrapped.tune()


def test_strategy_and_strategies_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="give strategy or strategies, not both"):
        Module(small(), strategy=Lowers(), strategies=[Lowers()])


def test_a_dry_run_builds_nothing() -> None:
    strategy = Lowers()
    wrapped = recorded(strategy)

    report = wrapped.tune(dry_run=True)

    assert strategy.asked == ["dry Small"]
    assert wrapped.state is ModuleState.RECORDING
    assert report.graphs[0].model is None


def test_a_module_in_training_mode_is_not_tuned() -> None:
    wrapped = recorded()
    wrapped.train()

    with pytest.raises(PreconditionError, match="call eval\\(\\)"):
        wrapped.tune()


def test_tuning_for_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="is on cpu, asked to tune for meta"):
        recorded().tune(device="meta")


def test_training_mode_runs_the_module_itself() -> None:
    wrapped = tuned()
    module = cast("Small", wrapped.module)
    runs = module.eager_runs

    wrapped.train()
    output = cast("dict[str, Tensor]", wrapped(data()))["y"]
    wrapped.eval()
    output_of(wrapped, data())

    assert output.requires_grad
    assert module.eager_runs - runs == 1


def test_it_stands_in_for_the_module() -> None:
    sequence = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    wrapped, indexed = Module(small()), Module(sequence)

    wrapped.label = "yours"

    assert isinstance(wrapped, nn.Module)
    assert inspect.signature(wrapped.forward) == inspect.signature(small().forward)
    assert cast("Small", wrapped.module).label == wrapped.label == "yours"
    assert cast("Small", wrapped).described() == "yours of 4"
    assert wrapped.linear is wrapped.module.linear
    assert (indexed[1], len(indexed), list(indexed)) == (sequence[1], 2, list(sequence))
    assert [name for name, _ in wrapped.named_parameters()] == ["linear.weight", "linear.bias"]
    with pytest.raises(AttributeError, match="missing"):
        wrapped.missing  # noqa: B018  # reading it is the test


@pytest.mark.parametrize("state", list(ModuleState))
def test_hooks_fire_once_on_whichever_object_they_were_registered(state: ModuleState) -> None:
    wrapped = in_state(state)
    fired: list[str] = []
    wrapped.register_forward_hook(noting(fired, "wrapper"))
    wrapped.module.register_forward_pre_hook(noting(fired, "module"))

    wrapped(data())
    first = list(fired)
    wrapped.module(data())

    assert first == ["module", "wrapper"]
    assert fired == first * 2


@pytest.mark.parametrize("state", list(ModuleState))
def test_a_parents_state_dict_has_the_modules_own_keys(state: ModuleState) -> None:
    wrapped = in_state(state)
    parent = nn.Sequential(wrapped, nn.Linear(4, 2))

    keys = list(parent.state_dict())
    result = parent.load_state_dict(parent.state_dict())

    assert keys == ["0.linear.weight", "0.linear.bias", "1.weight", "1.bias"]
    assert not result.missing_keys


def test_loading_other_weights_drops_the_engines_that_hold_the_old_ones() -> None:
    wrapped = tuned()
    parent = nn.Sequential(wrapped)
    other = {name: 2 * value for name, value in parent.state_dict().items()}
    before = output_of(wrapped, data())

    with pytest.warns(RuntimeWarning, match="hold the weights from before"):
        parent.load_state_dict(other)

    assert wrapped.state is ModuleState.PASSTHROUGH
    torch.testing.assert_close(output_of(wrapped, data()), 2 * before)


def test_moving_to_where_it_is_keeps_the_engines_and_converting_drops_them() -> None:
    wrapped = tuned()

    wrapped.to("cpu")
    stays = wrapped.state
    with pytest.warns(RuntimeWarning, match="moved or converted"):
        nn.Sequential(wrapped).double()

    assert (stays, wrapped.state) == (ModuleState.TUNED, ModuleState.PASSTHROUGH)


def test_weights_that_were_written_to_make_the_state_dict_invalid() -> None:
    wrapped = tuned()
    valid = wrapped.is_state_dict_valid

    with torch.no_grad():
        cast("nn.Linear", wrapped.linear).weight.mul_(2)

    assert (valid, wrapped.is_state_dict_valid) == (True, False)


@pytest.mark.parametrize("state", list(ModuleState))
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_whole_and_apart(state: ModuleState, how: str) -> None:
    wrapped = in_state(state)

    # The wrapper's own pickle, made and read in one process.
    copied: Module = (
        copy.deepcopy(wrapped) if how == "deepcopy" else pickle.loads(pickle.dumps(wrapped))
    )
    output = output_of(copied, data())
    fired: list[str] = []
    copied.register_forward_hook(noting(fired, "copy"))
    cast("nn.Linear", copied.linear).bias.data.zero_()

    assert copied.graph_specs == wrapped.graph_specs or state is ModuleState.INIT
    assert copied.state is (ModuleState.RECORDING if state is ModuleState.INIT else state)
    assert torch.equal(output, output_of(wrapped, data()))
    assert not fired
    if state is ModuleState.TUNED:
        assert (copied.eager_calls, wrapped.eager_calls) == (0, 0)


def test_a_recording_copy_can_be_tuned_by_itself() -> None:
    wrapped = recorded(Lowers())

    copied = copy.deepcopy(wrapped)
    copied.tune()

    assert (copied.state, wrapped.state) == (ModuleState.TUNED, ModuleState.RECORDING)


def test_from_dict_gives_a_tuned_module_back() -> None:
    wrapped = tuned()
    state = wrapped.to_dict(prefix="net.")
    own = {key.removeprefix("net."): value for key, value in state.items()}

    loaded = Module.from_dict(small(), own)

    assert all(key.startswith("net.") for key in state)
    assert torch.equal(output_of(loaded, data(2)), output_of(wrapped, data(2)))
    assert (loaded.state, loaded.eager_calls, loaded.name) == (ModuleState.TUNED, 0, "Small")
    assert loaded.graph_specs == wrapped.graph_specs
    assert loaded.graph_specs[0].symbols == wrapped.graph_specs[0].symbols
    assert list(loaded.to_dict()) == list(own)


def test_from_dict_refuses_other_weights() -> None:
    state = tuned().to_dict()
    other = small()
    other.linear.bias.data.add_(1)

    with pytest.raises(CheckpointError, match="tuned with other weights"):
        Module.from_dict(other, state)


def test_two_models_of_one_class_do_not_touch_each_other() -> None:
    one, two = tuned(), recorded(Lowers())
    cast("nn.Linear", two.linear).weight.data.mul_(3)
    before = output_of(one, data())

    two.tune()
    one.enable_recording(force=True)
    one.tune(strategy=Lowers())

    assert torch.equal(output_of(one, data()), before)
    assert torch.equal(output_of(two, data()), output_of(two.module, data()))
    assert not torch.allclose(output_of(two, data()), before)


def serve(wrapped: Module, expected: Tensor, calls: int, wrong: list[float]) -> None:
    for _ in range(calls):
        error = (output_of(wrapped, data()) - expected).abs().max().item()
        if error > 1e-5:
            wrong.append(error)


def served_while_another_is_tuned(calls: int) -> None:
    wrapped, other = tuned(), recorded(Lowers())
    expected, wrong = output_of(small(), data()), list[float]()
    fired: list[str] = []
    wrapped.register_forward_hook(noting(fired, "served"))
    threads = [
        threading.Thread(target=serve, args=(wrapped, expected, calls, wrong)) for _ in range(4)
    ]

    for thread in threads:
        thread.start()
    other.tune()
    while any(thread.is_alive() for thread in threads):
        other.enable_recording(force=True)
        other.tune()
    for thread in threads:
        thread.join()

    assert not wrong
    assert len(fired) == 4 * calls
    assert (wrapped.eager_calls, other.state) == (0, ModuleState.TUNED)


def test_threads_are_served_while_another_model_is_tuned() -> None:
    served_while_another_is_tuned(200)


@pytest.mark.slow
def test_many_calls_of_threads_are_right_while_another_model_is_tuned() -> None:
    served_while_another_is_tuned(10_000)


def test_threads_record_together() -> None:
    wrapped = Module(small())

    threads = [threading.Thread(target=wrapped, args=(data(size),)) for size in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    (spec,) = wrapped.graph_specs
    assert "=1..8" in spec.describe()
