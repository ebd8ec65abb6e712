"""What a stream of the client sends, and makes of answers, over a server that is played here."""

import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from service import errors
from service.client import Event, Lost, NotRun, Reply, SessionGone, StepConflict, Unreachable
from service.client.errors import CallError
from service.client.lanes import MAX_UNDER_WAY, Lanes
from service.client.patience import Patience
from service.client.place import Place
from service.client.rows import read_rows


class Clock:
    """Time, as the test says; chance is none."""

    def __init__(self) -> None:
        self.now = 1000.0

    def patience(self, timeout_s: float = 5, retry_for_s: float = 60) -> Patience:
        return Patience(timeout_s, retry_for_s, lambda: self.now, lambda: 0.5)


@dataclass
class Server:
    """The rules of `service.session` for sums: y is the sum of all rows so far."""

    rows: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    last: dict[str, tuple[int, list[float]]] = field(default_factory=dict)

    def run(self, body: bytes, tag: int) -> dict[str, Any]:
        asked = msgspec.json.decode(body)
        name, step, x = asked["session_id"], asked["step"], [row[0] for row in asked["x"]]
        known = self.rows[name]
        if step == len(known):
            known += x
            self.last[name] = (step, x)
        elif (step, x) != self.last.get(name):
            if not known:
                return _error(errors.SessionGoneError.code, name, tag, expected=0)
            return _error(errors.StepConflictError.code, name, tag, expected=len(known))
        before = sum(known[:step])
        y = [[before + sum(x[: n + 1])] for n in range(len(x))]
        return _reply(name, len(known), step == 0, y)


def _reply(name: str, step: int, created: bool, y: object) -> dict[str, Any]:
    named = {"session_id": name, "model": "sums", "version": "1"}
    return {**named, "step": step, "created": created, "y": y}


def _error(code: str, name: str, tag: int, **data: object) -> dict[str, Any]:
    return {"error": {"code": code, "message": code, **data}, "line": tag, "session_id": name}


def put(lanes: Lanes, places: dict[str, Place], name: str, x: list[float]) -> None:
    place = places.setdefault(name, Place(name, step=0))
    lanes.put(place, read_rows([[value] for value in x]))


def play(seed: int, in_flight: int) -> tuple[Server, dict[str, list[list[float]]], list[Event]]:
    """A stream of three sessions over connections that are cut, to a server that is full at times.

    Requests and answers are on their way for a while; a cut loses those, and the server may still
    run requests that had come.
    """
    rng = random.Random(seed)
    clock, server = Clock(), Server()
    lanes = Lanes(clock.patience(), in_flight)
    places: dict[str, Place] = {}
    sent: dict[str, list[list[float]]] = defaultdict(list)
    events: list[Event] = []
    there: list[tuple[int, bytes]] = []  # on its way to the server
    back: list[tuple[int, dict[str, Any]]] = []
    left = 60
    while left or lanes.unanswered:
        clock.now += 0.02
        if left and rng.random() < 0.7:
            name, x = (
                rng.choice("abc"),
                [float(rng.randrange(9)) for _ in range(rng.choice([1, 3]))],
            )
            put(lanes, places, name, x)
            sent[name].append(x)
            left -= 1
        there += lanes.due()
        for _ in range(rng.randrange(4)):
            if there:
                tag, body = there.pop(0)
                name = msgspec.json.decode(body)["session_id"]
                is_full = rng.random() < 0.1
                answer = (
                    _error(errors.CapacityError.code, name, tag, retry_after_s=0.1)
                    if is_full
                    else server.run(body, tag)
                )
                back.append((tag, answer))
        for _ in range(rng.randrange(4)):
            if back:
                tag, answer = back.pop(0)
                events += lanes.answered(answer, tag if "error" in answer else None)
        if rng.random() < 0.05:
            for tag, body in there[: rng.randrange(len(there) + 1)]:
                server.run(body, tag)
            there, back = [], []
            clock.now += lanes.cut(OSError("cut"))
    return server, sent, events


