"""One session as its client knows it, and what is asked of it; no I/O (see `talk`).

Rules
- Every request carries `step`, and the client alone counts it: a place moves when an answer came,
  and never without one.
- A place that was not told its step asks the server, once, before the first request.
- A request without an answer is kept. Sent again it gets the answer it should have had, or is run
  now. Another request in its place is run only if that one was not.
- Gone is gone (410): the place stays as it is until `restart`, unless `on_gone` says "restart".
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

import msgspec
import numpy as np

from service.client.errors import (
    CallError,
    SessionExists,
    SessionGone,
    SessionNotFound,
    StepConflict,
    Unacknowledged,
    Unreachable,
)
from service.client.patience import Patience
from service.client.rows import Rows
from service.client.talk import JSON, Call, CallFailed, Talk, ask, ask_json, settled

Array = np.ndarray
OnGone = Literal["raise", "restart"]

_NAMED = ("session_id", "model", "version", "step", "created", "y")


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the server holds a session."""

    session_id: str
    model: str
    version: str
    step: int  # the index of the next step


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """What a request got."""

    session_id: str
    model: str
    version: str
    step: int  # the index of the next step
    created: bool  # this request began the session
    y: Any  # (T, ...) in raw units, in the clothes that x came in; None: it was not wanted
    more: Mapping[str, Any]  # what the model's pipeline reads in y: text, labels, alarm


@dataclass(slots=True)
class Request:
    """One request; `body` is what every try of it sends."""

    rows: Rows
    step: int
    body: bytes


@dataclass(slots=True)
class Place:
    """A session's place in its sequence."""

    session_id: str
    model: str | None = None
    step: int | None = None  # of the next row; None: the server was not asked yet
    on_gone: OnGone = "raise"
    unanswered: Request | None = None  # it may have been run
    is_streamed: bool = False  # a stream moves it: nothing else may


def write_request(
    place: Place,
    rows: Rows,
    step: int,
    want: Sequence[str] | None = None,
    choose: Mapping[str, Any] | None = None,
) -> Request:
    """The bytes of a /predict body, or of a line of /stream."""
    body: dict[str, Any] = {"session_id": place.session_id, "step": step}
    if place.model is not None:
        body["model"] = place.model
    if want is not None:
        body["want"] = list(want)
    if choose is not None:
        body["choose"] = dict(choose)
    body["x"] = msgspec.Raw(rows.json)
    return Request(rows, step, msgspec.json.encode(body))


def read_reply(body: Mapping[str, Any], dress: Callable[[Array], Any]) -> Reply:
    """
    Raises:
        Unreachable: it is no reply of Carousel's.
    """
    try:
        y = None if body.get("y") is None else dress(np.array(body["y"]))
        return Reply(
            session_id=body["session_id"],
            model=body["model"],
            version=body["version"],
            step=body["step"],
            created=body["created"],
            y=y,
            more={name: value for name, value in body.items() if name not in _NAMED},
        )
    except (KeyError, TypeError, AttributeError):
        shown = str(body)[:200]
        raise Unreachable(f"the answer is no reply: {shown}; is this Carousel?") from None


# What a session is asked. ---------------------------------------------------------------------


def learn_step(place: Place, patience: Patience) -> Talk[int]:
    """Where the place is; asks the server if that is not known."""
    if place.step is None:
        try:
            place.step = (yield from look_up(place, patience)).step
        except SessionNotFound:
            place.step = 0
    return place.step


def advance(
    place: Place,
    rows: Rows,
    want: Sequence[str] | None,
    choose: Mapping[str, Any] | None,
    patience: Patience,
) -> Talk[Reply]:
    """Run `rows`, once, and move the place.

    Raises:
        CallError: it was refused, or no answer came; the place stays.
    """
    refuse_if_streamed(place)
    step = yield from learn_step(place, patience)
    request = write_request(place, rows, step, want, choose)
    return (yield from _send(place, request, patience))


def resend(place: Place, patience: Patience) -> Talk[Reply | None]:
    """The answer that the last request should have had; None: every request was answered."""
    refuse_if_streamed(place)
    if place.unanswered is None:
        return None
    return (yield from _send(place, place.unanswered, patience))


