"""Many sessions over one connection, through cuts: what to send next, and what an answer means.

Rules
- Each session has a lane: its requests that have no answer, in order. One of them is under way at
  a time, unless `in_flight` says more; those of other sessions do not wait for it.
- A request takes its step when it is sent first, and is the same bytes from then on.
- After a cut each lane sends its oldest request again, alone. The server runs it, or gives its
  answer again if that was the last it ran: with one under way nothing can be lost.
- With more under way the server may be several ahead when the connection is cut, and it keeps the
  last answer only. It says so by a conflict at the end of a later request of the lane: then those
  before it were run, their answers are `Lost`, and that one is sent again.
- A request that is refused for now is sent again after Retry-After, and holds up its lane alone.
  What was sent after it is refused too, as it no longer fits; that is no answer.
- A request that is refused for good stops its lane, and is given out; with `skip_refused` the lane
  goes on without it. A conflict that is none of ours, and a session that is gone, always stop it.

Pure: no clock, no socket. Whoever drives it says what came and when, and asks what is due.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import Any

from service.client.errors import (
    CallError,
    Draining,
    Refused,
    SessionGone,
    StepConflict,
    StoreUnavailable,
    StreamClosed,
    TryLater,
    Unacknowledged,
    Unreachable,
    refusal,
)
from service.client.lane import Event, Farewell, Lane, Lost, NotRun, Waiting
from service.client.patience import MAX_PAUSE_S, Backoff, Patience
from service.client.place import (
    Place,
    read_reply,
    refuse_if_busy,
    write_request,
)
from service.client.rows import Rows

MAX_UNDER_WAY = 128  # of all lanes: half of what the server reads before it wants to be read


class Lanes:
    """All lanes of one stream."""

    def __init__(self, patience: Patience, in_flight: int = 1, skip_refused: bool = False) -> None:
        """
        Args:
            in_flight: requests of one session under way. More than 1 is faster for one session
                alone, and loses answers when a connection is cut, which is then said.
            skip_refused: a request that is refused for good does not stop its session.
        """
        if not 1 <= in_flight <= MAX_UNDER_WAY:
            raise ValueError(f"`in_flight` is {in_flight}, expected 1 to {MAX_UNDER_WAY}")
        self._patience = patience
        self._in_flight = in_flight
        self._skip_refused = skip_refused
        self._lanes: dict[str, Lane] = {}
        self._ready: deque[Lane] = deque()  # may have something to send
        self._held: list[tuple[float, int, Lane]] = []  # heap, by when it is due
        self._sent: OrderedDict[int, tuple[Lane, Waiting]] = OrderedDict()  # by tag, oldest first
        self._tags = 0  # given on this connection
        self._trouble: Backoff | None = None  # of the connection, since the last answer
        self.unanswered = 0  # requests of lanes that go on

    # What goes in -------------------------------------------------------------------------------

    def put(self, place: Place, rows: Rows) -> None:
        """One more request; the place's step is known.

        Raises:
            CallError: its session was stopped by it before.
            BadInput: it is text, whose steps the client cannot count, and `in_flight` is not 1.
        """
        lane = self._lanes.get(place.session_id)
        if lane is not None and lane.stopped is not None:
            raise lane.stopped
        if rows.count is None and self._in_flight > 1:
            raise ValueError("text has as many steps as the server says, expected `in_flight` 1")
        if lane is None:
            refuse_if_busy(place)
            place.is_streamed = True
            lane = self._lanes[place.session_id] = Lane(place)
        if self.unanswered == 0:
            self._trouble = None  # what went wrong while nobody waited
        lane.waiting.append(Waiting(rows))
        self.unanswered += 1
        self._list(lane)

    def forget(self, session_id: str) -> tuple[Unacknowledged, ...]:
        """Let go of a session that was stopped, or has nothing under way; what has no answer."""
        lane = self._lanes.get(session_id)
        if lane is None:
            return ()
        if lane.under_way:
            raise RuntimeError(f"session `{session_id}` has requests under way; read their answers")
        left = tuple(lane.unacknowledged)
        if lane.stopped is None:
            self._stop(lane, StreamClosed(f"session `{session_id}` was let go of"))
        del self._lanes[session_id]
        return left

    # What goes out ------------------------------------------------------------------------------

    def due(self) -> list[tuple[int, bytes]]:
        """What is to be sent now: tag, from 1 on each connection, and body."""
        now = self._patience.clock()
        while self._held and self._held[0][0] <= now:
            self._list(heapq.heappop(self._held)[2])
        found: list[tuple[int, bytes]] = []
        while self._ready and len(self._sent) < MAX_UNDER_WAY:
            lane = self._ready.popleft()
            lane.is_listed = False
            found += self._due_of(lane, now)
        return found

    def _due_of(self, lane: Lane, now: float) -> Iterator[tuple[int, bytes]]:
        if lane.held:
            if lane.under_way or now < lane.due_at or lane.stopped:
                return
            lane.held = False
        window = 1 if lane.alone else self._in_flight
        while (
            lane.stopped is None
            and lane.under_way < min(window, len(lane.waiting))
            and len(self._sent) < MAX_UNDER_WAY
        ):
            waiting = lane.waiting[lane.under_way]
            if waiting.request is None:
                before = lane.waiting[lane.under_way - 1].end if lane.under_way else None
                step = before if before is not None else lane.place.step
                waiting.request = write_request(lane.place, waiting.rows, step or 0)
            self._tags += 1
            lane.under_way += 1
            waiting.sent_at, waiting.tag = now, self._tags
            self._sent[waiting.tag] = (lane, waiting)
            if lane.under_way == 1:
                lane.place.unanswered = waiting.request
            yield waiting.tag, waiting.request.body
        if len(self._sent) >= MAX_UNDER_WAY:
            self._list(lane)

    def _list(self, lane: Lane) -> None:
        if not lane.is_listed:
            lane.is_listed = True
            self._ready.append(lane)

    def wake_in_s(self) -> float | None:
        """When something is due, or overdue, without an answer; None: never."""
        moments = [moment for moment, _, _ in self._held[:1]]
        moments += [self._overdue_at] if self._sent else []
        return max(0.0, min(moments) - self._patience.clock()) if moments else None

    @property
    def is_overdue(self) -> bool:
        """Whether an answer did not come in time: the connection is as good as cut."""
        return bool(self._sent) and self._patience.clock() >= self._overdue_at

    @property
    def _overdue_at(self) -> float:
        _, oldest = next(iter(self._sent.values()))
        return (oldest.sent_at or 0.0) + self._patience.timeout_s

    # What comes back ----------------------------------------------------------------------------

    def answered(self, body: Mapping[str, Any], tag: int | None = None) -> list[Event]:
        """What an answer means to the caller.

        Args:
            tag: of the request that it is to; None: the oldest of its session under way.
        Raises:
            Farewell: the server ends the connection.
            Refused: a request was refused for good, and its session is stopped.
            Unreachable: it answers nothing that was sent.
        """
        if "error" not in body:
            return self._done(self._find(body, tag), body)
        error = refusal(body)
        if isinstance(error, Draining) or (tag not in self._sent and "session_id" not in body):
            raise Farewell(error)
        lane, waiting = self._find(body, tag)
        self._came_back(lane, waiting)
        return [] if lane.stopped else self._refused(lane, waiting, error)

    def _find(self, body: Mapping[str, Any], tag: int | None) -> tuple[Lane, Waiting]:
        if tag is not None and tag in self._sent:
            return self._sent[tag]
        lane = self._lanes.get(str(body.get("session_id")))
        for waiting in lane.waiting if lane else ():
            if lane is not None and waiting.sent_at is not None:
                return lane, waiting
        raise Unreachable(f"the answer {str(body)[:200]} is to no request that was sent")

    def _came_back(self, lane: Lane, waiting: Waiting) -> None:
        del self._sent[waiting.tag]
        waiting.sent_at = None
        lane.under_way -= 1
        self._list(lane)

    def _done(self, found: tuple[Lane, Waiting], body: Mapping[str, Any]) -> list[Event]:
        lane, waiting = found
        reply = read_reply(body, waiting.rows.dress)
        if waiting.end not in (None, reply.step):
            raise Unreachable(f"step {reply.step} answers no request, expected {waiting.end}")
        self._came_back(lane, waiting)
        events = self._lose(lane, waiting)
        self._take(lane)
        lane.place.step = reply.step
        lane.alone = False
        lane.trouble = self._trouble = None
        return [*events, reply]

    def _lose(self, lane: Lane, until: Waiting) -> list[Event]:
        """Those before `until`: the server has run them, or it would not be there."""
        lost: list[Event] = []
        while lane.waiting[0] is not until:
            gone = self._take(lane)
            step = gone.request.step if gone.request else 0
            lost.append(Lost(lane.place.session_id, step, gone.rows.given))
            lane.place.step = gone.end
        return lost

    def _take(self, lane: Lane) -> Waiting:
        taken = lane.waiting.popleft()
        if taken.sent_at is not None:
            self._came_back(lane, taken)
        self.unanswered -= lane.stopped is None
        self._keep(lane)
        return taken

    def _keep(self, lane: Lane) -> None:
        lane.place.unanswered = lane.waiting[0].request if lane.waiting else None

    def _refused(self, lane: Lane, waiting: Waiting, error: Refused) -> list[Event]:
        waiting.maybe_run = waiting.maybe_run or isinstance(error, StoreUnavailable)
        if isinstance(error, TryLater):
            return self._hold(lane, error)
        if lane.held and isinstance(error, StepConflict | SessionGone):
            return []  # sent after one that was not run: it goes again after that one
        if isinstance(error, StepConflict):
            for later in list(lane.waiting)[1:] if waiting is lane.waiting[0] else ():
                if later.end == error.expected:
                    lane.alone = True
                    return self._lose(lane, later)
        elif isinstance(error, SessionGone):
            if lane.place.on_gone == "restart":
                lane.place.step = 0
                self._renumber(lane, 0)
                return []
        elif self._skip_refused:
            step = waiting.request.step if waiting.request else 0
            at = lane.waiting.index(waiting)
            del lane.waiting[at]
            self.unanswered -= 1
            self._renumber(lane, at)
            return [NotRun(lane.place.session_id, step, waiting.rows.given, error)]
        self._stop(lane, error)
        raise error

    def _hold(self, lane: Lane, error: TryLater) -> list[Event]:
        lane.trouble = lane.trouble or Backoff(self._patience)
        pause_s = lane.trouble.pause_s(error.retry_after_s)
        if pause_s is None:
            self._stop(lane, error)
            raise error
        lane.held = lane.alone = True
        lane.due_at = max(lane.due_at, self._patience.clock() + pause_s)
        heapq.heappush(self._held, (lane.due_at, id(lane), lane))
        return []

    def _renumber(self, lane: Lane, first: int) -> None:
        """From `first` on none of the lane's requests was or will be run as it was sent."""
        for waiting in list(lane.waiting)[first:]:
            waiting.request = None
        self._keep(lane)
        lane.held = lane.under_way > 0
        lane.alone = True

    def _stop(self, lane: Lane, error: CallError) -> None:
        lane.stopped = error
        lane.place.is_streamed = False
        if lane.waiting and not lane.waiting[0].maybe_run:
            lane.place.unanswered = None
        self.unanswered -= len(lane.waiting)
        error.unacknowledged = tuple(lane.unacknowledged)

    # Cuts ---------------------------------------------------------------------------------------

    def cut(self, cause: Exception | None, retry_after_s: float | None = None) -> float:
        """The connection is gone, or could not be made: how long to wait before the next.

        Raises:
            Unreachable: the time is up.
        """
        for lane, waiting in self._sent.values():
            waiting.sent_at = None
            waiting.maybe_run = True
            lane.under_way = 0
            lane.alone = True
            self._list(lane)
        self._sent.clear()
        self._tags = 0
        self._trouble = self._trouble or Backoff(self._patience)
        pause_s = self._trouble.pause_s(retry_after_s)
        if pause_s is not None:
            return pause_s
        if self.unanswered:
            raise self.failed(cause) from cause
        self._trouble = None  # nobody waits
        return MAX_PAUSE_S

    def failed(self, cause: Exception | None) -> Unreachable:
        """That the stream is over."""
        left = self.unacknowledged
        why = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
        return Unreachable(
            f"the stream got no answer in time, {len(left)} requests of it have none; last: {why}",
            left,
        )

    @property
    def unacknowledged(self) -> tuple[Unacknowledged, ...]:
        """Every request without an answer, of stopped sessions too."""
        return tuple(left for lane in self._lanes.values() for left in lane.unacknowledged)

    def let_go(self) -> None:
        """The places are their sessions' again."""
        for lane in self._lanes.values():
            lane.place.is_streamed = False
