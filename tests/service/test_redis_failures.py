"""What can fail between a service and its Redis: nothing is lost, doubled, or guessed."""

import asyncio
import logging
import math
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.errors import StoreFullError, StoreUnavailableError
from service.session import Record, SessionKey
from service.store import Commit, Outcome
from service.store import redis_link as link
from service.store.redis import RedisStore
from service.store.redis_layout import ALL_BUCKETS, bucket_of, member_of
from service.store.redis_link import Link
from tests.service.redis_servers import CuttingProxy, RedisServer, a_cluster, one_server
from tests.service.test_store import A, B, key, record

pytestmark = pytest.mark.needs("redis-server")

IN_TIME_S = 20  # for what comes back by itself; it takes some milliseconds


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with one_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    """An empty one."""
    shared_server.command("FLUSHALL")
    return shared_server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A test's own, to be killed; every commit is on disk before its reply."""
    with one_server(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "REPLY_TIMEOUT_S", 0.3)


@asynccontextmanager
async def opened(
    url: str, max_sessions: int = 1000, idle_s: float = 60
) -> AsyncIterator[RedisStore]:
    store = RedisStore(Link(url), max_sessions, idle_s)
    try:
        yield store
    finally:
        await store.close()


async def commit(
    store: RedisStore, at: SessionKey, before: Record | None, after: Record | None
) -> Outcome:
    (outcome,) = await store.commit([Commit(at, before, after)])
    return outcome


async def get(store: RedisStore, at: SessionKey) -> Record | None:
    (found,) = await store.get([at])
    return found


async def sooner_or_later(what: Callable[[], Awaitable[object]]) -> None:
    """Until it is not refused any more."""
    async with asyncio.timeout(IN_TIME_S):
        while True:
            try:
                await what()
                return
            except StoreUnavailableError:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("cut", ["request", "reply"])
@pytest.mark.parametrize("after", [record(2), None])
def test_a_commit_that_was_cut_off_is_done_once(
    server: RedisServer, cut: str, after: Record | None
) -> None:
    """Whether the server had seen it or not, the store finds out."""

    async def check() -> None:
        proxy = CuttingProxy(server)
        async with proxy.listening() as url, opened(url) as store:
            await commit(store, A, None, record(1))
            proxy.cut = cut  # type: ignore[assignment]
            assert await commit(store, A, record(1), after) is Outcome.DONE
            assert proxy.cut is None
            assert await get(store, A) == after

    asyncio.run(check())


@pytest.mark.parametrize("cut", ["request", "reply"])
def test_a_cut_commit_that_another_passed_is_not_guessed(server: RedisServer, cut: str) -> None:
    """The other's record stays, also where both computed the very same one."""

    async def check() -> None:
        proxy = CuttingProxy(server)
        async with (
            proxy.listening() as url,
            opened(url) as store,
            opened(server.url) as other,
        ):
            await commit(store, A, None, record(1))

            async def overtake() -> None:
                held = await get(other, A)
                assert held is not None
                assert await commit(other, A, held, record(held.step + 1)) is Outcome.DONE

            proxy.cut, proxy.on_cut = cut, overtake  # type: ignore[assignment]
            with pytest.raises(StoreUnavailableError, match="retry with the same `step`") as error:
                await commit(store, A, record(1), record(2))
            assert error.value.data == {"retry_after_s": 1}
            assert await get(store, A) == record(3 if cut == "reply" else 2)

    asyncio.run(check())


def test_a_read_that_was_cut_off_is_made_again(server: RedisServer) -> None:
    """The caller does not notice."""

    async def check() -> None:
        proxy = CuttingProxy(server)
        async with proxy.listening() as url, opened(url) as store:
            await commit(store, A, None, record(1))
            proxy.cut = "reply"
            assert await get(store, A) == record(1)

    asyncio.run(check())


def test_killed_connections_come_back_by_themselves(server: RedisServer) -> None:
    """Under many calls at a time, whose connections are closed again and again."""

    async def check() -> None:
        async with opened(server.url) as store:
            keys = [key(f"s{number}") for number in range(64)]
            await store.commit([Commit(one, None, record(1)) for one in keys])

            async def read(one: SessionKey) -> None:
                for _ in range(20):
                    await sooner_or_later(lambda: get(store, one))

            async def kill() -> None:
                for _ in range(10):
                    await asyncio.to_thread(server.command, "CLIENT", "KILL", "TYPE", "normal")
                    await asyncio.sleep(0.01)

            await asyncio.gather(kill(), *map(read, keys))
            assert await store.get(keys) == [record(1)] * 64

    asyncio.run(check())


