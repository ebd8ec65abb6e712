"""The way to Redis: connect, run a script over buckets, and say what went wrong.

Rules
- Nothing is sent twice here. A call whose reply was lost raises `UnansweredError`: it may have
  been done, or not, and the store knows what that means for it. Any other error came before the
  script began, and nothing was done.
- One server gets a call as one EVALSHA; a cluster as one for each bucket, in one pipeline to each
  node. That it is a cluster is found by asking it, or said by the scheme `redis+cluster`.
- It connects when it is first used, and again whenever the connection is gone; no restart is
  needed. While Redis is away one call at a time tries, and the others fail at once.
- What the server's settings mean for the sessions is read at every connect (`_check`) and logged.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    NoScriptError,
    OutOfMemoryError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as NotConnectedError

from service.errors import CapacityError, StoreFullError, StoreUnavailableError
from service.redis_url import CLUSTER, without_password
from service.store.redis_layout import Part, Script

CONNECT_TIMEOUT_S = 2.0
REPLY_TIMEOUT_S = 2.0  # a batch takes a millisecond; a server that forks or fsyncs, some hundred
MAX_CALLS = 16  # at a time, each on a connection of its own: the engine needs one, look-ups a few
RETRY_AFTER_S = 1  # a restart of Redis takes about that long
FULL_RETRY_AFTER_S = 30  # memory is freed by an operator, or as sessions expire

logger = logging.getLogger("carousel.store")


class UnansweredError(Exception):
    """The call may have been done, or not."""


class _Connected:
    """A client and the calls on it: one that is over is closed when the last of them has ended."""

    def __init__(self, client: redis.Redis | redis.RedisCluster) -> None:
        self.client = client
        self._is_over = False
        self._calls = 0

    async def __aenter__(self) -> redis.Redis | redis.RedisCluster:
        self._calls += 1
        return self.client

    async def __aexit__(self, *error: object) -> None:
        self._calls -= 1
        await self._close_if_unused()

    async def retire(self) -> None:
        self._is_over = True
        await self._close_if_unused()

    async def _close_if_unused(self) -> None:
        if self._is_over and self._calls == 0:
            await _close(self.client)


class Link:
    """To one Redis or Valkey, or to a cluster."""

    def __init__(self, url: str, must_survive_power_cuts: bool = False) -> None:
        self._where = without_password(url)
        self._url = url.replace(f"{CLUSTER}://", "://", 1)
        self._cluster_is_said = self._url != url
        self._must_survive_power_cuts = must_survive_power_cuts
        self._connected: _Connected | None = None
        self._connecting = asyncio.Lock()
        self._calls = asyncio.Semaphore(MAX_CALLS)
        self._away_since: float | None = None
        self._is_tried = False  # by a call that runs now, while Redis is away
        self._told: set[str] = set()  # warnings that are in the log already

    async def run(
        self, script: Script, common: Sequence[Any], parts: Sequence[Part], insist: bool = False
    ) -> list[list[Any]]:
        """The script's reply for each part.

        Args:
            insist: also while Redis is away and another call tries.
        Raises:
            UnansweredError: it may have been done, or not, each part for itself.
            StoreUnavailableError, StoreFullError: nothing was done on one server; on a cluster,
                nothing on the nodes that refused.
        """
        async with self._calls:
            is_trial = self._away_since is not None
            if is_trial and self._is_tried and not insist:
                raise self.unavailable()
            self._is_tried = self._is_tried or is_trial
            try:
                replies = await self._run(script, common, parts)
            finally:
                if is_trial:
                    self._is_tried = False
        self._note_back()
        return replies

    async def _run(
        self, script: Script, common: Sequence[Any], parts: Sequence[Part]
    ) -> list[list[Any]]:
        try:
            with _closed_is_lost():
                connected = await self._connect()
        except (RedisError, RedisClusterException, OSError) as error:
            raise self._refusal(error) from error
        try:
            with _closed_is_lost():
                async with connected as client:
                    if isinstance(client, redis.Redis):
                        return await _run_on_one(client, script, common, parts)
                    return await _run_on_cluster(client, script, common, parts)
        except (RedisError, RedisClusterException, OSError) as error:
            refusal = self._refusal(error)
            if not isinstance(refusal, StoreFullError):
                await self._retire(connected)
            if _is_unanswered(error):
                raise UnansweredError from error
            raise refusal from error

    async def close(self) -> None:
        if self._connected is not None:
            await _close(self._connected.client)
            self._connected = None

    # Connecting ---------------------------------------------------------------------------------

    async def _connect(self) -> "_Connected":
        if self._connected is not None:
            return self._connected
        async with self._connecting:
            if self._connected is None:
                client = await self._open()
                try:
                    await self._check(client)
                except BaseException:
                    await _close(client)
                    raise
                self._connected = _Connected(client)
                kind = "a cluster" if isinstance(client, redis.RedisCluster) else "one server"
                logger.info("sessions are kept in Redis at %s, %s", self._where, kind)
        return self._connected

    async def _open(self) -> "redis.Redis | redis.RedisCluster":
        options: dict[str, Any] = {
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_timeout": REPLY_TIMEOUT_S,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),  # see the rules
        }
        if not self._cluster_is_said:
            one = redis.Redis.from_url(self._url, **options)
            try:
                info = await one.info("cluster")
            except BaseException:
                await _close(one)
                raise
            if not info.get("cluster_enabled"):
                return one
            await _close(one)
        cluster = redis.RedisCluster.from_url(self._url, **options)
        try:
            await cluster.initialize()
        except BaseException:
            await _close(cluster)
            raise
        return cluster

    async def _check(self, client: "redis.Redis | redis.RedisCluster") -> None:
        """Log what the server's settings mean for the sessions, once each."""
        on: dict[str, Any] = {}
        if isinstance(client, redis.RedisCluster):
            on["target_nodes"] = redis.RedisCluster.PRIMARIES
        try:
            found = await client.execute_command("CONFIG GET", "*", **on)
        except ResponseError as error:  # many who rent Redis out forbid it
            self._warn(f"does not show its settings ({error}); see to its persistence yourself")
            return
        for settings in found.values() if on else [found]:
            self._check_one({_text(name): _text(value) for name, value in settings.items()})

    def _check_one(self, settings: dict[str, str]) -> None:
        has_file, syncs = settings.get("appendonly") == "yes", settings.get("appendfsync", "")
        if not has_file and not settings.get("save"):
            self._warn(
                "keeps nothing on disk: its restart loses all sessions; set `appendonly yes`"
            )
        elif not has_file:
            self._warn(
                "keeps snapshots only: its restart takes sessions back to the last one; set "
                "`appendonly yes`"
            )
        elif syncs != "always":
            lost = "two seconds" if syncs == "everysec" else "half minute"
            self._warn(f"has `appendfsync {syncs}`: a power cut there loses the last {lost}")
        if settings.get("maxmemory", "0") != "0" and settings["maxmemory-policy"] != "noeviction":
            self._warn(
                f"has maxmemory-policy {settings['maxmemory-policy']}, which drops live sessions "
                "when memory is short; set `maxmemory-policy noeviction`"
            )
        if self._must_survive_power_cuts and not (has_file and syncs == "always"):
            raise NotConnectedError(
                "CAROUSEL_DURABILITY=power needs `appendonly yes` and `appendfsync always` there, "
                f"it has `{settings.get('appendonly')}` and `{syncs}`"
            )

    def _warn(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            logger.warning("Redis at %s %s", self._where, what)

    async def _retire(self, connected: _Connected) -> None:
        """So that the next call connects anew, and finds a cluster's nodes anew."""
        if self._connected is connected:
            self._connected = None
        await connected.retire()

    # What went wrong ----------------------------------------------------------------------------

    def _refusal(self, error: Exception) -> CapacityError:
        if isinstance(error, OutOfMemoryError) or "No space left" in str(error):
            logger.error("Redis at %s is full: %s", self._where, error)
            return StoreFullError(
                "the store of the sessions has no space left; nothing was changed, retry in "
                f"{FULL_RETRY_AFTER_S} s",
                retry_after_s=FULL_RETRY_AFTER_S,
            )
        self._note_away(str(error))
        return self.unavailable()

    def unavailable(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            "the store of the sessions cannot be reached; retry with the same `step` in "
            f"{RETRY_AFTER_S} s",
            retry_after_s=RETRY_AFTER_S,
        )

    def _note_away(self, why: str) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            logger.error("Redis at %s: %s; requests get 503 until it is there", self._where, why)

    def _note_back(self) -> None:
        if self._away_since is not None:
            away_s = time.monotonic() - self._away_since
            logger.warning("Redis at %s is back after %.1f s", self._where, away_s)
            self._away_since = None


async def _close(client: redis.Redis | redis.RedisCluster) -> None:
    if isinstance(client, redis.RedisCluster):
        # Its aclose() does nothing after a connection has failed, nor before it is initialised.
        await client.nodes_manager.aclose()
        await client.nodes_manager.aclose("startup_nodes")
    await client.aclose()


@contextmanager
def _closed_is_lost() -> Iterator[None]:
    """uvloop says RuntimeError where a connection was closed while it was written to."""
    try:
        yield
    except RuntimeError as error:
        if "handler is closed" not in str(error):
            raise
        raise NotConnectedError(str(error)) from error


def _is_unanswered(error: Exception) -> bool:
    """Whether the call may have been done all the same."""
    lost = isinstance(error, NotConnectedError | redis.TimeoutError | OSError)
    return lost and not isinstance(error, BusyLoadingError)


async def _run_on_one(
    client: redis.Redis, script: Script, common: Sequence[Any], parts: Sequence[Part]
) -> list[list[Any]]:
    execute: Any = client.execute_command  # it has no types
    rest = _rest(script, common, parts)
    try:
        replies = await execute("EVALSHA", script.sha, *rest)
    except NoScriptError:  # the server was restarted, or never saw it
        replies = await execute("EVAL", script.source, *rest)
    return list(replies)


async def _run_on_cluster(
    client: redis.RedisCluster, script: Script, common: Sequence[Any], parts: Sequence[Part]
) -> list[list[Any]]:
    calls = [_rest(script, common, [part]) for part in parts]
    replies = await _pipeline(client, [["EVALSHA", script.sha, *call] for call in calls])
    strange = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
    if strange:
        read = await _pipeline(client, [["EVAL", script.source, *calls[at]] for at in strange])
        for at, reply in zip(strange, read, strict=True):
            replies[at] = reply
    errors = [reply for reply in replies if isinstance(reply, Exception)]
    if errors:
        raise next(filter(_is_unanswered, errors), errors[0])
    return [reply for (reply,) in replies]


async def _pipeline(client: redis.RedisCluster, commands: Sequence[Sequence[Any]]) -> list[Any]:
    """For each command its reply, or the exception that it met."""
    pipeline = client.pipeline()
    for command in commands:
        pipeline.execute_command(*command)
    return await pipeline.execute(raise_on_error=False)


def _rest(script: Script, common: Sequence[Any], parts: Sequence[Part]) -> list[Any]:
    """What follows the script in a call: keys, common arguments, those of each part."""
    rest: list[Any] = [script.keys * len(parts)]
    for part in parts:
        rest += part.bucket.keys[: script.keys]
    rest += common
    for part in parts:
        rest.append(len(part.arguments))
        rest += part.arguments
    return rest


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
