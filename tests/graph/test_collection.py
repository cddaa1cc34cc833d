import gc

import pytest

from embedl_deploy.graph.collection import paused_collection


def test_collection_goes_on_after_the_block_even_if_it_raises() -> None:
    seen: list[bool] = []

    def fail() -> None:
        with paused_collection():
            seen.append(gc.isenabled())
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    assert [*seen, gc.isenabled()] == [False, True]


def test_collection_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with paused_collection():
            pass

        assert not gc.isenabled()
    finally:
        gc.enable()
