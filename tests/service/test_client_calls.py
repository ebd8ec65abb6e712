"""What a call of the client does with what comes back, and what it makes of x; without a server."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from service import errors
from service.client import (
    BadInput,
    CallError,
    Draining,
    Overloaded,
    Refused,
    Reply,
    ServerFault,
    SessionExists,
    SessionGone,
    SessionNotFound,
    StepConflict,
    StoreUnavailable,
    TryLater,
    Unreachable,
)
from service.client import place as sessions
from service.client.errors import refusal, refusal_of_bytes
from service.client.patience import Patience
from service.client.place import Place
from service.client.rows import read_rows
from service.client.talk import Call, Cut, Pause, Response, Talk

CUT = Cut(ConnectionResetError("reset"))


class Clock:
    """Time, which pauses take; chance is none."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.calls: list[Call] = []
        self.pauses: list[float] = []

    def patience(self, retry_for_s: float = 60) -> Patience:
        return Patience(10, retry_for_s, lambda: self.now, lambda: 0.5)

    def run(self, talk: Talk[Any], *outcomes: Response | Cut) -> Any:
        """Answer its calls by `outcomes`, the last one for ever."""
        left = list(outcomes)
        outcome: Response | Cut | None = None
        while True:
            try:
                wanted = talk.send(outcome)
            except StopIteration as done:
                return done.value
            if isinstance(wanted, Pause):
                self.now += wanted.seconds
                self.pauses.append(wanted.seconds)
                outcome = None
            else:
                self.calls.append(wanted)
                outcome = left.pop(0) if len(left) > 1 else left[0]


def replied(step: int, created: bool = False) -> Response:
    named = {"session_id": "s", "model": "sums", "version": "1"}
    body = {**named, "step": step, "created": created, "y": [[0.5]]}
    return Response(200, None, json.dumps(body).encode())


def refused(
    error: type[errors.CarouselError], retry_after: str | None = None, **data: object
) -> Response:
    return Response(error.status, retry_after, json.dumps(error("no", **data).body()).encode())


def advance(
    place: Place, clock: Clock, x: object = ((0.1,),), retry_for_s: float = 60
) -> Talk[Reply]:
    return sessions.advance(place, read_rows(x), None, None, clock.patience(retry_for_s))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_place_asks_once_where_it_stands(clock: Clock) -> None:
    """And counts by the answers from there on."""
    place = Place("a/b ä")
    clock.run(advance(place, clock), Response(200, None, replied(4).body), replied(5))
    clock.run(advance(place, clock), replied(6))
    assert [call.path for call in clock.calls] == [
        "/sessions/a%2Fb%20%C3%A4",
        "/predict",
        "/predict",
    ]
    assert [json.loads(call.body or b"")["step"] for call in clock.calls[1:]] == [4, 5]
    new = Place("s")
    clock.run(advance(new, clock), refused(errors.SessionNotFoundError), replied(1, True))
    assert json.loads(clock.calls[-1].body or b"")["step"] == 0


@pytest.mark.parametrize(
    "trouble",
    [
        CUT,
        refused(errors.CapacityError, "1"),
        refused(errors.StoreUnavailableError, "1"),
        refused(errors.DrainingError, "1"),
        refused(errors.ModelLoadingError, "1"),
        Response(502, None, b"<html>Bad gateway</html>"),
        Response(504, None, b""),
    ],
)
def test_a_request_is_sent_again_as_it_was(clock: Clock, trouble: Response | Cut) -> None:
    """Byte for byte, until it is answered."""
    place = Place("s", step=3)
    reply = clock.run(advance(place, clock), trouble, trouble, replied(4))
    assert (reply.step, place.step, place.unanswered) == (4, 4, None)
    assert len({call.body for call in clock.calls}) == 1
    assert len(clock.calls) == 3


def test_pauses_grow_and_keep_to_retry_after(clock: Clock) -> None:
    """Never sooner than the server says; without a word of it, up to a limit."""
    cut = (CUT,) * 9
    clock.run(advance(Place("s", step=0), clock), *cut, replied(1))
    assert clock.pauses[:4] == [0.05, 0.1, 0.2, 0.4]
    assert clock.pauses[-1] == clock.pauses[-2] == 2.0
    clock.pauses.clear()
    clock.run(advance(Place("s", step=0), clock), refused(errors.CapacityError, "7"), replied(1))
    assert 7 <= clock.pauses[0] < 7.8


def test_what_would_be_too_late_is_not_waited_for(clock: Clock) -> None:
    """A refusal that was not run leaves nothing without an answer."""
    full = refused(errors.CapacityError, "61", limit="sessions")
    with pytest.raises(Overloaded) as caught:
        clock.run(advance(Place("s", step=0), clock), full)
    assert (caught.value.data["limit"], caught.value.retry_after_s) == ("sessions", 61)
    assert (clock.pauses, caught.value.unacknowledged) == ([], ())


@pytest.mark.parametrize(
    ("outcomes", "kind"),
    [
        ((CUT,), Unreachable),
        ((CUT, refused(errors.CapacityError)), Overloaded),
        ((refused(errors.StoreUnavailableError),), StoreUnavailable),
        ((CUT, refused(errors.DrainingError)), Draining),
        ((Response(504, None, b""),), TryLater),
    ],
)
def test_what_may_have_been_run_is_said_and_can_be_sent_again(
    clock: Clock, outcomes: Sequence[Response | Cut], kind: type[CallError]
) -> None:
    """The same bytes, by the same call or by `resend`; the place has not moved."""
    place = Place("s", step=3)
    x = [[0.1]]
    with pytest.raises(kind) as caught:
        clock.run(advance(place, clock, x), *outcomes)
    (left,) = caught.value.unacknowledged
    assert (left.session_id, left.step, left.x, place.step) == ("s", 3, x, 3)
    reply = clock.run(sessions.resend(place, clock.patience()), replied(4))
    assert (reply.step, place.step) == (4, 4)
    assert len({call.body for call in clock.calls}) == 1
    assert clock.run(sessions.resend(place, clock.patience()), replied(4)) is None


