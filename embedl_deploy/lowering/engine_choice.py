"""What a caller may write for an engine: a name, a class, a configuration, an engine."""

from collections.abc import Mapping
from difflib import get_close_matches

import embedl_deploy.engines as engine_package
from embedl_deploy.engines.engine import Engine, EngineConfig

EngineChoice = str | Engine | EngineConfig | type[Engine]


def known_engines() -> Mapping[str, type[Engine]]:
    """Returns the engines of this package by class name."""
    exported: Mapping[str, object] = vars(engine_package)
    return {
        value.__name__: value
        for value in exported.values()
        if isinstance(value, type) and issubclass(value, Engine) and value is not Engine
    }


def engine_from(choice: object) -> Engine:
    """Returns the engine that ``choice`` means; nothing is built.

    Raises:
        ValueError: It is no name, class, configuration or engine of ours.
    """
    if isinstance(choice, Engine):
        return choice
    if isinstance(choice, type) and issubclass(choice, Engine):
        return choice()
    if isinstance(choice, str):
        return _named(choice)()
    if isinstance(choice, EngineConfig):
        return _class_for(choice)(choice)
    raise _no_engine(f"{choice!r:.80}")


def check_choice(choice: object) -> None:
    """Checks what ``engine_from`` would check, without making the engine.

    Raises:
        ValueError: It is no name, class, configuration or engine of ours.
    """
    if isinstance(choice, str):
        _named(choice)
    elif isinstance(choice, EngineConfig):
        _class_for(choice)
    elif not isinstance(choice, Engine):
        is_class = isinstance(choice, type) and issubclass(choice, Engine)
        if not is_class:
            raise _no_engine(f"{choice!r:.80}")


def short_name(engine_class: type[Engine]) -> str:
    """Returns the name that ``lower(engines=[...])`` takes: ``inductor`` for InductorEngine."""
    return engine_class.__name__.removesuffix("Engine").lower()


def _named(name: str) -> type[Engine]:
    wanted = name.lower().replace("_", "").replace("-", "")
    by_name = {short_name(found): found for found in known_engines().values()}
    if wanted not in by_name:
        near = get_close_matches(wanted, list(by_name), n=1)
        meant = f", did you mean {near[0]!r}?" if near else ";"
        raise ValueError(f"there is no engine {name!r}{meant} there are {sorted(by_name)}")
    return by_name[wanted]


def _class_for(config: EngineConfig) -> type[Engine]:
    name = type(config).__name__.removesuffix("Config").lower()
    for found in known_engines().values():
        if found.__name__.lower() in (name, f"{name}engine"):
            return found
    raise ValueError(f"no engine takes a {type(config).__name__}; give the engine itself")


def _no_engine(shown: str) -> ValueError:
    return ValueError(
        "an engine is given as a name, a class, a config or an engine that was not built yet, "
        f"got {shown}"
    )
