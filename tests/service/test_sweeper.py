"""Idle sessions are forgotten, counted and logged in the background."""

import asyncio
import logging

import pytest
from prometheus_client import CollectorRegistry

from service.catalog import Catalog
from service.errors import StoreUnavailableError
from service.metrics import Metrics
from service.model import Model
from service.session import SessionKey
from service.store.memory import MemoryStore
from service.sweeper import MAX_LOGGED, period_of, sweep, sweep_forever
from tests.service.test_engine import Clock, request, rows, run, running


class Swept(MemoryStore):
    """A store whose sweeps find what the test says."""

    def __init__(self, *found: list[SessionKey] | Exception) -> None:
        super().__init__(10, 60.0)
        self.found = list(found)

    async def sweep(self) -> list[SessionKey]:
        found = self.found.pop(0) if self.found else []
        if isinstance(found, Exception):
            raise found
        return found


def keys(count: int, tenant: str = "") -> list[SessionKey]:
    return [SessionKey(tenant, f"s-{n}") for n in range(count)]


def counted(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value(f"carousel_sessions_{name}")


@pytest.mark.parametrize(
    ("timeout_s", "period_s"), [(3600.0, 30.0), (100.0, 10.0), (1.0, 0.25), (0.001, 0.25)]
)
def test_the_period_follows_the_timeout_within_bounds(timeout_s: float, period_s: float) -> None:
    """A tenth of it."""
    assert period_of(timeout_s) == period_s


def test_a_sweep_is_one_line_and_one_count(caplog: pytest.LogCaptureFixture) -> None:
    """Of all tenants, in as many parts as the store gives; nothing found is not logged."""
    caplog.set_level(logging.INFO)
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    store = Swept([SessionKey("acme", "pump-7"), SessionKey("", "a\nb")], keys(1))
    assert run(sweep(store, metrics)) == 3
    assert run(sweep(store, metrics)) == 0
    assert caplog.messages == [r"3 idle sessions expired: 'acme/pump-7', 'a\nb', 's-0'"]
    assert counted(registry, "expired_total") == 3


def test_a_line_names_some_of_many(caplog: pytest.LogCaptureFixture) -> None:
    """The first ones, and how many more."""
    caplog.set_level(logging.INFO)
    assert run(sweep(Swept(keys(500), keys(500)), Metrics(CollectorRegistry()))) == 1000
    (message,) = caplog.messages
    assert message.startswith("1000 idle sessions expired: 's-0', ")
    assert message.endswith(f"'s-{MAX_LOGGED - 1}' and {1000 - MAX_LOGGED} more")


def test_a_store_that_fails_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    """With a line in the log, whatever went wrong."""
    caplog.set_level(logging.INFO)
    store = Swept(StoreUnavailableError("no store today"), ValueError("a bug"), keys(1))

    async def scenario() -> None:
        task = asyncio.create_task(sweep_forever(store, Metrics(CollectorRegistry()), 0.001))
        while store.found or "1 idle" not in caplog.text:
            await asyncio.sleep(0.001)
        task.cancel()

    run(asyncio.wait_for(scenario(), timeout=10))
    assert "idle sessions could not be swept: no store today" in caplog.messages
    assert "ValueError: a bug" in caplog.text


def test_an_engine_sweeps_while_nobody_asks(sine: Model) -> None:
    """The metrics say what was opened, what expired, and what lives."""
    clock, registry = Clock(), CollectorRegistry()

    async def scenario() -> None:
        limits = {"metrics": Metrics(registry), "sweep_period_s": 0.01}
        async with running(Catalog([sine]), clock=clock, idle_timeout_s=10.0, **limits) as engine:
            for name in ("a", "a", "b"):
                await engine.predict(request(name, rows(1)))
            clock.now = 9.0
            await engine.predict(request("b", rows(1)))
            await engine.show_metrics()
            assert (counted(registry, "opened_total"), counted(registry, "live")) == (2, 2)
            clock.now = 10.0
            while counted(registry, "expired_total") != 1:
                await asyncio.sleep(0.001)
            await engine.show_metrics()
            assert (counted(registry, "opened_total"), counted(registry, "live")) == (2, 1)

    run(asyncio.wait_for(scenario(), timeout=10))
