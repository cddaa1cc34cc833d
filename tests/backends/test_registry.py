import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from embedl_deploy import transform
from embedl_deploy.backend import (
    Backend,
    broken_backends,
    discover_backends,
    get_backend,
    reset_backends,
    set_backend,
    use_backend,
)
from embedl_deploy.backends.registry import resolve_backend
from embedl_deploy.engines import EagerEngine, EngineConfig
from embedl_deploy.rewriting import Pattern, Phase

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Hides every installed distribution, then installs temporary ones."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    def make(distribution: str, body: str, **entries: str) -> None:
        info = tmp_path / f"{distribution}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1\n")
        lines = [f"{name} = {value}" for name, value in entries.items()]
        text = "\n".join(["[embedl_deploy.backends]", *lines])
        (info / "entry_points.txt").write_text(text)
        (tmp_path / f"{distribution}.py").write_text(
            f"from embedl_deploy.backend import Backend\n{body}\n"
        )

    reset_backends()
    yield make
    reset_backends()
    for name in [name for name in sys.modules if name.startswith("maker_")]:
        del sys.modules[name]


def test_finds_nothing_where_nothing_is_installed(install: Install) -> None:
    del install

    with pytest.raises(RuntimeError, match=r"no installed distribution.*set_backend"):
        get_backend()
    assert not discover_backends()


def test_takes_the_only_backend_without_being_told(install: Install) -> None:
    install("maker_one", "ONE = Backend('one')", one="maker_one:ONE")

    assert get_backend().name == "one"


def test_asks_to_choose_among_several(install: Install) -> None:
    install("maker_one", "ONE = Backend('one')", one="maker_one:ONE")
    install("maker_two", "TWO = Backend('two')", two="maker_two:TWO")

    with pytest.raises(
        RuntimeError, match=r"several are installed: one, two.*set_backend\('one'\)"
    ):
        get_backend()


def test_looks_once_until_reset(install: Install) -> None:
    install("maker_one", "ONE = Backend('one')", one="maker_one:ONE")
    before = discover_backends()

    install("maker_two", "TWO = Backend('two')", two="maker_two:TWO")

    assert discover_backends() is before
    reset_backends()
    assert list(discover_backends()) == ["one", "two"]


def test_reset_forgets_the_selection(install: Install) -> None:
    install("maker_one", "ONE = Backend('one')", one="maker_one:ONE")
    install("maker_two", "TWO = Backend('two')", two="maker_two:TWO")
    set_backend("two")

    reset_backends()

    with pytest.raises(RuntimeError, match="no backend is active"):
        get_backend()


def test_a_broken_plugin_does_not_stop_the_others(install: Install) -> None:
    install("maker_one", "ONE = Backend('one')", one="maker_one:ONE")
    install("maker_bad", "import no_such_library", bad="maker_bad:BAD")

    set_backend("one")

    assert get_backend().name == "one"
    with pytest.raises(ValueError, match=r"'bad' cannot be used.*no_such_library"):
        set_backend("bad")


@pytest.mark.parametrize(
    ("body", "entry", "because"),
    [
        (
            "import no_such",
            "maker_bad:X",
            r"importing maker_bad failed: ModuleNotFoundError.*bad.py:2",
        ),
        ("X = 1 / 0", "maker_bad:X", r"importing maker_bad failed: ZeroDivisionError.*bad.py:2"),
        ("X =", "maker_bad:X", "importing maker_bad failed: SyntaxError"),
        ("raise KeyError('a')", "maker_bad:X", "importing maker_bad failed: KeyError"),
        (
            "Y = Backend('bad')",
            "maker_bad:X",
            "names 'X', which the module does not have; .* are Y",
        ),
        ("", "maker_none:X", "entry point maker_none:X names a module that is not installed"),
    ],
)
def test_only_the_broken_backend_fails_and_says_why(
    install: Install, body: str, entry: str, because: str
) -> None:
    install("maker_one", "ONE = Backend('one')", one="maker_one:ONE")
    install("maker_bad", body, bad=entry)

    set_backend("one")

    assert get_backend().name == "one"
    assert list(discover_backends()) == ["one"]
    assert list(broken_backends()) == ["bad"]
    with pytest.raises(ValueError, match=f"backend 'bad' cannot be used: .*{because}"):
        set_backend("bad")
    with pytest.raises(
        ValueError, match=f"unknown backend 'two'; known backends: one. Installed .*{because}"
    ):
        set_backend("two")


