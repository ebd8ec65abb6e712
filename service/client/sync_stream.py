"""A blocking stream: `Lanes` over a connection that is made again whenever it is cut.

How it works: a thread owns the connection. It connects, receives, and tells `Lanes` what came;
what is due is sent by whichever thread made it due. One lock is over `Lanes` and the replies.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from service.client.errors import (
    CallError,
    Draining,
    Refused,
    StreamClosed,
    TryLater,
    Unacknowledged,
    Unreachable,
)
from service.client.lanes import Event, Lanes
from service.client.message import Broken
from service.client.patience import Patience
from service.client.place import Place, refuse_if_busy
from service.client.rows import read_rows
from service.client.sync_links import Link, open_link

TICK_S = 0.25  # at most: what another thread sent may be overdue earlier than was known


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

    def __init__(
        self, client: Asker, transport: str, in_flight: int, buffer: int, skip_refused: bool
    ) -> None:
        """
        Args:
            transport: "ws" or "ndjson".
            in_flight: requests of one session under way at a time.
            buffer: requests without an answer.
        """
        if transport not in ("ws", "ndjson"):
            raise ValueError(f"`transport` is {transport!r}, expected 'ws' or 'ndjson'")
        if buffer < 1:
            raise ValueError(f"`buffer` is {buffer}, expected 1 or more")
        self._client = client
        self._transport = transport
        self._buffer = buffer
        self._lanes = Lanes(client.patience, in_flight, skip_refused)
        self._sessions: dict[str, Streamed] = {}
        self._replies: deque[Event | CallError] = deque()
        self._changed = threading.Condition()
        self._link: Link | None = None
        self._over: CallError | None = None  # why nothing more will come
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
        self._send(session, x, reading=True)

    def _send(self, session: "str | Streamed", x: Any, reading: bool) -> None:
        rows = read_rows(x)
        place = self._place_of(session)
        with self._changed:
            while self._over is None and self._is_full(reading):
                self._changed.wait()
            if self._over is not None:
                raise self._over
            self._lanes.put(place, rows)
            self._send_due()

    def _is_full(self, reading: bool) -> bool:
        unread = 0 if reading else len(self._replies)
        return self._lanes.unanswered + unread >= self._buffer

    def receive(self, timeout_s: float | None = None) -> Event:
        """The next answer.

        Raises:
            CallError: a request was refused, or the stream is over.
            TimeoutError: there was none in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._replies or self._over, timeout_s):
                raise TimeoutError(f"no answer in {timeout_s} s")
            if self._replies:
                return self._pop()
            raise self._over or StreamClosed("the stream is closed")

    def _pop(self) -> Event:
        event = self._replies.popleft()
        self._changed.notify_all()
        if isinstance(event, CallError):
            raise event
        return event

    def __iter__(self) -> Iterator[Event]:
        """Answers until all that was sent has one, and was read."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._replies or self._over or self._is_idle)
                if not self._replies and self._over is None:
                    return
            yield self.receive()

    @property
    def _is_idle(self) -> bool:
        return self._lanes.unanswered == 0

    def feed(self, rows: "Iterable[tuple[str | Streamed, Any]]") -> Iterator[Event]:
        """Send what `rows` gives, (session, x) each, and give out the answers as they come.

        `rows` is read in a thread of its own, so that it may wait for what it reads from; no
        further than `buffer` requests ahead of the answers that were read.
        """
        feeder = _Feeder(self, rows)
        feeder.start()
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._replies or self._over or (feeder.is_done and self._is_idle)
                )
                if not self._replies and self._over is None:
                    break
            yield self.receive()
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
            return self._lanes.forget(session_id)

    @property
    def unacknowledged(self) -> tuple[Unacknowledged, ...]:
        """Every request that has no answer."""
        with self._changed:
            return self._lanes.unacknowledged

    def close(self) -> None:
        """End the stream at once; `unacknowledged` says what has no answer."""
        self._end(StreamClosed("the stream is closed"))
        self._thread.join()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                with self._changed:
                    self._changed.wait_for(lambda: self._over or self._is_idle)
                    for unread in self._replies:
                        if isinstance(unread, CallError):
                            raise unread
                    if self._over is not None and self._lanes.unanswered:
                        raise self._over
        finally:
            self.close()

    def _place_of(self, session: "str | Streamed") -> Place:
        if isinstance(session, str):
            if session not in self._sessions:
                self._sessions[session] = self._client.session(session)
            session = self._sessions[session]
        if session.place.step is None:
            refuse_if_busy(session.place)
            session.learn_step()
        return session.place

    # The connection -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._over is None:
                try:
                    link = self._connect()
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

    def _connect(self) -> Link:
        client = self._client
        return open_link(self._transport, client.url, client.headers, client.patience.timeout_s)

    def _converse(self, link: Link) -> None:
        with self._changed:
            self._link = link
            self._send_due()
        while self._over is None:
            with self._changed:
                wake_in_s = self._lanes.wake_in_s()
            messages = link.receive(TICK_S if wake_in_s is None else min(wake_in_s, TICK_S))
            with self._changed:
                for message in messages:
                    self._take(message.body, message.tag)
                if self._lanes.is_overdue:
                    raise Broken(f"no answer in {self._client.patience.timeout_s} s")
                self._send_due()
                self._changed.notify_all()

    def _take(self, body: Mapping[str, Any], tag: int | None) -> None:
        try:
            self._replies += self._lanes.answered(body, tag)
        except Draining:
            raise
        except Refused as error:
            self._replies.append(error)

    def _send_due(self) -> None:
        """With the lock held. A link that breaks is noticed by the thread that receives."""
        if self._link is None:
            return
        bodies = [body for _, body in self._lanes.due()]
        if bodies:
            try:
                self._link.send(bodies)
            except Broken:
                self._link = None

    def _pause(self, cause: Exception, retry_after_s: float | None) -> None:
        with self._changed:
            until = time.monotonic() + self._lanes.cut(cause, retry_after_s)
            while self._over is None and (left_s := until - time.monotonic()) > 0:
                self._changed.wait(left_s)

    def _end(self, error: CallError) -> None:
        with self._changed:
            if self._over is None:
                self._over = error
                error.unacknowledged = error.unacknowledged or self._lanes.unacknowledged
                self._lanes.let_go()
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
        self._thread = threading.Thread(target=self._run, name="carousel-feed", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            for session, x in self._rows:
                self._stream._send(session, x, reading=False)
        except Exception as error:
            self.error = error
        finally:
            self.is_done = True
            with self._stream._changed:
                self._stream._changed.notify_all()


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
