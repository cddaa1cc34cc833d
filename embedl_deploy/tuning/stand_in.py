"""A module that acts in place of another one: same attributes, weights, hooks, signature."""

from collections.abc import Callable, Iterator
from typing import Protocol, Self, cast

from torch import Tensor, nn

_SHARED = (
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
)
"""The tables of a module that both hold, one and the same object: what one gets, both have."""

_OWN = ("forward", "training", "_is_full_backward_hook", "_compiled_call_impl")
"""What torch sets on the object that is called."""


class _Container(Protocol):
    def __getitem__(self, key: object) -> object: ...
    def __setitem__(self, key: object, value: object) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[object]: ...
    def __contains__(self, item: object) -> bool: ...


def require_module(value: object) -> None:
    """Checks what a user gave as a module.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(value, nn.Module):
        raise ValueError(f"only a torch.nn.Module can be wrapped, got {value!r:.80}")


class StandIn(nn.Module):
    """Has the weights, submodules, hooks and attributes of a module, which stays usable.

    The tables of weights, submodules and hooks are the module's own, so ``state_dict`` has its
    keys and a hook registered on either fires once per call of either.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        own = self.__dict__
        own["_module"] = module
        for name in _SHARED:
            if name in module.__dict__:
                own[name] = module.__dict__[name]
        own["_is_full_backward_hook"] = module.__dict__.get("_is_full_backward_hook")
        own["training"] = module.training
        self.register_load_state_dict_post_hook(_tell_that_weights_were_loaded)

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        return self.__dict__["_module"]

    def train(self, mode: bool = True) -> Self:
        self.module.train(mode)
        self.__dict__["training"] = mode
        return self

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, object]:  # pyright: ignore[reportIncompatibleMethodOverride]  # the module's own, however it spells it
        """Returns the module's own ``state_dict``, with its own keys."""
        states = cast("Callable[..., dict[str, object]]", self.module.state_dict)
        return states(*args, **kwargs)

    def load_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]  # the module's own
        self, *args: object, **kwargs: object
    ) -> object:
        """Loads weights into the module, by its own ``load_state_dict``."""
        load = cast("Callable[..., object]", self.module.load_state_dict)
        result = load(*args, **kwargs)
        self.loaded()
        return result

    def loaded(self) -> None:
        """Is called when all weights were loaded."""

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        load = cast("Callable[..., None]", self.module._load_from_state_dict)
        load(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        cast("Callable[..., object]", self.module._apply)(fn, recurse)
        return self

    def extra_repr(self) -> str:
        return self.module.extra_repr()

    def _get_name(self) -> str:
        return f"{type(self).__name__}[{type(self.module).__name__}]"

    def __getattr__(self, name: str) -> object:  # pyright: ignore[reportIncompatibleMethodOverride]  # any attribute of the user's
        module = self.__dict__.get("_module")
        if module is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r} yet")
        return getattr(module, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
            if name != "training":
                return
        setattr(self.module, name, value)

    def __delattr__(self, name: str) -> None:
        if name in _OWN:
            object.__delattr__(self, name)
        else:
            delattr(self.module, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.module)})

    def __bool__(self) -> bool:
        return bool(self.module)

    def __getitem__(self, key: object) -> object:
        return self._container[key]

    def __setitem__(self, key: object, value: object) -> None:
        self._container[key] = value

    def __len__(self) -> int:
        return len(self._container)

    def __iter__(self) -> Iterator[object]:
        return iter(self._container)

    def __contains__(self, item: object) -> bool:
        return item in self._container

    @property
    def _container(self) -> _Container:
        return cast("_Container", self.module)


def _tell_that_weights_were_loaded(module: nn.Module, _: object) -> None:
    if isinstance(module, StandIn):
        module.loaded()