def test_another_request_over_one_without_an_answer_is_told_of_it(clock: Clock) -> None:
    """If that one was run, this one is a conflict, and says how to get its answer."""
    place = Place("s", step=3)
    with pytest.raises(Unreachable):
        clock.run(advance(place, clock, retry_for_s=0), CUT)
    conflict = refused(errors.StepConflictError, expected=4, got=3)
    with pytest.raises(StepConflict, match="call `resend\\(\\)`") as caught:
        clock.run(advance(place, clock, [[0.9]]), conflict)
    assert [left.x for left in caught.value.unacknowledged] == [((0.1,),)]


def test_a_session_that_is_gone_is_begun_again_only_when_told(clock: Clock) -> None:
    """Then with the same rows, at step 0."""
    gone = refused(errors.SessionGoneError, expected=0, got=3)
    place = Place("s", step=3)
    with pytest.raises(SessionGone):
        clock.run(advance(place, clock), gone)
    assert place.step == 3
    place.on_gone = "restart"
    assert clock.run(advance(place, clock), gone, replied(1, True)).created
    assert json.loads(clock.calls[-1].body or b"") == {"session_id": "s", "step": 0, "x": [[0.1]]}


def test_what_a_lost_answer_would_have_said_counts(clock: Clock) -> None:
    """A drop or a fork that was done, and is asked for again; without a cut it is a refusal."""
    missing = refused(errors.SessionNotFoundError)
    there = refused(errors.SessionExistsError, step=3, model="sums", version="1")
    clock.run(sessions.drop(Place("s", step=3), clock.patience()), CUT, missing)
    with pytest.raises(SessionNotFound):
        clock.run(sessions.drop(Place("s", step=3), clock.patience()), missing)
    fork = clock.run(sessions.fork(Place("s", step=3), "t", clock.patience()), CUT, there)
    assert (fork.session_id, fork.step) == ("t", 3)
    with pytest.raises(SessionExists):
        clock.run(sessions.fork(Place("s", step=3), "t", clock.patience()), there)


def test_what_is_no_answer_of_ours_is_said(clock: Clock) -> None:
    """Another server's page, or half of a reply."""
    for body in (b"<html>", b'{"hello": 1}', b"[]"):
        with pytest.raises(Unreachable, match="is this Carousel"):
            clock.run(advance(Place("s", step=0), clock), Response(200, None, body))


def test_every_error_of_the_server_has_its_class() -> None:
    """By its code; whose fault it is where the code has none of its own."""
    assert isinstance(refusal(errors.ShapeError("no").body(), 400), BadInput)
    assert isinstance(refusal(errors.InternalError("no").body(), 500), ServerFault)
    assert isinstance(refusal(errors.ArtifactError("no").body(), 503), ServerFault)
    assert isinstance(refusal_of_bytes(b"gone fishing", 503), TryLater)
    assert type(refusal_of_bytes(b"moved", 301)) is Refused


# Rows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "written"),
    [
        ([[0.1], [2]], "[[0.1],[2.0]]"),
        (np.array([[0.1]], "float32"), "[[0.10000000149011612]]"),
        (np.arange(6.0).reshape(2, 3).T, "[[0.0,3.0],[1.0,4.0],[2.0,5.0]]"),
        (np.array([3, 1]), "[3,1]"),
        ("déjà", '"déjà"'),
        (["a", "b"], '["a","b"]'),
        (pd.Series([0.1, 0.2]), "[[0.1],[0.2]]"),
        (pd.Series(["a", "b"]), '["a","b"]'),
        (pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]}), "[[1.0,0.5],[2.0,1.5]]"),
    ],
)
def test_rows_are_written_with_all_their_digits(x: object, written: str) -> None:
    """Whatever they come as."""
    assert read_rows(x).json.decode() == written


@pytest.mark.parametrize(
    ("x", "why"),
    [
        ([[0.1], [float("inf")]], "row 1"),
        (pd.Series([0.1, None]), "row 1"),
        ([], "at least one row"),
        (3, "at least one row"),
        ([[1.0], [1.0, 2.0]], "rows of one length"),
        ([[True]], "dtype bool"),
        ([[object()]], "dtype object"),
    ],
)
def test_what_are_no_rows_is_refused_here(x: object, why: str) -> None:
    """JSON has no word for it, or the server would only say the same."""
    with pytest.raises(BadInput, match=why):
        read_rows(x)


@pytest.mark.parametrize(
    ("make", "width", "kind"),
    [
        (lambda: pd.Series([1.0, 2.0], index=[7, 9]), 1, "Series"),
        (lambda: pd.Series([1.0, 2.0], index=[7, 9]), 2, "DataFrame"),
        (lambda: pd.DataFrame({"a": [1.0, 2.0]}, index=[7, 9]), 1, "DataFrame"),
        (lambda: [[1.0], [2.0]], 1, "ndarray"),
    ],
)
def test_answers_wear_what_x_wore(make: Callable[[], object], width: int, kind: str) -> None:
    """pandas with its index; of a Series with several outputs, a DataFrame."""
    y = read_rows(make()).dress(np.ones((2, width)))
    assert type(y).__name__ == kind
    if kind != "ndarray":
        assert y.index.tolist() == [7, 9]