@pytest.mark.parametrize("in_flight", [1, 4])
def test_each_row_is_run_once_and_in_order_whatever_is_cut_or_refused(in_flight: int) -> None:
    """And each request has one answer, or is said to have lost it."""
    lost = 0
    for seed in range(150):
        server, sent, events = play(seed, in_flight)
        for name, requests in sent.items():
            assert server.rows[name] == [value for x in requests for value in x]
            mine = [event for event in events if event.session_id == name]
            step = total = 0.0
            for x, event in zip(requests, mine, strict=True):
                sums = [[total + sum(x[: n + 1])] for n in range(len(x))]
                if isinstance(event, Reply):
                    assert (event.step, event.y.tolist()) == (step + len(x), sums)
                else:
                    assert isinstance(event, Lost)
                    assert (event.step, event.x) == (step, [[value] for value in x])
                    lost += 1
                step, total = step + len(x), sums[-1][0]
    assert (lost > 0) == (in_flight > 1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def answer(lanes: Lanes, server: Server) -> list[Event]:
    """All that is due, run and answered."""
    events: list[Event] = []
    for tag, body in lanes.due():
        reply = server.run(body, tag)
        events += lanes.answered(reply, tag if "error" in reply else None)
    return events


def test_one_request_of_a_session_is_under_way_and_others_do_not_wait(clock: Clock) -> None:
    """Of a hundred sessions, a hundred."""
    lanes, places = Lanes(clock.patience()), dict[str, Place]()
    for n in range(200):
        put(lanes, places, f"s{n % 100}", [1.0])
    assert len(lanes.due()) == 100
    assert lanes.due() == []
    assert lanes.unanswered == 200


def test_no_more_are_under_way_than_the_server_reads(clock: Clock) -> None:
    """However many sessions there are: it would wait for its answers to be read."""
    lanes, places, server = Lanes(clock.patience()), dict[str, Place](), Server()
    for n in range(3 * MAX_UNDER_WAY):
        put(lanes, places, f"s{n}", [1.0])
    due = lanes.due()
    assert len(due) == MAX_UNDER_WAY
    lanes.answered(server.run(due[0][1], 1))
    assert len(lanes.due()) == 1


def test_what_is_sent_again_is_the_same_bytes(clock: Clock) -> None:
    """With the step that it had."""
    lanes, places = Lanes(clock.patience()), dict[str, Place]()
    put(lanes, places, "a", [1.0])
    (first,) = lanes.due()
    clock.now += lanes.cut(OSError())
    assert lanes.due() == [first]


def test_a_refusal_for_now_is_waited_for_as_long_as_it_says(clock: Clock) -> None:
    """Another session goes on meanwhile."""
    lanes, places = Lanes(clock.patience()), dict[str, Place]()
    put(lanes, places, "a", [1.0])
    put(lanes, places, "b", [1.0])
    (tag, _), (_, body) = lanes.due()
    full = _error(errors.CapacityError.code, "a", tag, retry_after_s=7)
    assert lanes.answered(full, tag) == []
    assert len(lanes.answered(Server().run(body, 2))) == 1
    clock.now += 6.99
    assert lanes.due() == []
    clock.now += 0.75
    assert len(lanes.due()) == 1


def test_a_refusal_that_lasts_stops_its_session_and_no_other(clock: Clock) -> None:
    """It is raised with what has no answer; forgotten, the session may begin again."""
    lanes, places, server = Lanes(clock.patience()), dict[str, Place](), Server()
    put(lanes, places, "a", [1.0])
    put(lanes, places, "a", [2.0])
    put(lanes, places, "b", [1.0])
    (tag, _), _ = lanes.due()
    with pytest.raises(CallError, match="bad_shape") as caught:
        lanes.answered(_error(errors.ShapeError.code, "a", tag), tag)
    assert [(one.step, one.x) for one in caught.value.unacknowledged] == [
        (0, [[1.0]]),
        (None, [[2.0]]),
    ]
    assert lanes.unanswered == 1
    with pytest.raises(CallError, match="bad_shape"):
        put(lanes, places, "a", [3.0])
    assert len(lanes.forget("a")) == 2
    put(lanes, places, "a", [4.0])
    assert len(answer(lanes, server)) == 1


def test_with_skip_refused_a_session_goes_on_without_it(clock: Clock) -> None:
    """At the step where it stood, whatever was under way behind it."""
    lanes, places, server = Lanes(clock.patience(), 3, True), dict[str, Place](), Server()
    for value in (1.0, 2.0, 3.0, 4.0):
        put(lanes, places, "a", [value])
    (one, two, three) = lanes.due()
    events = lanes.answered(server.run(one[1], 1))
    events += lanes.answered(_error(errors.ResultNotFiniteError.code, "a", two[0]), two[0])
    assert lanes.answered(server.run(three[1], 3), 3) == []  # a conflict, as two was not run
    events += answer(lanes, server)
    events += answer(lanes, server)
    skipped = events[1]
    assert isinstance(skipped, NotRun)
    assert (skipped.step, skipped.x, skipped.error.code) == (1, [[2.0]], "result_not_finite")
    assert server.rows["a"] == [1.0, 3.0, 4.0]
    assert [event.step for event in events] == [1, 1, 2, 3]


def test_others_that_move_a_session_are_a_conflict(clock: Clock) -> None:
    """Also when a cut has left it open whether the request was run."""
    lanes, places, server = Lanes(clock.patience()), dict[str, Place](), Server()
    put(lanes, places, "a", [1.0])
    lanes.due()
    clock.now += lanes.cut(OSError())
    server.rows["a"] = [5.0, 5.0]
    with pytest.raises(StepConflict) as caught:
        answer(lanes, server)
    assert caught.value.expected == 2
    assert lanes.unanswered == 0


@pytest.mark.parametrize("in_flight", [1, 3])
def test_a_session_that_is_gone_is_not_begun_again(clock: Clock, in_flight: int) -> None:
    """Unless it was told to be."""
    lanes, server = Lanes(clock.patience(), in_flight), Server()
    places = {
        "a": Place("a", step=4),
        "b": Place("b", step=4, on_gone="restart"),
    }
    for name in "bbb":
        put(lanes, places, name, [1.0])
    events = answer(lanes, server) + answer(lanes, server)
    events += answer(lanes, server) + answer(lanes, server)
    assert [event.step for event in events] == [1, 2, 3]
    put(lanes, places, "a", [1.0])
    with pytest.raises(SessionGone):
        answer(lanes, server)
    assert server.rows["a"] == []
    assert places["a"].step == 4


def test_an_answer_that_does_not_come_is_overdue(clock: Clock) -> None:
    """After `timeout_s`; the connection is then as good as cut."""
    lanes, places = Lanes(clock.patience(timeout_s=5)), dict[str, Place]()
    put(lanes, places, "a", [1.0])
    lanes.due()
    clock.now += 4.9
    assert not lanes.is_overdue
    assert lanes.wake_in_s() == pytest.approx(0.1)
    clock.now += 0.1
    assert lanes.is_overdue


def test_cuts_are_given_up_when_the_time_is_up(clock: Clock) -> None:
    """With what has no answer; an answer in between, or nobody who waits, begins it anew."""
    lanes, places, server = Lanes(clock.patience(retry_for_s=10)), dict[str, Place](), Server()
    for _ in range(20):
        clock.now += lanes.cut(OSError("refused"))  # nobody waits
    put(lanes, places, "a", [1.0])
    clock.now += lanes.cut(OSError("refused")) + 9
    assert len(answer(lanes, server)) == 1
    put(lanes, places, "a", [2.0])
    began = clock.now
    with pytest.raises(Unreachable, match="OSError: refused") as caught:
        while True:
            clock.now += lanes.cut(OSError("refused"))
    assert 4 < clock.now - began < 10
    assert [(one.session_id, one.x) for one in caught.value.unacknowledged] == [("a", [[2.0]])]


def test_an_answer_to_nothing_is_no_answer(clock: Clock) -> None:
    """Nor is one at another step than the request's."""
    lanes, places = Lanes(clock.patience()), dict[str, Place]()
    with pytest.raises(Unreachable, match="to no request"):
        lanes.answered(_reply("a", 1, True, [[1.0]]))
    put(lanes, places, "a", [1.0])
    lanes.due()
    with pytest.raises(Unreachable, match="step 7 answers no request, expected 1"):
        lanes.answered(_reply("a", 7, True, [[1.0]]))


def test_a_place_is_moved_by_one_thing_at_a_time(clock: Clock) -> None:
    """A second stream is refused; so is one over a request that has no answer."""
    lanes, places = Lanes(clock.patience()), {"a": Place("a", step=0)}
    put(lanes, places, "a", [1.0])
    with pytest.raises(RuntimeError, match="moved by an open stream"):
        put(Lanes(clock.patience()), places, "a", [1.0])
    lanes.due()
    lanes.let_go()
    with pytest.raises(RuntimeError, match="has no answer, at step 0"):
        put(Lanes(clock.patience()), places, "a", [1.0])
