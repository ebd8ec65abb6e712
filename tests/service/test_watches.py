"""Clients that hang up while they wait, on a clock of the test's."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from service.protocols.asgi import Message
from service.protocols.watches import Watches


class Client:
    """One end of a request that was read."""

    def __init__(self) -> None:
        self.asked = 0  # how often the server asked for what comes next
        self.left = asyncio.Event()

    async def receive(self) -> Message:
        self.asked += 1
        await self.left.wait()
        return {"type": "http.disconnect"}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], Any]]:
    """The looks that are due; a test takes them."""
    due: list[Callable[[], Any]] = []
    monkeypatch.setattr(
        asyncio.BaseEventLoop, "call_later", lambda loop, delay_s, look: due.append(look)
    )
    return due


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_who_waits_long_is_watched_and_who_does_not_costs_nothing(
    looks: list[Callable[[], Any]],
) -> None:
    """From the second look on; there is one timer, and none while nobody waits."""

    async def scenario() -> None:
        watches, quick, slow = Watches(), Client(), Client()
        told: list[str] = []
        first = watches.add(quick.receive, lambda: told.append("quick"))
        watches.add(slow.receive, lambda: told.append("slow"))
        assert len(looks) == 1
        looks.pop()()
        watches.remove(first)
        await turns()
        assert (quick.asked, slow.asked, len(looks)) == (0, 0, 1)
        looks.pop()()
        await turns()
        assert (quick.asked, slow.asked) == (0, 1)
        slow.left.set()
        await turns()
        assert told == ["slow"]

    asyncio.run(scenario())


def test_who_was_answered_is_not_told_of(looks: list[Callable[[], Any]]) -> None:
    """Its watch ends with its wait, and with the last the timer."""

    async def scenario() -> None:
        watches, client = Watches(), Client()
        told: list[str] = []
        watch = watches.add(client.receive, lambda: told.append("gone"))
        for _ in range(2):
            looks.pop()()
            await turns()
        watches.remove(watch)
        client.left.set()
        await turns()
        looks.pop()()
        assert (told, looks, client.asked) == ([], [], 1)
        watches.add(client.receive, lambda: None)
        assert len(looks) == 1

    asyncio.run(scenario())
