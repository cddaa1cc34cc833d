"""Exports to ONNX in several threads: in turns, and each quiet for itself."""

import sys
import threading
import warnings
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch.export import ExportedProgram

from embedl_deploy.engines.onnx_file import _translated  # pyright: ignore[reportPrivateUsage]
from embedl_deploy.errors import BuildError

PROGRAM = cast("ExportedProgram", None)
"""The exporters below do not look at it."""


def in_thread(export: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> threading.Thread:
    """Translates by ``export``, which must fail, in a thread of its own."""
    monkeypatch.setattr(torch.onnx, "export", export)

    def translate() -> None:
        with pytest.raises(BuildError, match="no more"):
            _translated(PROGRAM, False)

    thread = threading.Thread(target=translate)
    thread.start()
    return thread


def test_other_threads_are_heard_during_an_export(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inside, spoken = threading.Event(), threading.Event()

    def export(*args: object, **kwargs: object) -> object:
        del args, kwargs
        warnings.warn("of the exporter", stacklevel=1)
        inside.set()
        spoken.wait(10)
        raise ValueError("no more")

    thread = in_thread(export, monkeypatch)
    inside.wait(10)
    with pytest.raises(UserWarning, match="heard"):  # as the suite turns them into errors
        warnings.warn("heard", stacklevel=1)
    sys.stdout.write("out")
    sys.stderr.write("error")
    spoken.set()
    thread.join(10)

    assert capsys.readouterr() == ("out", "error")


def test_exports_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    second = threading.Event()

    def export(*args: object, **kwargs: object) -> object:
        del args, kwargs
        steps.append("in")
        if len(steps) > 1:
            second.set()
        second.wait(0.5)
        steps.append("out")
        raise ValueError("no more")

    threads = [in_thread(export, monkeypatch) for _ in range(2)]
    for thread in threads:
        thread.join(10)

    assert steps == ["in", "out", "in", "out"]