def test_scripts_that_the_server_forgot_are_sent_again(server: RedisServer) -> None:
    """As after its restart."""

    async def check() -> None:
        async with opened(server.url) as store:
            await commit(store, A, None, record(1))
            server.command("SCRIPT", "FLUSH")
            assert await commit(store, A, record(1), record(2)) is Outcome.DONE
            server.command("SCRIPT", "FLUSH")
            assert await get(store, A) == record(2)

    asyncio.run(check())


def test_no_step_is_lost_or_doubled_while_redis_is_killed_and_restarted(
    own_server: RedisServer,
) -> None:
    """Four writers go on from what they find; each acknowledged step counts once."""

    async def write(store: RedisStore, at: SessionKey, until: asyncio.Event) -> int:
        acknowledged = 0
        while not until.is_set():
            try:
                held = await get(store, at)
                step = 0 if held is None else held.step
                # what a client does that retries with `step`: the last one again, or the next
                assert step in (acknowledged, acknowledged + 1)
                if step == acknowledged:
                    assert await commit(store, at, held, record(step + 1)) is Outcome.DONE
                acknowledged += 1
            except StoreUnavailableError:
                await asyncio.sleep(0.01)
        return acknowledged

    async def check() -> None:
        async with opened(own_server.url) as store:
            until = asyncio.Event()
            keys = [key(f"s{number}") for number in range(4)]
            writers = [asyncio.create_task(write(store, one, until)) for one in keys]
            for _ in range(5):
                await asyncio.sleep(0.2)
                await asyncio.to_thread(own_server.kill)
                await asyncio.sleep(0.05)
                await asyncio.to_thread(own_server.start)
            await asyncio.sleep(0.2)
            until.set()
            acknowledged = await asyncio.gather(*writers)
            held = await store.get(keys)
            steps = [one.step for one in held if one is not None]
            assert all(
                step in (count, count + 1) for step, count in zip(steps, acknowledged, strict=True)
            )
            assert min(steps) > 5

    asyncio.run(check())


@pytest.mark.usefixtures("_impatient")
def test_a_frozen_redis_costs_a_timeout_and_comes_back(own_server: RedisServer) -> None:
    """503 in bounded time; what waits while one call tries is refused at once."""

    async def check() -> None:
        async with opened(own_server.url) as store:
            await commit(store, A, None, record(1))
            own_server.send(signal.SIGSTOP)
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(StoreUnavailableError):
                await commit(store, A, record(1), record(2))
            assert loop.time() - began < 10 * link.REPLY_TIMEOUT_S
            trial = asyncio.create_task(get(store, A))
            await asyncio.sleep(0.05)
            began = loop.time()
            for _ in range(100):
                with pytest.raises(StoreUnavailableError):
                    await get(store, A)
            assert loop.time() - began < link.REPLY_TIMEOUT_S
            with pytest.raises(StoreUnavailableError):
                await trial
            own_server.send(signal.SIGCONT)
            await sooner_or_later(lambda: get(store, A))
            held = await get(store, A)
            assert held in (record(1), record(2))  # it was sent, and may have been done
            assert await commit(store, A, held, record(3)) is Outcome.DONE

    asyncio.run(check())