def _send(place: Place, request: Request, patience: Patience) -> Talk[Reply]:
    before, place.unanswered = place.unanswered, request  # whoever cancels from here leaves it so
    call = Call("POST", "/predict", request.body, JSON)
    try:
        answered = yield from ask(call, patience)
    except CallFailed as failed:
        error = failed.error
        if isinstance(error, SessionGone) and place.on_gone == "restart":
            rows, fields = request.rows, msgspec.json.decode(request.body)
            place.step, place.unanswered = 0, None
            again = write_request(place, rows, 0, fields.get("want"), fields.get("choose"))
            return (yield from _send(place, again, patience))
        if not failed.maybe_run:
            place.unanswered = before
        raise _told(place, error) from error.__cause__
    reply = read_reply(answered.response.json(), request.rows.dress)
    place.step = reply.step
    place.unanswered = None
    return reply


def _told(place: Place, error: CallError) -> CallError:
    """`error` with what the place has no answer to."""
    left = place.unanswered
    if left is None:
        return error
    error.unacknowledged = (Unacknowledged(place.session_id, left.step, left.rows.given),)
    if isinstance(error, StepConflict) and error.expected > left.step:
        how = f"if others do not use it, the request of step {left.step} was run: call `resend()`"
        error.message = f"{error.message}; {how}"
        error.args = (error.message,)
    return error


def refuse_if_streamed(place: Place) -> None:
    """RuntimeError where a stream moves the place."""
    if place.is_streamed:
        raise RuntimeError(
            f"session `{place.session_id}` is moved by an open stream; use that, or close it first"
        )


def refuse_if_busy(place: Place) -> None:
    """RuntimeError where a stream cannot take over the place."""
    refuse_if_streamed(place)
    if place.unanswered is not None:
        raise RuntimeError(
            f"a request of session `{place.session_id}` has no answer, at step "
            f"{place.unanswered.step}; call `resend()` first"
        )


def look_up(place: Place, patience: Patience) -> Talk[Standing]:
    body = yield from ask_json(Call("GET", address(place.session_id)), patience)
    return standing(body)


def standing(body: Mapping[str, Any]) -> Standing:
    return Standing(body["session_id"], body["model"], body["version"], body["step"])


def drop(place: Place, patience: Patience) -> Talk[None]:
    """
    Raises:
        SessionNotFound: there was none, and none was dropped by a try whose answer was lost.
    """
    refuse_if_streamed(place)
    try:
        yield from ask(Call("DELETE", address(place.session_id)), patience)
    except CallFailed as failed:
        if not (isinstance(failed.error, SessionNotFound) and failed.maybe_run):
            raise failed.error from failed.error.__cause__
    place.step, place.unanswered = 0, None


def restart(place: Place, patience: Patience) -> Talk[None]:
    """Forget the session, if it is there, so that the next request begins it anew."""
    try:
        yield from drop(place, patience)
    except SessionNotFound:
        place.step, place.unanswered = 0, None


def fork(place: Place, session_id: str | None, patience: Patience) -> Talk[Place]:
    """A copy, at this place's step."""
    step = yield from learn_step(place, patience)
    copy = Place(session_id or f"{place.session_id}-{uuid.uuid4().hex[:12]}", on_gone=place.on_gone)
    body = msgspec.json.encode({"session_id": copy.session_id, "step": step})
    call = Call("POST", address(place.session_id, "/fork"), body, JSON)
    found = yield from _put(call, patience, step)
    copy.model, copy.step = place.model, found
    return copy


def snapshot(place: Place, patience: Patience) -> Talk[bytes]:
    call = Call("GET", address(place.session_id, "/snapshot"))
    return (yield from settled(call, patience)).response.body


def restore(place: Place, file: bytes, replace: bool, patience: Patience) -> Talk[int]:
    """Begin the session from a snapshot; its step."""
    refuse_if_streamed(place)
    query = "?replace=true" if replace else ""
    call = Call("PUT", address(place.session_id, "/snapshot") + query, file)
    place.step = yield from _put(call, patience)
    place.unanswered = None
    return place.step


def _put(call: Call, patience: Patience, step: int | None = None) -> Talk[int]:
    """A copy put where none was; one that an earlier try put, its answer lost, counts.

    Args:
        step: at which the copy stands; None: not known, so that it is taken for another's.
    """
    try:
        answered = yield from ask(call, patience)
    except CallFailed as failed:
        error = failed.error
        if isinstance(error, SessionExists) and failed.maybe_run and error.data["step"] == step:
            return int(error.data["step"])
        raise error from error.__cause__
    return int(answered.response.json()["step"])


def address(session_id: str, verb: str = "") -> str:
    return f"/sessions/{quote(session_id, safe='')}{verb}"
