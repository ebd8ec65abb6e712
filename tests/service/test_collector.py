"""The cycle collector as the server sets it."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from service.collector import YOUNGEST, settle_collector


@pytest.fixture
def as_it_was() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


class Node:
    """Part of a cycle."""

    other: "Node"


def cycle() -> "weakref.ref[Node]":
    one, two = Node(), Node()
    one.other, two.other = two, one
    return weakref.ref(one)


@pytest.mark.usefixtures("as_it_was")
def test_what_is_there_is_put_aside_and_cycles_are_still_found() -> None:
    """Garbage of before is freed first; garbage of after is found by any collection."""
    before = cycle()
    settle_collector()
    assert before() is None
    assert gc.get_freeze_count() > 10_000
    assert gc.get_threshold()[0] == YOUNGEST
    after = cycle()
    gc.collect()
    assert after() is None


@pytest.mark.usefixtures("as_it_was")
def test_garbage_is_found_without_being_asked_for() -> None:
    """Once so many containers were made that nothing freed."""
    settle_collector()
    lost = cycle()
    kept: list[list[int]] = []
    while lost() is not None and len(kept) < 2 * YOUNGEST:
        kept.append([])
    assert lost() is None
