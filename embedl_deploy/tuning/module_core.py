"""The states of a wrapped module and the ways between them."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import wraps
from threading import RLock
from typing import cast

import torch
from torch import Tensor, nn

from embedl_deploy.errors import PreconditionError
from embedl_deploy.lowering import LoweredModule
from embedl_deploy.tuning.dispatch import EagerCalls, Forward, tuned_forward
from embedl_deploy.tuning.recording import RecordedGraph, Recorder
from embedl_deploy.tuning.states import CURES, ModuleState
from embedl_deploy.tuning.strategies import Strategies
from embedl_deploy.tuning.strategy import TuneStrategy
from embedl_deploy.tuning.tuned_graph import TunedGraph, TuningReport
from embedl_deploy.tuning.weights import WeightsKey, weights_key, weights_sum


class ModuleCore:
    """Holds what was recorded and tuned of one module, and installs what runs its calls."""

    def __init__(
        self,
        module: nn.Module,
        name: str,
        strategies: TuneStrategy | Strategies | None,
        recorder: Recorder,
        install: Callable[[Forward], None],
    ) -> None:
        self.module = module
        self.name = name
        self.strategies = strategies
        self.recorder = recorder
        self.graphs: tuple[TunedGraph, ...] = ()
        self.report = TuningReport(name)
        self.device: torch.device | None = None
        self.weights: WeightsKey = {}
        self.weights_sum = ""
        self.eager_calls = EagerCalls()
        self.state = ModuleState.INIT
        self.is_active = True
        self._install = install
        self._lock = RLock()
        self.enter(ModuleState.INIT)

    @property
    def models(self) -> list[LoweredModule]:
        """The engines that were kept, one per graph that has one."""
        return [graph.model for graph in self.graphs if graph.model is not None]

    def enter(self, state: ModuleState) -> None:
        """Changes the state and what runs calls with it."""
        with self._lock:
            self.state = state
            self._install(self._forward())

    def adopt(self, other: "ModuleCore", memo: dict[int, object]) -> None:
        """Takes over copies of what another one holds; engines are shared."""
        self.strategies = other.strategies
        self.recorder = deepcopy(other.recorder, memo)
        self.report = other.report
        graphs = tuple(
            replace(graph, model=None if graph.model is None else deepcopy(graph.model, memo))
            for graph in other.graphs
        )
        if other.state is ModuleState.TUNED:
            self.settle(replace(other.report, graphs=graphs), other.device, None)
            self.is_active = other.is_active
        self.enter(other.state)

    def settle(
        self,
        report: TuningReport,
        device: torch.device | None,
        weights: WeightsKey | None,
    ) -> None:
        """Runs the tuned graphs of ``report`` from here on."""
        with self._lock:
            self.report, self.graphs, self.device = report, report.graphs, device
            self.weights = weights_key(self.module) if weights is None else weights
            self.weights_sum = weights_sum(self.module)
            self.eager_calls = EagerCalls()
            self.is_active = True
            self.enter(ModuleState.TUNED)

    def leave_tuned(self, call: str, force: bool) -> None:
        """Drops what was tuned if ``force`` is set.

        Raises:
            RuntimeError: It is tuned and ``force`` is not set.
        """
        if self.state is not ModuleState.TUNED:
            return
        if not force:
            raise RuntimeError(
                f"{call}() does not go in state 'tuned' of {self.name!r}, it would drop what was "
                f"tuned: call {call}(force=True) if that is wanted"
            )
        self.graphs, self.device = (), None

    def switch(self, *, active: bool) -> None:
        """Takes or gives back what engines need; does nothing unless tuned."""
        with self._lock:
            if self.state is not ModuleState.TUNED or active is self.is_active:
                return
            self.is_active = active
            if not active:
                self.enter(self.state)  # before the engines stop
            for model in self.models:
                for slot in model.assembly.slots.values():
                    (slot.engine.activate if active else slot.engine.deactivate)()
            self.enter(self.state)

    def require_tuned(self, call: str) -> None:
        """Checks the state.

        Raises:
            RuntimeError: It is not tuned.
        """
        if self.state is not ModuleState.TUNED:
            raise RuntimeError(
                f"{call}() does not go in state {self.state.value!r} of {self.name!r}: "
                f"{CURES[self.state]}, then tune()"
            )

    def recorded(self) -> Sequence[RecordedGraph]:
        """Returns what tuning starts from.

        Raises:
            ValueError: Nothing was recorded, or it is tuned already.
            PreconditionError: The module is in training mode.
        """
        graphs = self.recorder.graphs
        if self.state is not ModuleState.RECORDING or not graphs:
            state = ModuleState.INIT if self.state is ModuleState.RECORDING else self.state
            raise ValueError(
                f"tune() does not go in state {self.state.value!r} of {self.name!r}: {CURES[state]}"
            )
        if self.module.training:
            raise PreconditionError(
                f"tuning needs a module in eval mode, {self.name!r} is in training mode: "
                "call eval()"
            )
        return graphs

    def target(self, device: torch.device | str | None) -> torch.device:
        """Returns where to tune for: where the module is.

        Raises:
            ValueError: ``device`` is elsewhere, or none.
        """
        weights: list[Tensor] = [*self.module.parameters(), *self.module.buffers()]
        here = weights[0].device if weights else None
        wanted = here or torch.device("cpu") if device is None else device_from(device)
        if here is not None and (wanted.type, wanted.index or 0) != (here.type, here.index or 0):
            raise ValueError(
                f"{self.name!r} is on {here}, asked to tune for {wanted}: move it there first, "
                f".to({str(wanted)!r})"
            )
        return wanted

    def drop_stale(self, what: str) -> None:
        """Leaves the tuned state where weights are not those the engines were built with."""
        key = weights_key(self.module)
        if self.state is not ModuleState.TUNED or self.weights == key:
            return
        if self.weights_sum == weights_sum(self.module):
            self.weights = key  # other objects, the same values
            return
        self.leave_tuned("drop_stale", force=True)
        self.enter(ModuleState.PASSTHROUGH)
        warnings.warn(
            f"{what}: the engines of {self.name!r} hold the weights from before and were dropped; "
            "it runs eager until it is recorded and tuned again",
            RuntimeWarning,
            stacklevel=4,
        )

    def notes(self) -> tuple[str, ...]:
        """Returns what a reader of the report should know beyond the graphs."""
        found: list[str] = []
        if self.recorder.left_out:
            found.append(
                f"{self.recorder.left_out} calls with further structures or constants were not "
                "recorded, they run eager"
            )
        inside = cast("Iterable[tuple[str, nn.Module]]", self.module.named_modules())
        hooked = [name for name, child in inside if name and _has_hooks(child)]
        if hooked:
            found.append(f"engines run no hooks of submodules: {', '.join(hooked[:5])} have some")
        return tuple(found)

    def _forward(self) -> Forward:
        own: Forward = self.module.forward
        if self.state in (ModuleState.INIT, ModuleState.RECORDING):
            return self._recording(own)
        runs_engines = self.state is ModuleState.TUNED and self.is_active
        if not runs_engines or self.module.training:
            return own
        return wraps(own)(tuned_forward(self.models, own, self.eager_calls))

    def _recording(self, own: Forward) -> Forward:
        @wraps(own)
        def forward(*args: object, **kwargs: object) -> object:
            snapshot = self.recorder.snapshot(args, kwargs)
            output = own(*args, **kwargs)
            if snapshot is not None:
                self.recorder.add(snapshot)
            if self.state is ModuleState.INIT:
                self.enter(ModuleState.RECORDING)
            return output

        return forward


def device_from(value: torch.device | str) -> torch.device:
    """Returns a device by its name.

    Raises:
        ValueError: There is none of that name.
    """
    try:
        return torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"not a device: {value!r:.80}; write 'cpu' or 'cuda:0'") from error


def _has_hooks(module: nn.Module) -> bool:
    tables = (module.__dict__.get(name) for name in ("_forward_hooks", "_forward_pre_hooks"))
    return any(tables)
