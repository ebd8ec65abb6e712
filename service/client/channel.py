"""What a blocking and an asyncio stream have in common: `Lanes`, and the answers not read yet."""

from collections import deque
from collections.abc import Iterable

from service.client.errors import CallError, Refused, StreamClosed
from service.client.lane import Event, Farewell
from service.client.lanes import Lanes
from service.client.message import Broken, Message
from service.client.patience import Patience
from service.client.place import Place
from service.client.rows import Rows

TRANSPORTS = ("ws", "ndjson")
TICK_S = 0.25  # at most: what was sent meanwhile may be overdue earlier than was known


class Channel:
    """The state of one stream; whoever owns it sees to it that one thing happens at a time."""

    def __init__(
        self, patience: Patience, transport: str, in_flight: int, buffer: int, skip_refused: bool
    ) -> None:
        if transport not in TRANSPORTS:
            raise ValueError(f"`transport` is {transport!r}, expected one of {TRANSPORTS}")
        if buffer < 1:
            raise ValueError(f"`buffer` is {buffer}, expected 1 or more")
        self.lanes = Lanes(patience, in_flight, skip_refused)
        self.over: CallError | None = None  # why nothing more will come
        self._timeout_s = patience.timeout_s
        self._buffer = buffer
        self._unread: deque[Event | CallError] = deque()

    # For the caller -----------------------------------------------------------------------------

    def has_room(self, counts_unread: bool = False) -> bool:
        """Whether one more request may be put; of a stream that is over, so that it says so."""
        unread = len(self._unread) if counts_unread else 0
        return self.over is not None or self.lanes.unanswered + unread < self._buffer

    def put(self, place: Place, rows: Rows) -> None:
        """
        Raises:
            CallError: the session was stopped, or the stream is over.
        """
        if self.over is not None:
            raise self.over
        self.lanes.put(place, rows)

    @property
    def has_news(self) -> bool:
        return bool(self._unread) or self.over is not None

    @property
    def is_idle(self) -> bool:
        """Whether every request has its answer."""
        return self.lanes.unanswered == 0

    def pop(self) -> Event:
        """The next answer, where there is news.

        Raises:
            CallError: a request was refused, or the stream is over.
        """
        if not self._unread:
            raise self.over or StreamClosed("the stream is closed")
        event = self._unread.popleft()
        if isinstance(event, CallError):
            raise event
        return event

    def raise_unread(self) -> None:
        """The first error that nobody read, if there is one."""
        for unread in self._unread:
            if isinstance(unread, CallError):
                raise unread
        if self.over is not None and self.over.unacknowledged:
            raise self.over

    # For the connection -------------------------------------------------------------------------

    def due(self) -> list[bytes]:
        """What is to be sent now."""
        return [body for _, body in self.lanes.due()]

    def wait_s(self) -> float:
        """How long to wait for an answer before `take` is called without one."""
        wake_in_s = self.lanes.wake_in_s()
        return TICK_S if wake_in_s is None else min(wake_in_s, TICK_S)

    def take(self, messages: Iterable[Message]) -> None:
        """
        Raises:
            Broken: the connection is of no more use.
            Refused: the server ends it; TryLater: another may do.
            Unreachable: it is no server of Carousel's.
        """
        for message in messages:
            try:
                self._unread += self.lanes.answered(message.body, message.tag)
            except Farewell as farewell:
                raise farewell.error from None
            except Refused as error:
                self._unread.append(error)
        if self.lanes.is_overdue:
            raise Broken(f"no answer in {self._timeout_s} s")

    def end(self, error: CallError) -> None:
        """Nothing more will come; the places are their sessions' again."""
        if self.over is None:
            self.over = error
            error.unacknowledged = error.unacknowledged or self.lanes.unacknowledged
            self.lanes.let_go()