def test_says_what_is_not_loadable_where_nothing_else_is_there(install: Install) -> None:
    install("maker_bad", "X = 3", bad="maker_bad:X")

    with pytest.raises(RuntimeError, match=r"not loadable: 'bad', because .* got int"):
        get_backend()


@pytest.mark.parametrize(
    ("body", "because"),
    [
        ("X = 3", "must be a Backend, got int"),
        ("X = Backend('other')", "the Backend itself 'other'"),
    ],
)
def test_refuses_an_entry_point_that_is_no_such_backend(
    install: Install, body: str, because: str
) -> None:
    install("maker_bad", body, bad="maker_bad:X")

    with pytest.raises(ValueError, match=because):
        set_backend("bad")


def test_names_an_engine_that_a_plugin_misspelled(install: Install) -> None:
    install("maker_one", "ONE = Backend('one', engines=('indcutor',))", one="maker_one:ONE")

    with pytest.raises(ValueError, match=r"'one' cannot be used: .*did you mean 'inductor'\?"):
        set_backend("one")


@pytest.mark.parametrize(
    ("engine", "because"),
    [
        ("tpyo-engine", r"engines of backend 'mine': there is no engine 'tpyo-engine'; there are"),
        ("open-vinoo", r"there is no engine 'open-vinoo', did you mean 'openvino'\?"),
        (3, "an engine is given as a name, a class, a config or an engine"),
        (EngineConfig(), "no engine takes a EngineConfig"),
    ],
)
def test_a_backend_whose_engine_is_none_is_refused_before_anything_is_rewritten(
    engine: object, because: str
) -> None:
    mine = Backend("mine", engines=("eager", EagerEngine, EagerEngine(), engine))

    with pytest.raises(ValueError, match=because):
        transform(nn.Linear(2, 2).eval(), (torch.ones(1, 2),), backend=mine)


def test_refuses_a_name_that_two_distributions_define(install: Install) -> None:
    install("maker_one", "ONE = Backend('one')", one="maker_one:ONE")
    install("maker_two", "TWO = Backend('one')", one="maker_two:TWO")

    with pytest.raises(ValueError, match="two distributions define it"):
        set_backend("one")


def test_names_the_known_backends_for_an_unknown_one(install: Install) -> None:
    install("maker_one", "ONE = Backend('one')", one="maker_one:ONE")

    with pytest.raises(ValueError, match=r"unknown backend 'onne'; known backends: one"):
        set_backend("onne")


def test_a_scope_wins_over_the_selection_and_ends(install: Install) -> None:
    install("maker_one", "ONE = Backend('one')", one="maker_one:ONE")
    install("maker_two", "TWO = Backend('two')", two="maker_two:TWO")
    set_backend("one")

    with use_backend("two") as backend:
        inside = get_backend()

    assert inside is backend
    assert get_backend().name == "one"


def test_a_scope_does_not_leak_into_another_thread(install: Install) -> None:
    install("maker_one", "ONE = Backend('one')", one="maker_one:ONE")
    install("maker_two", "TWO = Backend('two')", two="maker_two:TWO")
    set_backend("one")
    seen: list[str] = []

    with use_backend("two"):
        thread = threading.Thread(target=lambda: seen.append(get_backend().name))
        thread.start()
        thread.join()

    assert seen == ["one"]


def test_the_recorded_backend_wins_over_the_active_one(install: Install) -> None:
    install("maker_one", "ONE = Backend('one')", one="maker_one:ONE")
    install("maker_two", "TWO = Backend('two')", two="maker_two:TWO")
    set_backend("one")

    assert resolve_backend(None, recorded="two").name == "two"
    assert resolve_backend("one", recorded="two").name == "one"
    assert resolve_backend(None).name == "one"


class _Fusion(Pattern):
    phase = Phase.FUSION


def test_refuses_a_pattern_of_another_phase() -> None:
    with pytest.raises(ValueError, match=r"conversion_patterns of backend 'x'.*_Fusion.*FUSION"):
        Backend("x", conversion_patterns=(_Fusion,))


def test_finds_the_built_in_backends() -> None:
    reset_backends()

    assert {"inductor", "tensorrt", "torchao", "lattice"} <= set(discover_backends())
