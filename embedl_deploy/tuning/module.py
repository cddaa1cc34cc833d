"""The wrapper that records a module's calls, tunes it, and runs what tuning chose."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn

from embedl_deploy.engines.engine import Engine
from embedl_deploy.tuning.dimensions import DeclaredShapes
from embedl_deploy.tuning.dispatch import Forward
from embedl_deploy.tuning.graph_spec import GraphSpec
from embedl_deploy.tuning.measured_strategies import MinLatencyStrategy
from embedl_deploy.tuning.module_core import ModuleCore
from embedl_deploy.tuning.recording import Recorder
from embedl_deploy.tuning.stand_in import StandIn, require_module
from embedl_deploy.tuning.states import CURES, ModuleState
from embedl_deploy.tuning.strategies import Strategies, chosen_strategies, require_strategies
from embedl_deploy.tuning.strategy import TuneStrategy
from embedl_deploy.tuning.tuned_graph import TunedGraph, TuningReport
from embedl_deploy.tuning.weights import weights_key


class Module(StandIn):
    """Acts in place of a module: records its calls, then runs them by what tuning chose.

    The module itself stays as it is and usable. Calls that no tuned graph takes run eager by the
    module, counted in ``eager_calls``. Any number of threads may call it. A copy has weights of
    its own and shares the engines. Tuned graphs compute what the module computes in eval mode,
    without gradients; in training mode the module runs itself.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str | None = None,
        strategy: TuneStrategy | None = None,
        strategies: Strategies | None = None,
        dynamic_shapes: DeclaredShapes | None = None,
    ) -> None:
        """Wraps ``module``.

        Args:
            module: What to act in place of.
            name: What reports call it; None: the name of its class.
            strategy: How every graph of it is tuned.
            strategies: One per graph, in the order of ``graph_specs`` or looked up by spec.
            dynamic_shapes: Sizes that may vary, by parameter of ``forward``:
                ``{"x": {0: BatchDim(1, 64)}}``.

        Raises:
            ValueError: Both strategies are given or what is given is none, ``module`` is none, or
                is wrapped already.
        """
        require_strategies(strategy, strategies)
        if strategy is not None and strategies is not None:
            raise ValueError("give strategy or strategies, not both: the second is one per graph")
        if isinstance(module, Module):
            raise ValueError(f"{module.name!r} is wrapped already")
        require_module(module)
        super().__init__(module)
        self.__dict__["_tuning_core"] = ModuleCore(
            module,
            name or type(module).__name__,
            strategy if strategies is None else strategies,
            Recorder(signature(module.forward), dynamic_shapes),
            self._install,
        )

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.tuning_core.name

    @property
    def state(self) -> ModuleState:
        """Where it stands."""
        return self.tuning_core.state

    @property
    def graph_specs(self) -> list[GraphSpec]:
        """The graphs recorded, or tuned, in the order in which they were first seen."""
        if self.state is ModuleState.TUNED:
            return [graph.spec for graph in self.tuning_core.graphs]
        return [graph.spec for graph in self.tuning_core.recorder.graphs]

    @property
    def tuning_report(self) -> TuningReport:
        """What the last ``tune`` came to."""
        return self.tuning_core.report

    @property
    def device(self) -> torch.device:
        """Where it was tuned for, before that where its weights are."""
        return self.tuning_core.device or self.tuning_core.target(None)

    @property
    def eager_calls(self) -> int:
        """How many calls ran eager since it was tuned, since no tuned graph takes them."""
        return self.tuning_core.eager_calls.count

    @property
    def is_active(self) -> bool:
        """Whether it is tuned and its engines run."""
        return self.state is ModuleState.TUNED and self.tuning_core.is_active

    @property
    def is_state_dict_valid(self) -> bool:
        """Whether the weights are still those that the engines were built with."""
        return self.state is not ModuleState.TUNED or self.tuning_core.weights == weights_key(
            self.module
        )

    @property
    def tuning_core(self) -> ModuleCore:
        """What was recorded and tuned; for this package."""
        return self.__dict__["_tuning_core"]

    def enable_recording(self, force: bool = False) -> None:
        """Records calls from here on; what was recorded before stays.

        Raises:
            RuntimeError: It is tuned and ``force`` is not set, which drops what was tuned.
        """
        self.tuning_core.leave_tuned("enable_recording", force)
        self.tuning_core.enter(ModuleState.RECORDING)

    def enable_passthrough(self, force: bool = False) -> None:
        """Runs calls by the module alone; what was recorded stays.

        Raises:
            RuntimeError: It is tuned and ``force`` is not set, which drops what was tuned.
        """
        self.tuning_core.leave_tuned("enable_passthrough", force)
        self.tuning_core.enter(ModuleState.PASSTHROUGH)

    def activate(self) -> None:
        """Lets engines run again after ``deactivate``; does nothing in passthrough.

        Raises:
            RuntimeError: It was not tuned yet.
        """
        if self.state in (ModuleState.INIT, ModuleState.RECORDING):
            raise RuntimeError(
                f"activate() does not go in state {self.state.value!r} of {self.name!r}: "
                + CURES[self.state]
            )
        self.tuning_core.switch(active=True)

    def deactivate(self) -> None:
        """Gives back what engines hold, and runs eager until ``activate``.

        Does nothing unless tuned. Engines are shared with copies, which fall back to eager then.
        """
        self.tuning_core.switch(active=False)

    def tune(
        self,
        device: torch.device | str | None = None,
        strategy: TuneStrategy | None = None,
        dry_run: bool = False,
        *,
        cache_dir: str | Path | None = None,
    ) -> TuningReport:
        """Chooses what runs each recorded graph, and runs it from here on.

        Args:
            device: Where the module is and will run; None: where its weights are.
            strategy: For graphs that the wrapper was given no strategy for; None: the fastest of
                the engines installed here that computes the same.
            dry_run: Whether to only list what would be tried.
            cache_dir: Where engines may keep what they compiled.

        Raises:
            ValueError: Nothing was recorded, the module is tuned already, it is on another
                device, or the number of strategies is not that of the graphs.
            PreconditionError: It is in training mode.
            TuningError: A strategy that must not fall back to eager found nothing.
        """
        core = self.tuning_core
        graphs = core.recorded()
        target = core.target(device)
        specs = [graph.spec for graph in graphs]
        strategies = chosen_strategies(core.strategies, strategy, MinLatencyStrategy(), specs)
        folder = None if cache_dir is None else Path(cache_dir)
        weights = weights_key(self.module)
        tuned: list[TunedGraph] = []
        for spec, graph, chosen in zip(specs, graphs, strategies, strict=True):
            run = chosen.tune_dry_run if dry_run else chosen.tune
            samples = tuple(graph.samples)
            tuned.append(run(self.module, self.name, spec, samples, target, folder))
        report = TuningReport(self.name, tuple(tuned), core.notes())
        if not dry_run:
            core.settle(report, target, weights)
        return report

    def to_dict(
        self,
        *args: object,
        destination: dict[str, object] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict[str, object]:
        """Returns what tuning made as JSON values and bytes; weights are in ``state_dict``.

        The arguments are those of ``state_dict``; ``keep_vars`` changes nothing, since engines
        hold no variables.

        Raises:
            RuntimeError: It is not tuned.
            CheckpointError: An engine cannot be saved.
        """
        del keep_vars
        from embedl_deploy.tuning.module_state import module_to_dict

        self.tuning_core.require_tuned("to_dict")
        if args and isinstance(args[0], dict):
            destination = cast("dict[str, object]", args[0])
        found: dict[str, object] = {} if destination is None else destination
        found.update(
            {prefix + key: value for key, value in module_to_dict(self.tuning_core).items()}
        )
        return found

    @classmethod
    def from_dict(
        cls,
        module: nn.Module,
        state_dict: Mapping[str, object],
        device: torch.device | str | None = None,
        *,
        engines: Sequence[type[Engine]] = (),
        classes: Sequence[type] = (),
        trust_engines: bool = True,
    ) -> Self:
        """Returns ``module`` wrapped, tuned as ``to_dict`` saved it, its engines active.

        Args:
            module: The module that was tuned, with the same weights.
            state_dict: What ``to_dict`` returned, without its prefix.
            device: Where it will run; None: where it was tuned for.
            engines: Engine classes beyond those of this package.
            classes: Classes of inputs and outputs that pytree does not know.
            trust_engines: Whether to run the saved engines, which are code, or to build anew.

        Raises:
            CheckpointError: The state is damaged, or made for other weights or another machine.
        """
        from embedl_deploy.tuning.module_state import LoadOptions, tuned_from_dict

        options = LoadOptions(tuple(engines), tuple(classes), trust_engines)
        saved = tuned_from_dict(module, state_dict, device, options)
        result = cls(module, saved.report.name)
        result.tuning_core.settle(saved.report, saved.device, None)
        return result

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.tuning_core.enter(self.state)
        return self

    def _install(self, forward: Forward) -> None:
        self.__dict__["forward"] = forward

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.tuning_core.drop_stale("the module was moved or converted")
        return self

    def loaded(self) -> None:
        self.tuning_core.drop_stale("weights were loaded")

    def extra_repr(self) -> str:
        return f"name={self.name!r}, state={self.state.value!r}"

    def __deepcopy__(self, memo: dict[int, object]) -> "Module":
        result = Module(deepcopy(self.module, memo), self.name)
        memo[id(self)] = result
        result.tuning_core.adopt(self.tuning_core, memo)
        return result

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        from embedl_deploy.tuning.pickling import pickled, unpickled

        return unpickled, (self.module, pickled(self.tuning_core))
