"""Sessions in Redis: the contract on one server and on a cluster of three, and what can fail."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from service.store.redis import RedisStore
from service.store.redis_link import Link
from tests.service import test_store as contract
from tests.service.redis_servers import RedisServer, a_cluster, one_server
from tests.service.test_store import Clock, StoreContract, T

pytestmark = pytest.mark.needs("redis-server")

# Time really passes here: long enough that a busy machine does not let a session expire early.
IDLE_TIMEOUT_S = 2.0


class RedisContract(StoreContract):
    """The contract, by the server's clock, on one event loop, as a service has it."""

    @pytest.fixture(autouse=True)
    def _real_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contract, "IDLE_TIMEOUT_S", IDLE_TIMEOUT_S)

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def make(self, clock: Clock, url: str) -> Iterator[Callable[[], RedisStore]]:
        made: list[RedisStore] = []

        def make() -> RedisStore:
            store = RedisStore(Link(url), contract.MAX_SESSIONS, IDLE_TIMEOUT_S)
            made.append(store)
            return store

        self.loop = asyncio.new_event_loop()
        yield make
        for store in made:
            self.run(store.close())
        self.loop.close()

    def wait(self, clock: Clock, seconds: float) -> None:
        time.sleep(seconds)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with one_server(tmp_path_factory.mktemp("redis"), "--appendonly", "yes") as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    with a_cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


class TestOneServer(RedisContract):
    @pytest.fixture
    def url(self, server: RedisServer) -> str:
        server.command("FLUSHALL")
        return server.url


class TestCluster(RedisContract):
    """Found to be one by asking it."""

    @pytest.fixture
    def url(self, cluster: list[RedisServer]) -> str:
        for node in cluster:
            node.command("FLUSHALL")
        return cluster[0].url
