"""A blocking stream: a `Channel` over a connection that is made again whenever it is cut.

How it works: a thread owns the connection. It connects, receives, and tells the channel what came;
what is due is sent by whichever thread made it due. One lock is over all of it.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from service.client.channel import Channel
from service.client.errors import CallError, StreamClosed, TryLater, Unacknowledged, Unreachable
from service.client.lane import Event
from service.client.message import Broken
from service.client.patience import Patience
from service.client.place import Place, refuse_if_busy
from service.client.rows import read_rows
from service.client.sync_links import Link, open_link


class Asker(Protocol):
    """What a stream needs of its client."""

    url: str
    headers: dict[str, str]
    patience: Patience

    def session(self, session_id: str) -> "Streamed": ...


class Streamed(Protocol):
    """What a stream needs of a session."""

    place: Place

    def learn_step(self) -> int: ...


class Stream:
    """Rows of many sessions over one connection, each answered as soon as it is done.

        with client.stream() as stream:
            stream.send("pump-7", [[0.1]])
            stream.send("pump-8", [[0.2]])
            for reply in stream:
                print(reply.session_id, reply.step, reply.y)

    - Of one session the answers come in order; sessions do not wait for each other.
    - `send` waits while `buffer` requests have no answer. Answers that nobody reads are kept.
    - A connection that is cut is made again, and what has no answer is sent again: each row is
      run once. `Unreachable` is raised when there was no answer for `retry_for_s`.
    - A request that is refused is raised where answers are read, and stops its session; the others
      go on. With `skip_refused` it is given out as `NotRun` instead, and its session goes on.
    - With `in_flight` above 1 an answer may be `Lost` in a cut: the rows were run, what they gave
      is not known.
    - Leaving the block waits until all is answered, and raises the first error that nobody read.
    - One thread may read while others send.
    """

    def __init__(self, client: Asker, channel: Channel, transport: str) -> None:
        self._client = client
        self._channel = channel
        self._transport = transport
        self._sessions: dict[str, Streamed] = {}
        self._changed = threading.Condition()  # over the channel and the link
        self._link: Link | None = None
        self._thread = threading.Thread(target=self._run, name="carousel-stream", daemon=True)
        self._thread.start()

    # For the caller -----------------------------------------------------------------------------

    def send(self, session: "str | Streamed", x: Any) -> None:
        """One request, `x` (T, ...); waits for room.

        Args:
            session: its id, or what `Client.session` gave.
        Raises:
            BadInput: x is no rows of finite numbers, and no text; nothing was sent.
            CallError: the session was stopped, or the stream is over.
        """
        self.put(session, x, counts_unread=False)

    def put(self, session: "str | Streamed", x: Any, counts_unread: bool) -> None:
        """`send`; with `counts_unread` it waits for who reads, too."""
        rows = read_rows(x)
        place = self._place_of(session)
        with self._changed:
            self._changed.wait_for(lambda: self._channel.has_room(counts_unread))
            self._channel.put(place, rows)
            self._send_due()

    def receive(self, timeout_s: float | None = None) -> Event:
        """The next answer.

        Raises:
            CallError: a request was refused, or the stream is over.
            TimeoutError: there was none in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._channel.has_news, timeout_s):
                raise TimeoutError(f"no answer in {timeout_s} s")
            self._changed.notify_all()
            return self._channel.pop()

    def __iter__(self) -> Iterator[Event]:
        """Answers until all that was sent has one, and was read."""
        return self._answers(lambda: True)

    def _answers(self, is_fed: Callable[[], bool]) -> Iterator[Event]:
        channel = self._channel
        while True:
            with self._changed:
                self._changed.wait_for(lambda: channel.has_news or (is_fed() and channel.is_idle))
                if not channel.has_news:
                    return
                self._changed.notify_all()
                event = channel.pop()
            yield event

    def feed(self, rows: "Iterable[tuple[str | Streamed, Any]]") -> Iterator[Event]:
        """Send what `rows` gives, (session, x) each, and give out the answers as they come.

        `rows` is read in a thread of its own, so that it may wait for what it reads from; no
        further than `buffer` requests ahead of the answers that were read.
        """
        feeder = _Feeder(self, rows)
        yield from self._answers(lambda: feeder.is_done)
        if feeder.error is not None:
            raise feeder.error

    def forget(self, session_id: str) -> tuple[Unacknowledged, ...]:
        """Let go of a session that was stopped, or has nothing under way.

        It may be restarted then, and sent to again.

        Returns:
            Its requests that have no answer.
        """
        with self._changed:
            self._sessions.pop(session_id, None)
            return self._channel.lanes.forget(session_id)

    @property
    def unacknowledged(self) -> tuple[Unacknowledged, ...]:
        """Every request that has no answer."""
        with self._changed:
            return self._channel.lanes.unacknowledged

    def close(self) -> None:
        """End the stream at once; `unacknowledged` says what has no answer."""
        self._end(StreamClosed("the stream is closed"))
        self._thread.join()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        channel = self._channel
        try:
            if kind is None:
                with self._changed:
                    self._changed.wait_for(lambda: channel.over is not None or channel.is_idle)
                    channel.raise_unread()
        finally:
            self.close()

    def wake(self) -> None:
        """Have those who wait look again."""
        with self._changed:
            self._changed.notify_all()

    def _place_of(self, session: "str | Streamed") -> Place:
        if isinstance(session, str):
            with self._changed:
                if session not in self._sessions:
                    self._sessions[session] = self._client.session(session)
                session = self._sessions[session]
        if session.place.step is None:
            refuse_if_busy(session.place)
            session.learn_step()
        return session.place

    # The connection -----------------------------------------------------------------------------

    def _run(self) -> None:
        client, channel = self._client, self._channel
        try:
            while channel.over is None:
                try:
                    link = open_link(
                        self._transport, client.url, client.headers, client.patience.timeout_s
                    )
                    try:
                        self._converse(link)
                    finally:
                        self._link = None
                        link.close()
                except Broken as broken:
                    self._pause(broken, None)
                except TryLater as refused:  # of the whole stream
                    self._pause(refused, refused.retry_after_s)
        except CallError as error:
            self._end(error)
        except Exception as error:
            self._end(Unreachable(f"the stream failed: {error!r}"))
            raise

    def _converse(self, link: Link) -> None:
        channel = self._channel
        with self._changed:
            self._link = link
            self._send_due()
        while channel.over is None:
            with self._changed:
                wait_s = channel.wait_s()
            messages = link.receive(wait_s)
            with self._changed:
                try:
                    channel.take(messages)
                finally:
                    self._changed.notify_all()
                self._send_due()

    def _send_due(self) -> None:
        """With the lock held. A link that breaks is noticed by the thread that receives."""
        if self._link is None:
            return
        bodies = self._channel.due()
        if bodies:
            try:
                self._link.send(bodies)
            except Broken:
                self._link = None

    def _pause(self, cause: Exception, retry_after_s: float | None) -> None:
        channel = self._channel
        with self._changed:
            pause_s = channel.lanes.cut(cause, retry_after_s)
            self._changed.wait_for(lambda: channel.over is not None, pause_s)

    def _end(self, error: CallError) -> None:
        with self._changed:
            self._channel.end(error)
            link, self._link = self._link, None
            self._changed.notify_all()
        if link is not None:
            link.close()


