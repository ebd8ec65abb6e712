"""What a stream keeps of one session: its requests that have no answer, and what it gives out."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from service.client.errors import CallError, Refused, Unacknowledged
from service.client.patience import Backoff
from service.client.place import Place, Reply, Request
from service.client.rows import Rows


@dataclass(frozen=True, slots=True, eq=False)
class Lost:
    """A request that was run, and whose answer is lost for good."""

    session_id: str
    step: int  # of its first row
    x: Any  # as the caller gave it
    y: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class NotRun:
    """A request that was refused for good, and left out."""

    session_id: str
    step: int  # where the session stood, and stands
    x: Any
    error: Refused
    y: Any = None


Event = Reply | Lost | NotRun


class Farewell(Exception):
    """What the server says last on a connection; it has run nothing that it did not answer."""

    def __init__(self, error: Refused) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(slots=True, eq=False)
class Waiting:
    """A request of a lane."""

    rows: Rows
    request: Request | None = None  # once it has its step
    sent_at: float | None = None  # under way since; None: it is not
    tag: int = 0  # of its latest sending
    maybe_run: bool = False  # by a sending whose answer is not known

    @property
    def end(self) -> int | None:
        """The step that its answer has; None: not known yet."""
        if self.request is None or self.rows.count is None:
            return None
        return self.request.step + self.rows.count


@dataclass(slots=True, eq=False)
class Lane:
    """The requests of one session that have no answer."""

    place: Place
    waiting: deque[Waiting] = field(default_factory=deque)
    under_way: int = 0
    alone: bool = False  # its oldest goes alone: where the server stands is not known
    held: bool = False  # nothing is sent until all that is under way came back
    due_at: float = 0.0  # and not before
    trouble: Backoff | None = None  # since the last answer
    stopped: CallError | None = None
    is_listed: bool = False  # among those that may have something to send

    @property
    def unacknowledged(self) -> Iterator[Unacknowledged]:
        """Its requests, in order."""
        for waiting in self.waiting:
            step = waiting.request.step if waiting.request else None
            yield Unacknowledged(self.place.session_id, step, waiting.rows.given)
