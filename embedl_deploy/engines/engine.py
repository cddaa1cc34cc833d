"""The contract of an engine: what builds a subgraph and runs it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Self, cast

import torch
from torch import nn
from torch.fx import Node

from embedl_deploy.engines.config import EngineConfig
from embedl_deploy.engines.engine_state import EngineState, cure_of
from embedl_deploy.rewriting.refusal import Refusal

Sample = tuple[object, ...]
"""Positional arguments, or a pair of a tuple of arguments and a dict of keyword arguments."""


class Engine(ABC):
    """Builds one module for one device and runs it.

    The life cycle is kept here: every call in a state that does not admit it is a
    ``RuntimeError`` that names the engine and the call that is missing or too late. Subclasses
    define the underscored steps.
    """

    config_class: ClassVar[type[EngineConfig]] = EngineConfig
    """What ``config`` must be."""

    device_types: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    """The device types that the engine can build for."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """The optional packages that it needs, by the names they are imported under.

    What runs a built engine comes first: a saved engine is loaded with the same version of it.
    """

    shares_cache: ClassVar[bool] = False
    """Whether builds leave something in ``cache_dir`` that other builds profit from."""

    STATE_ENGINE: ClassVar[str] = "engine"
    """Key of a saved state: the class that saved it."""

    STATE_CONFIG: ClassVar[str] = "config"
    """Key of a saved state: the configuration, as ``EngineConfig.to_dict`` gives it."""

    STATE_DEVICE: ClassVar[str] = "device"
    """Key of a saved state: the device that the engine was built for."""

    def __init__(self, config: EngineConfig | None = None) -> None:
        self.config = self.config_class() if config is None else config
        if not isinstance(self.config, self.config_class):
            raise ValueError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, "
                f"got {type(config).__name__}"
            )
        self._state = EngineState.INIT
        self._device: torch.device | None = None
        self.kernels: dict[str, int] = {}
        """How many kernels of each kind the build made, where the engine can tell."""

    @property
    def name(self) -> str:
        """The short name: ``inductor`` for ``InductorEngine``."""
        return type(self).__name__.removesuffix("Engine").lower()

    @property
    def state(self) -> EngineState:
        """Where the engine stands in its life."""
        return self._state

    @property
    def is_active(self) -> bool:
        """Whether ``infer`` may be called."""
        return self._state in (EngineState.ACTIVE, EngineState.DEPLOYED)

    @property
    def is_jit(self) -> bool:
        """Whether the engine compiles in the process that runs it, so that nothing is saved."""
        return False

    @property
    def needs_module(self) -> bool:
        """Whether ``from_dict`` needs the module that was built, and its weights with it."""
        return True

    @property
    def device(self) -> torch.device | None:
        """The device the engine was built for, None before."""
        return self._device

    @classmethod
    def missing_libraries(cls) -> tuple[str, ...]:
        """Returns those of ``libraries`` that are not installed; nothing is imported."""
        return tuple(name for name in cls.libraries if find_spec(name) is None)

    def key(self) -> str:
        """Returns what names class and configuration, the same in every process."""
        return f"{type(self).__name__}_{self.config.key()}"

    def describe(self) -> str:
        """Returns class and changed configuration for people."""
        return f"{type(self).__name__}({self.config.describe()})"

    @abstractmethod
    def supports(self, node: Node) -> Refusal | None:
        """Returns why the engine does not take ``node``, None if it does; changes nothing."""

    def build(
        self,
        module: nn.Module,
        graph_spec: object | None = None,
        data: Sequence[Sample] = (),
        device: torch.device | str | None = None,
        cache_dir: Path | None = None,
    ) -> Self:
        """Builds ``module`` and leaves the engine active.

        Args:
            module: What to build; it is not changed.
            graph_spec: What is declared about its inputs, None for nothing.
            data: Samples of its inputs, each run at most once.
            device: Where it will run; that of the tensors in ``data`` if None.
            cache_dir: Where the engine may keep files.

        Raises:
            RuntimeError: The engine was built before.
            ValueError: The engine does not build for the device's type.
            BuildError: The engine cannot build the module; the engine stays as it was.
        """
        self._require("build", EngineState.INIT)
        chosen = self._checked_device(device, data)
        try:
            self._build(module, graph_spec, data, chosen, cache_dir)
        except BaseException:
            self._discard()
            raise
        self._device, self._state = chosen, EngineState.ACTIVE
        return self

    def infer(self, *args: object, **kwargs: object) -> object:
        """Runs the built module.

        Raises:
            RuntimeError: The engine is not active.
        """
        if self._state is not EngineState.ACTIVE and self._state is not EngineState.DEPLOYED:
            self._require("infer", EngineState.ACTIVE, EngineState.DEPLOYED)
        return self._infer(*args, **kwargs)

    def activate(self) -> None:
        """Takes what is needed to run; does nothing on an active engine."""
        self._require(
            "activate", EngineState.ACTIVE, EngineState.INACTIVE, EngineState.CHECKPOINT_LOADED
        )
        if self._state is not EngineState.ACTIVE:
            self._activate()
            self._state = EngineState.ACTIVE

    def deactivate(self) -> None:
        """Gives back what running takes; does nothing on an inactive engine."""
        self._require("deactivate", EngineState.ACTIVE, EngineState.INACTIVE)
        if self._state is EngineState.ACTIVE:
            self._deactivate()
            self._state = EngineState.INACTIVE

    def deploy(self, device: torch.device | str | None = None) -> None:
        """Makes a loaded engine run for good, on the saved device if ``device`` is None.

        Raises:
            RuntimeError: The engine was not loaded, or is active.
            ValueError: What was saved does not run on that type of device.
            BuildError: It cannot run on this machine.
        """
        self._require("deploy", EngineState.CHECKPOINT_LOADED)
        saved = self._device
        if device is not None:
            self._device = self._moved(self._checked_device(device, ()))
        try:
            self._activate()
        except BaseException:
            self._device = saved
            raise
        self._state = EngineState.DEPLOYED

    def to_dict(self) -> dict[str, object]:
        """Returns the state of a built engine: JSON values, tensors, and paths of files.

        A ``Path`` is a file that goes into the checkpoint. The ``STATE_*`` constants name the keys.
        """
        self._require("to_dict", EngineState.ACTIVE, EngineState.INACTIVE)
        return {
            self.STATE_ENGINE: type(self).__name__,
            self.STATE_CONFIG: self.config.to_dict(),
            self.STATE_DEVICE: str(self._device),
            **self._saved(),
        }

    @classmethod
    def from_dict(cls, module: nn.Module | None, state: Mapping[str, object]) -> Self:
        """Returns the engine that ``to_dict`` gave ``state`` for, loaded and not active.

        Args:
            module: What the engine was built from, for engines that need it; not changed.
            state: What ``to_dict`` returned, paths leading to the files as they lie now.

        Raises:
            ValueError: The state is of another class, or the engine needs the module.
        """
        saved_by = state.get(cls.STATE_ENGINE)
        if saved_by != cls.__name__:
            raise ValueError(f"{cls.__name__} cannot load the state of a {saved_by}")
        config, device = state.get(cls.STATE_CONFIG), state.get(cls.STATE_DEVICE)
        if not isinstance(config, Mapping) or not isinstance(device, str):
            raise ValueError(f"the state of {cls.__name__} lacks its configuration or its device")
        engine = cls(cls.config_class.from_dict(cast("Mapping[str, object]", config)))
        engine._device = torch.device(device)
        engine._load(module, state)
        engine._state = EngineState.CHECKPOINT_LOADED
        return engine

    @abstractmethod
    def _build(
        self,
        module: nn.Module,
        graph_spec: object | None,
        data: Sequence[Sample],
        device: torch.device,
        cache_dir: Path | None,
    ) -> None:
        """Builds; may raise ``BuildError``."""

    @abstractmethod
    def _infer(self, *args: object, **kwargs: object) -> object:
        """Runs what was built."""

    @abstractmethod
    def _activate(self) -> None:
        """Takes what running needs, after ``_deactivate`` or ``_load``."""

    @abstractmethod
    def _deactivate(self) -> None:
        """Gives back what running needs, keeping what ``_activate`` and ``_saved`` need."""

    @abstractmethod
    def _saved(self) -> dict[str, object]:
        """Returns what ``_load`` needs, beside class, configuration and device."""

    @abstractmethod
    def _load(self, module: nn.Module | None, state: Mapping[str, object]) -> None:
        """Takes in what ``_saved`` returned."""

    def _discard(self) -> None:
        """Gives back what a failed build left behind."""

    def _checked_device(
        self, device: torch.device | str | None, data: Sequence[Sample]
    ) -> torch.device:
        found = torch.device(device) if device is not None else _device_of(data)
        if found.type not in self.device_types:
            raise ValueError(
                f"{type(self).__name__} builds for {' and '.join(self.device_types)}, got {found}"
            )
        return found

    def _moved(self, device: torch.device) -> torch.device:
        saved = self._device
        if saved is not None and saved.type != device.type and not self._can_move():
            raise ValueError(
                f"{type(self).__name__} was built for {saved} and does not run on {device}: "
                "build it there"
            )
        return device

    def _can_move(self) -> bool:
        """Tells whether what was saved for one type of device runs on another too."""
        return True

    def _require(self, call: str, *states: EngineState) -> None:
        if self._state not in states:
            raise RuntimeError(
                f"{type(self).__name__}.{call}() does not go in state {self._state.value!r}: "
                + cure_of(call, self._state)
            )

    def __repr__(self) -> str:
        return f"<{self.describe()}, {self._state.value}>"


def _device_of(data: Sequence[Sample]) -> torch.device:
    from torch.utils._pytree import tree_leaves

    leaves = tree_leaves(list(data[:1]))
    devices = [leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor)]
    # A single number may lie on the CPU beside the rest.
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))