class _Feeder:
    """Sends what an iterable gives, in a thread of its own."""

    def __init__(self, stream: Stream, rows: "Iterable[tuple[str | Streamed, Any]]") -> None:
        self.is_done = False
        self.error: Exception | None = None  # of the iterable, or of a row in it
        self._stream = stream
        self._rows = rows
        threading.Thread(target=self._run, name="carousel-feed", daemon=True).start()

    def _run(self) -> None:
        try:
            for session, x in self._rows:
                self._stream.put(session, x, counts_unread=True)
        except Exception as error:
            self.error = error
        finally:
            self.is_done = True
            self._stream.wake()


class SessionStream:
    """A `Stream` of one session."""

    def __init__(self, stream: Stream, session: Streamed) -> None:
        self._stream = stream
        self._session = session

    def send(self, x: Any) -> None:
        """As `Stream.send`."""
        self._stream.send(self._session, x)

    def receive(self, timeout_s: float | None = None) -> Event:
        """As `Stream.receive`."""
        return self._stream.receive(timeout_s)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._stream)

    def feed(self, rows: Iterable[Any]) -> Iterator[Event]:
        """As `Stream.feed`, of x alone."""
        return self._stream.feed((self._session, x) for x in rows)

    @property
    def unacknowledged(self) -> tuple[Unacknowledged, ...]:
        return self._stream.unacknowledged

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> "SessionStream":
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stream.__exit__(*raised)