def test_a_redis_that_is_not_there_yet_is_found_when_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the log when it is missed, one when it is back; no password in them."""
    server = RedisServer(tmp_path)

    async def check() -> None:
        url = server.url.replace("://", "://user:secret@")
        store = RedisStore(Link(url), 10, 60)
        for _ in range(3):
            with pytest.raises(StoreUnavailableError):
                await get(store, A)
        server.start()
        server.command("ACL", "SETUSER", "user", "on", ">secret", "allkeys", "+@all")
        await sooner_or_later(lambda: get(store, A))
        await store.close()

    with caplog.at_level(logging.INFO, "carousel.store"):
        try:
            asyncio.run(check())
        finally:
            server.stop()
    lines = [one.getMessage() for one in caplog.records]
    where = f"Redis at redis://127.0.0.1:{server.port}/0"
    assert [line for line in lines if "requests get 503 until it is there" in line] == [lines[0]]
    assert lines[0].startswith(f"{where}: ")
    assert lines[-1].startswith(f"{where} is back after ")
    assert "secret" not in caplog.text


def test_a_full_memory_refuses_and_changes_nothing(server: RedisServer) -> None:
    """StoreFullError; what is held is read, and there is room again when there is memory."""

    async def check() -> None:
        async with opened(server.url) as store:
            await commit(store, A, None, record(1))
            server.command("CONFIG", "SET", "maxmemory", "1")
            try:
                with pytest.raises(StoreFullError, match="no space left"):
                    await commit(store, B, None, record(1))
                with pytest.raises(StoreFullError):
                    await commit(store, A, record(1), record(2))
                assert await store.get([A, B]) == [record(1), None]
                assert await store.count() == 1
            finally:
                server.command("CONFIG", "SET", "maxmemory", "0")
            assert await commit(store, A, record(1), record(2)) is Outcome.DONE

    asyncio.run(check())


def test_a_replica_is_refused_until_it_is_a_master_again(server: RedisServer) -> None:
    """READONLY, as after a failover: 503, never a wrong answer."""

    async def check() -> None:
        async with opened(server.url) as store:
            await commit(store, A, None, record(1))
            server.command("REPLICAOF", "127.0.0.1", "1")
            with pytest.raises(StoreUnavailableError):
                await commit(store, A, record(1), record(2))
            server.command("REPLICAOF", "NO", "ONE")
            assert await commit(store, A, record(1), record(2)) is Outcome.DONE

    asyncio.run(check())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "keeps nothing on disk: its restart loses all sessions; set `appendonly yes`"),
        ({"save": "3600 1"}, "keeps snapshots only: its restart takes sessions back to the last"),
        (
            {"appendonly": "yes"},
            "has `appendfsync everysec`: a power cut there loses the last two seconds",
        ),
        (
            {"maxmemory": "1gb", "maxmemory-policy": "allkeys-lru"},
            "has maxmemory-policy allkeys-lru, which drops live sessions when memory is short",
        ),
    ],
)
def test_settings_that_lose_sessions_are_said_once(
    server: RedisServer, settings: dict[str, str], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log, at the first connect."""

    async def check() -> None:
        async with opened(server.url) as store:
            await get(store, A)
            server.command("CLIENT", "KILL", "TYPE", "normal")
            await get(store, A)

    plain = {"save": "", "appendonly": "no", "maxmemory": "0", "maxmemory-policy": "noeviction"}
    for name, value in settings.items():
        server.command("CONFIG", "SET", name, value)
    try:
        asyncio.run(check())
    finally:
        for name, value in plain.items():
            server.command("CONFIG", "SET", name, value)
    assert sum(line in one.getMessage() for one in caplog.records) == 1


