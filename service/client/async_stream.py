"""An asyncio stream: a `Channel` over a connection that is made again whenever it is cut.

How it works: a task owns the connection. It connects, then receives, while a second task sends what
is due. Nothing awaits between a look at the channel and what follows from it.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

from service.client.async_links import AsyncLink, open_async_link
from service.client.channel import Channel
from service.client.errors import CallError, StreamClosed, TryLater, Unacknowledged, Unreachable
from service.client.lane import Event
from service.client.message import Broken
from service.client.patience import Patience
from service.client.place import Place, refuse_if_busy
from service.client.rows import read_rows


class AsyncAsker(Protocol):
    """What a stream needs of its client."""

    url: str
    headers: dict[str, str]
    patience: Patience

    def session(self, session_id: str) -> "AsyncStreamed": ...


class AsyncStreamed(Protocol):
    """What a stream needs of a session."""

    place: Place

    async def learn_step(self) -> int: ...


Row = tuple[str | AsyncStreamed, Any]  # a session, and x


class AsyncStream:
    """`Stream`, for asyncio: to be used by `async with`.

    One task may read while others send. A task that is cancelled while it sends has sent all or
    nothing of its request.
    """

    def __init__(self, client: AsyncAsker, channel: Channel, transport: str) -> None:
        self._client = client
        self._channel = channel
        self._transport = transport
        self._sessions: dict[str, AsyncStreamed] = {}
        self._news = asyncio.Event()  # another one after each piece of it
        self._task: asyncio.Task[None] | None = None

    # For the caller -----------------------------------------------------------------------------

    async def send(self, session: str | AsyncStreamed, x: Any) -> None:
        """As `Stream.send`."""
        await self._send(session, x, counts_unread=False)

    async def _send(self, session: str | AsyncStreamed, x: Any, counts_unread: bool) -> None:
        rows = read_rows(x)
        place = await self._place_of(session)
        await self._until(lambda: self._channel.has_room(counts_unread))
        self._channel.put(place, rows)
        self._tell()

    async def receive(self) -> Event:
        """As `Stream.receive`; `asyncio.timeout` says how long."""
        await self._until(lambda: self._channel.has_news)
        return self._pop()

    def _pop(self) -> Event:
        self._tell()
        return self._channel.pop()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Answers until all that was sent has one, and was read."""
        while await self._has_more(lambda: True):
            yield self._pop()

    async def feed(self, rows: Iterable[Row] | AsyncIterable[Row]) -> AsyncIterator[Event]:
        """As `Stream.feed`; `rows` is an iterable, or an asynchronous one, read in a task."""
        feeder = asyncio.create_task(self._feed(rows))
        feeder.add_done_callback(lambda _: self._tell())
        try:
            while await self._has_more(feeder.done):
                yield self._pop()
            await feeder  # raises what the rows raised
        finally:
            feeder.cancel()
            with suppress(asyncio.CancelledError, CallError):
                await feeder

    async def _feed(self, rows: Iterable[Row] | AsyncIterable[Row]) -> None:
        if isinstance(rows, AsyncIterable):
            async for session, x in rows:
                await self._send(session, x, counts_unread=True)
        else:
            for session, x in rows:
                await self._send(session, x, counts_unread=True)

    async def _has_more(self, is_fed: Callable[[], bool]) -> bool:
        channel = self._channel
        await self._until(lambda: channel.has_news or (is_fed() and channel.is_idle))
        return channel.has_news

    def forget(self, session_id: str) -> tuple[Unacknowledged, ...]:
        """As `Stream.forget`."""
        self._sessions.pop(session_id, None)
        return self._channel.lanes.forget(session_id)

    @property
    def unacknowledged(self) -> tuple[Unacknowledged, ...]:
        """Every request that has no answer."""
        return self._channel.lanes.unacknowledged

    async def close(self) -> None:
        """End the stream at once; `unacknowledged` says what has no answer."""
        self._end(StreamClosed("the stream is closed"))
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def __aenter__(self) -> "AsyncStream":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                channel = self._channel
                await self._until(lambda: channel.over is not None or channel.is_idle)
                channel.raise_unread()
        finally:
            await self.close()

    async def _place_of(self, session: str | AsyncStreamed) -> Place:
        if isinstance(session, str):
            if session not in self._sessions:
                self._sessions[session] = self._client.session(session)
            session = self._sessions[session]
        if session.place.step is None:
            refuse_if_busy(session.place)
            await session.learn_step()
        return session.place

    # The connection -----------------------------------------------------------------------------

    async def _run(self) -> None:
        client, channel = self._client, self._channel
        try:
            while channel.over is None:
                try:
                    link = await open_async_link(
                        self._transport, client.url, client.headers, client.patience.timeout_s
                    )
                    try:
                        await self._converse(link)
                    finally:
                        await link.close()
                except Broken as broken:
                    await asyncio.sleep(channel.lanes.cut(broken))
                except TryLater as refused:  # of the whole stream
                    await asyncio.sleep(channel.lanes.cut(refused, refused.retry_after_s))
        except CallError as error:
            self._end(error)
        except Exception as error:
            self._end(Unreachable(f"the stream failed: {error!r}"))
            raise

    async def _converse(self, link: AsyncLink) -> None:
        writer = asyncio.create_task(self._write(link))
        try:
            while self._channel.over is None:
                try:
                    async with asyncio.timeout(self._channel.wait_s()):
                        messages = await link.receive()
                except TimeoutError:
                    messages = []
                try:
                    self._channel.take(messages)
                finally:
                    self._tell()
        finally:
            writer.cancel()
            with suppress(asyncio.CancelledError):
                await writer

    async def _write(self, link: AsyncLink) -> None:
        """A link that breaks is noticed by the task that receives."""
        with suppress(Broken):
            while True:
                if bodies := self._channel.due():
                    await link.send(bodies)
                else:
                    await self._news.wait()

    def _end(self, error: CallError) -> None:
        self._channel.end(error)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _until(self, is_true: Callable[[], bool]) -> None:
        while not is_true():
            await self._news.wait()


class AsyncSessionStream:
    """An `AsyncStream` of one session."""

    def __init__(self, stream: AsyncStream, session: AsyncStreamed) -> None:
        self._stream = stream
        self._session = session

    async def send(self, x: Any) -> None:
        """As `Stream.send`."""
        await self._stream.send(self._session, x)

    async def receive(self) -> Event:
        """As `Stream.receive`."""
        return await self._stream.receive()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._stream.__aiter__()

    def feed(self, rows: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Event]:
        """As `Stream.feed`, of x alone."""
        return self._stream.feed(self._named(rows))

    async def _named(
        self, rows: Iterable[Any] | AsyncIterable[Any]
    ) -> AsyncIterator[tuple[AsyncStreamed, Any]]:
        if isinstance(rows, AsyncIterable):
            async for x in rows:
                yield self._session, x
        else:
            for x in rows:
                yield self._session, x

    @property
    def unacknowledged(self) -> tuple[Unacknowledged, ...]:
        """Every request that has no answer."""
        return self._stream.unacknowledged

    async def close(self) -> None:
        """As `Stream.close`."""
        await self._stream.close()

    async def __aenter__(self) -> "AsyncSessionStream":
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        await self._stream.__aexit__(*raised)
