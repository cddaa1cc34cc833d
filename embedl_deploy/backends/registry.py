"""Finds the installed backends and keeps which one is active."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from threading import RLock
from types import MappingProxyType

from embedl_deploy.lowering.engine_choice import check_choice
from embedl_deploy.rewriting.backend import Backend
from embedl_deploy.rewriting.telling import told

GROUP = "embedl_deploy.backends"
"""The entry point group through which a distribution offers its backends."""


def discover_backends() -> Mapping[str, Backend]:
    """Returns every installed backend by name, in alphabetical order; looked up once.

    One that cannot be loaded is left out, so that a broken plugin never stops another backend;
    ``broken_backends`` says what is wrong.
    """
    return _REGISTRY.discover()


def broken_backends() -> Mapping[str, str]:
    """Returns why each installed backend that cannot be loaded cannot, by name."""
    return _REGISTRY.broken()


def require_backend(name: str) -> Backend:
    """Returns the installed backend called ``name``.

    Raises:
        ValueError: No installed backend has that name, or it cannot be loaded.
    """
    return _REGISTRY.named(name)


def set_backend(name: str) -> None:
    """Makes the backend called ``name`` the active one in the whole process.

    Raises:
        ValueError: No installed backend has that name, or it cannot be loaded.
    """
    _REGISTRY.select(_REGISTRY.named(name))


def get_backend() -> Backend:
    """Returns the active backend: of ``use_backend``, else of ``set_backend``, else the only one.

    Raises:
        RuntimeError: None is set, and none or several are installed.
    """
    return _SCOPED.get() or _REGISTRY.active()


@contextmanager
def use_backend(name: str) -> Generator[Backend]:
    """Makes a backend the active one inside the ``with`` block, in this thread or task only.

    Raises:
        ValueError: No installed backend has that name, or it cannot be loaded.
    """
    backend = _REGISTRY.named(name)
    token = _SCOPED.set(backend)
    try:
        yield backend
    finally:
        _SCOPED.reset(token)


def reset_backends() -> None:
    """Forgets which backend was set and which were found; the next call looks again."""
    _REGISTRY.reset()


def resolve_backend(backend: str | Backend | None, recorded: str | None = None) -> Backend:
    """Returns the backend that an argument means: itself, the recorded one, else the active one.

    Args:
        backend: A backend, its name, or ``None`` for the default.
        recorded: The name that a graph remembers.

    Raises:
        ValueError: No installed backend has the name, or one of its engines is none.
        RuntimeError: The active one is asked for and there is none.
    """
    if isinstance(backend, Backend):
        wrong = _wrong_engine(backend)
        if wrong is not None:
            raise ValueError(wrong)
        return backend
    name = recorded if backend is None else backend
    return get_backend() if name is None else _REGISTRY.named(name)


class _Registry:
    """What was found and what was set, behind one lock."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._found: Mapping[str, Backend] | None = None
        self._broken: dict[str, str] = {}
        self._selected: Backend | None = None

    def discover(self) -> Mapping[str, Backend]:
        with self._lock:
            if self._found is None:
                self._found = MappingProxyType(self._load())
            return self._found

    def named(self, name: str) -> Backend:
        found = self.discover()
        if name in found:
            return found[name]
        if name in self._broken:
            raise ValueError(f"backend {name!r} cannot be used: {self._broken[name]}")
        raise ValueError(
            f"unknown backend {name!r}; known backends: {_listed(found)}{_unloadable(self._broken)}"
        )

    def broken(self) -> Mapping[str, str]:
        with self._lock:
            self.discover()
            return MappingProxyType(dict(self._broken))

    def select(self, backend: Backend) -> None:
        with self._lock:
            self._selected = backend

    def active(self) -> Backend:
        with self._lock:
            if self._selected is not None:
                return self._selected
            found = self.discover()
        if len(found) == 1:
            return next(iter(found.values()))
        raise RuntimeError(_no_active(found) + _unloadable(self._broken))

    def reset(self) -> None:
        with self._lock:
            self._found = None
            self._broken = {}
            self._selected = None

    def _load(self) -> dict[str, Backend]:
        self._broken = {}
        by_name: dict[str, EntryPoint] = {}
        for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
            other = by_name.setdefault(entry.name, entry)
            if other.value != entry.value:
                self._broken[entry.name] = (
                    f"two distributions define it, as {other.value} and as {entry.value}: "
                    "uninstall one"
                )
        loaded: dict[str, Backend] = {}
        for name, entry in by_name.items():
            outcome = self._broken.get(name) or _load_entry(entry)
            if isinstance(outcome, Backend):
                loaded[name] = outcome
            else:
                self._broken[name] = outcome
        return loaded


def _load_entry(entry: EntryPoint) -> Backend | str:
    """Returns the backend that an entry point names, or why it cannot be had."""
    try:
        module = import_module(entry.module)
    except Exception as error:  # noqa: BLE001  # a plugin may fail in any way; the others go on
        return _not_imported(entry, error)
    try:
        backend: object = entry.load()
    except AttributeError:
        offered = [name for name, value in vars(module).items() if isinstance(value, Backend)]
        return (
            f"its entry point {entry.value} names {entry.attr!r}, which the module does not have; "
            f"its backends are {', '.join(offered) or 'none'}"
        )
    if not isinstance(backend, Backend):
        return f"{entry.value} must be a Backend, got {type(backend).__name__}"
    if backend.name != entry.name:
        return f"its entry point is called {entry.name!r}, the Backend itself {backend.name!r}"
    return _wrong_engine(backend) or backend


def _not_imported(entry: EntryPoint, error: Exception) -> str:
    """Returns what keeps the module of an entry point from being imported."""
    if isinstance(error, ModuleNotFoundError) and error.name == entry.module:
        return f"its entry point {entry.value} names a module that is not installed"
    return f"importing {entry.module} failed: {told(error)}"


def _wrong_engine(backend: Backend) -> str | None:
    """Returns which entry of ``engines`` is none, so that a typo shows before anything is built."""
    for choice in backend.engines:
        try:
            check_choice(choice)
        except ValueError as error:
            return f"engines of backend {backend.name!r}: {error}"
    return None


def _no_active(found: Mapping[str, Backend]) -> str:
    if not found:
        return (
            "no backend is active and no installed distribution offers one in the group "
            f"{GROUP!r}: install embedl-deploy (pip install -e . in a checkout), then call "
            "embedl_deploy.backend.set_backend(name)"
        )
    return (
        f"no backend is active and several are installed: {_listed(found)}. "
        f"Call embedl_deploy.backend.set_backend({next(iter(found))!r}) or with another of them"
    )


def _unloadable(broken: Mapping[str, str]) -> str:
    if not broken:
        return ""
    listed = "; ".join(f"{name!r}, because {reason}" for name, reason in sorted(broken.items()))
    return f". Installed and not loadable: {listed}"


def _listed(found: Mapping[str, Backend]) -> str:
    return ", ".join(found) or "none"


_REGISTRY = _Registry()
_SCOPED: ContextVar[Backend | None] = ContextVar("embedl_deploy_backend", default=None)