def test_power_is_not_promised_where_redis_does_not_keep_it(
    server: RedisServer, own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused until the server writes to disk before it answers."""

    async def check() -> None:
        for url, keeps in ((server.url, False), (own_server.url, True)):
            store = RedisStore(Link(url, must_survive_power_cuts=True), 10, 60)
            if keeps:
                assert await commit(store, A, None, record(1)) is Outcome.DONE
            else:
                with pytest.raises(StoreUnavailableError):
                    await commit(store, A, None, record(1))
            await store.close()

    asyncio.run(check())
    assert "CAROUSEL_DURABILITY=power needs `appendonly yes` and `appendfsync" in caplog.text


def test_what_expires_is_told_to_one_of_all_who_sweep(server: RedisServer) -> None:
    """Also what began again before anybody swept."""

    async def check() -> None:
        async with opened(server.url, idle_s=0.3) as one, opened(server.url) as other:
            keys = [key(f"s{number}", "tenant") for number in range(200)]
            await one.commit([Commit(at, None, record(1)) for at in keys])
            await asyncio.sleep(0.4)
            assert await other.count("tenant") == 0
            assert await commit(other, keys[0], None, record(1, birth=2)) is Outcome.DONE
            swept = await asyncio.gather(*(store.sweep() for store in [one, other] * 5))
            told = [at for some in swept for at in some]
            assert sorted(at.session_id for at in told) == sorted(at.session_id for at in keys)
            assert await one.count() == await one.count("tenant") == 1

    asyncio.run(check())


def test_a_session_never_outlives_its_keys(server: RedisServer) -> None:
    """What is dropped and swept leaves nothing in Redis."""

    async def check() -> None:
        async with opened(server.url, idle_s=0.3) as store:
            keys = [key(f"s{number}", f"t{number % 3}") for number in range(50)]
            await store.commit([Commit(at, None, record(1)) for at in keys])
            await store.commit([Commit(at, record(1), None) for at in keys[:25]])
            await asyncio.sleep(0.4)
            assert len(await store.sweep()) == 25
            assert await store.room_in_s() == math.inf

    asyncio.run(check())
    assert server.command("DBSIZE") == "0"


def test_processes_that_share_a_limit_pass_it_by_a_batch_at_most(server: RedisServer) -> None:
    """Near the limit each counts before it begins any."""

    async def check() -> None:
        async with opened(server.url, 100) as one, opened(server.url, 100) as other:

            async def fill(store: RedisStore, name: str) -> None:
                for number in range(0, 200, 4):
                    batch = [key(f"{name}{number + at}") for at in range(4)]
                    await store.commit([Commit(at, None, record(1)) for at in batch])

            await asyncio.gather(fill(one, "a"), fill(other, "b"))
            assert 100 <= await one.count() <= 104
            refused = await one.commit([Commit(A, None, record(1)), Commit(B, record(1), None)])
            assert refused == [Outcome.FULL, Outcome.LOST]

    asyncio.run(check())


def test_a_cluster_lives_through_a_move_and_a_crash(tmp_path: Path) -> None:
    """A bucket that moves to another node takes its sessions along; a node's end is a 503."""

    async def move(servers: list[RedisServer], at: SessionKey) -> None:
        bucket = ALL_BUCKETS[bucket_of(member_of(at))]
        slot = str(bucket.slot)
        ids = [server.command("CLUSTER", "MYID").strip() for server in servers]
        owner = bucket.slot * len(servers) // 16_384
        to = (owner + 1) % len(servers)
        servers[to].command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[owner])
        servers[owner].command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to])
        names = [name.decode() for name in bucket.keys]
        where = ["127.0.0.1", str(servers[to].port), "", "0", "5000", "KEYS", *names]
        assert servers[owner].command("MIGRATE", *where) == "OK"
        for server in (servers[to], servers[owner]):
            assert server.command("CLUSTER", "SETSLOT", slot, "NODE", ids[to]) == "OK"

    async def check(servers: list[RedisServer]) -> None:
        async with opened(servers[0].url) as store:
            keys = [key(f"s{number}") for number in range(64)]
            assert set(await store.commit([Commit(at, None, record(1)) for at in keys])) == {
                Outcome.DONE
            }
            await asyncio.to_thread(lambda: asyncio.run(move(servers, keys[0])))
            commits = [Commit(at, record(1), record(2)) for at in keys]
            assert set(await store.commit(commits)) == {Outcome.DONE}
            assert await store.get(keys) == [record(2)] * 64
            servers[2].stop()
            with pytest.raises(StoreUnavailableError):
                await store.get(keys)
            servers[2].start()
            await sooner_or_later(lambda: store.get(keys))
            assert await store.count() > 0

    with a_cluster(tmp_path) as servers:
        asyncio.run(check(servers))


def test_every_bucket_is_one_slot_and_the_nodes_get_as_many() -> None:
    """Of a cluster of 2, 3, 4, 8 or 16 nodes, to within one."""
    from redis.crc import key_slot

    for bucket in ALL_BUCKETS:
        assert {key_slot(name) for name in bucket.keys} == {bucket.slot}
    for nodes in (2, 3, 4, 8, 16):
        owned = [0] * nodes
        for bucket in ALL_BUCKETS:
            owned[bucket.slot * nodes // 16_384] += 1
        assert max(owned) - min(owned) <= 1


@pytest.mark.parametrize("where", ["_run_on_one", "Link._check"])
def test_a_connection_that_uvloop_finds_closed_is_a_lost_one(
    server: RedisServer, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says RuntimeError; any other one is a bug, and stays what it is."""
    said = ["unable to perform operation on <TCPTransport>; the handler is closed", "another"]

    async def broken(*arguments: object) -> None:
        raise RuntimeError(said[0])

    async def scenario() -> None:
        async with opened(server.url) as store:
            with monkeypatch.context() as patched:
                patched.setattr(f"service.store.redis_link.{where}", broken)
                with pytest.raises(StoreUnavailableError):
                    await store.get([A])
            assert await commit(store, A, None, record(1)) is Outcome.DONE
            said.pop(0)
            with monkeypatch.context() as patched:
                patched.setattr("service.store.redis_link._run_on_one", broken)
                with pytest.raises(RuntimeError, match="another"):
                    await store.get([A])

    asyncio.run(scenario())
