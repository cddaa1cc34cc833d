import logging
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from embedl_deploy.tracing.quiet_thread import loggers_below, without_records, without_warnings

LOGGER = logging.getLogger("embedl_deploy_test.inner")


def overlapping(
    quiet: Callable[[], AbstractContextManager[None]], speak: Callable[[], None]
) -> None:
    """Enters in another thread, then in this, leaves in that one, then in this; both speak."""
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with quiet():
            speak()
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(10)
    with quiet():
        leave.set()
        thread.join(10)
        speak()


def quiet_log() -> AbstractContextManager[None]:
    return without_records(loggers_below("embedl_deploy_test"))


def test_filters_of_warnings_are_as_before_when_two_threads_overlapped() -> None:
    before, held = warnings.filters, list(warnings.filters)

    overlapping(without_warnings, lambda: warnings.warn("one's own", stacklevel=1))

    assert warnings.filters is before
    assert list(warnings.filters) == held


def test_another_thread_warns_through() -> None:
    inside, spoken = threading.Event(), threading.Event()

    def other() -> None:
        with without_warnings():
            inside.set()
            spoken.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(10)
    with pytest.raises(UserWarning, match="heard"):  # as the suite turns them into errors
        warnings.warn("heard", stacklevel=1)
    spoken.set()
    thread.join(10)


def test_an_entry_that_was_copied_while_it_held_is_dead_afterwards() -> None:
    with without_warnings():
        kept = list(warnings.filters)
        warnings.warn("dropped", stacklevel=1)

    with warnings.catch_warnings():
        warnings.filters[:] = kept  # type: ignore[index]  # a list, as those who copied it put back
        with pytest.raises(UserWarning, match="heard"):
            warnings.warn("heard", stacklevel=1)


def test_loggers_below_a_name_are_quiet_for_one_thread(caplog: pytest.LogCaptureFixture) -> None:
    overlapping(quiet_log, lambda: LOGGER.error("one's own"))
    with quiet_log():
        thread = threading.Thread(target=lambda: LOGGER.error("another's"))
        thread.start()
        thread.join()
    LOGGER.error("afterwards")

    assert [record.message for record in caplog.records] == ["another's", "afterwards"]
    assert LOGGER.filters == []
