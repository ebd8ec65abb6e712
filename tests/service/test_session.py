"""The transition table, every cell."""

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from service.errors import (
    ClientError,
    IdempotencyConflictError,
    ModelConflictError,
    RequestError,
    SessionExistsError,
    SessionGoneError,
    SessionNotFoundError,
    StepConflictError,
)
from service.session import (
    TRANSITIONS,
    Act,
    Ask,
    LastReply,
    Move,
    Record,
    Situation,
    advance,
    begin,
    copy_of,
    decide,
    digest_of,
    digest_of_key,
    situation,
)

ROWS = np.array([[0.5], [0.25]], np.float32)
SAME, OTHER = digest_of(ROWS), digest_of(ROWS + 1)

KEY, OTHER_KEY = digest_of_key("a4c1"), digest_of_key("a4c2")

RECORD = Record(
    birth=7,
    model="sine-cell",
    version="aaaa",
    step=40,
    state=b"state",
    last=LastReply(step=38, digest=SAME, y=b"reply", created=False),
)


FIRST = replace(RECORD, step=2, last=LastReply(0, SAME, b"reply", created=True))
KEYED = replace(RECORD, last=replace(RECORD.last, key_digest=KEY))


def ask(step: int | None, digest: bytes = OTHER, model: str | None = None, **also: Any) -> Ask:
    return Ask("s-12", step, digest, model, **also)


def start(step: int | None, digest: bytes = OTHER, model: str | None = None, **also: Any) -> Ask:
    return Ask("s-12", step, digest, model, Act.START, **also)


CELLS: list[tuple[Ask, Record | None, Situation]] = [
    (ask(None), None, Situation.NEW),
    (ask(0), None, Situation.NEW),
    (ask(1), None, Situation.GONE),
    (ask(40), None, Situation.GONE),
    (ask(None), RECORD, Situation.NEXT),
    (ask(None, SAME), RECORD, Situation.NEXT),  # without a step nothing is a retry
    (ask(40), RECORD, Situation.NEXT),
    (ask(40, SAME), RECORD, Situation.NEXT),  # the same rows, one place further on
    (ask(38, SAME), RECORD, Situation.AGAIN),
    (ask(38, OTHER), RECORD, Situation.MISPLACED),  # the same place, other rows
    (ask(39, SAME), RECORD, Situation.MISPLACED),
    (ask(0, SAME), RECORD, Situation.MISPLACED),
    (ask(41), RECORD, Situation.MISPLACED),
    (ask(None, model="sine-cell"), RECORD, Situation.NEXT),
    (ask(None, model="sine-cell:aaaa"), RECORD, Situation.NEXT),
    (ask(38, SAME, model="sine-cell:aaaa"), RECORD, Situation.AGAIN),
    (ask(None, model="sine-cell:bbbb"), RECORD, Situation.ELSEWHERE),
    (ask(None, model="series-lstm"), RECORD, Situation.ELSEWHERE),
    (ask(38, SAME, model="series-lstm"), RECORD, Situation.ELSEWHERE),  # not even a retry
    (ask(None, model="series-lstm"), None, Situation.NEW),
    # An idempotency key says what a step says, where there is no step.
    (ask(None, SAME, key_digest=KEY), KEYED, Situation.AGAIN),
    (ask(None, OTHER, key_digest=KEY), KEYED, Situation.REUSED),
    (ask(None, SAME, key_digest=OTHER_KEY), KEYED, Situation.NEXT),
    (ask(None, SAME), KEYED, Situation.NEXT),
    (ask(None, SAME, key_digest=KEY), RECORD, Situation.NEXT),
    (ask(None, SAME, key_digest=KEY), None, Situation.NEW),
    (ask(40, SAME, key_digest=KEY), KEYED, Situation.NEXT),  # the step alone decides
    (ask(39, SAME, key_digest=KEY), KEYED, Situation.MISPLACED),
    (ask(38, OTHER, key_digest=KEY), KEYED, Situation.MISPLACED),
    (ask(38, SAME, key_digest=OTHER_KEY), KEYED, Situation.AGAIN),
    (ask(None, SAME, "series-lstm", key_digest=KEY), KEYED, Situation.ELSEWHERE),
    # What ends its session leaves no reply, so it is nothing that was answered before.
    (ask(None, ends=True), RECORD, Situation.NEXT),
    (ask(40, ends=True), RECORD, Situation.NEXT),
    (ask(38, SAME, ends=True), RECORD, Situation.MISPLACED),
    (ask(None, SAME, ends=True, key_digest=KEY), KEYED, Situation.REUSED),
    (ask(38, ends=True), None, Situation.GONE),
]
STARTS: list[tuple[Ask, Record | None, Situation]] = [
    (start(None), None, Situation.NEW),
    (start(0), None, Situation.NEW),
    (start(3), None, Situation.GONE),
    (start(None), RECORD, Situation.NEXT),
    (start(0), RECORD, Situation.NEXT),  # it begins anew, so it belongs at 0
    (start(0, SAME), RECORD, Situation.NEXT),
    (start(40), RECORD, Situation.MISPLACED),
    (start(38, SAME), RECORD, Situation.AGAIN),
    (start(None, SAME), FIRST, Situation.NEXT),
    (start(0, SAME), FIRST, Situation.AGAIN),
    (start(0, OTHER), FIRST, Situation.NEXT),
    (start(0, SAME, ends=True), FIRST, Situation.NEXT),
    (start(None, SAME, key_digest=KEY), KEYED, Situation.AGAIN),
    (start(None, OTHER, key_digest=KEY), KEYED, Situation.REUSED),
    (start(None, OTHER, key_digest=OTHER_KEY), KEYED, Situation.NEXT),
    (start(None, model="series-lstm"), RECORD, Situation.ELSEWHERE),
    (start(None, model="sine-cell:bbbb"), RECORD, Situation.NEXT),  # another version will do
    (start(0, SAME, "sine-cell:aaaa"), FIRST, Situation.AGAIN),
    (start(0, SAME, "sine-cell:bbbb"), FIRST, Situation.NEXT),  # that was not asked before
]


@pytest.mark.parametrize(("asked", "record", "expected"), CELLS + STARTS)
def test_each_request_is_in_one_situation(
    asked: Ask, record: Record | None, expected: Situation
) -> None:
    """The situation follows from the record and the request alone."""
    assert situation(asked, record) is expected


def test_the_table_knows_every_situation_of_every_act() -> None:
    """Each cell as the design says; a row for each act, a column for each situation."""
    gone, other, misplaced = SessionGoneError, ModelConflictError, StepConflictError
    none, there, used = SessionNotFoundError, SessionExistsError, IdempotencyConflictError
    absurd = RequestError
    rows: dict[Act, list[Move | type[ClientError]]] = {
        # no record, none at step > 0, another model, next, again, any other step, key used
        Act.ADVANCE: [Move.BEGIN, gone, other, Move.ADVANCE, Move.REPLAY, misplaced, used],
        Act.START: [Move.BEGIN, absurd, other, Move.BEGIN, Move.REPLAY, absurd, used],
        Act.CONTINUE: [gone, gone, other, Move.ADVANCE, Move.REPLAY, misplaced, used],
        Act.COPY: [none, none, other, Move.READ, misplaced, misplaced, used],
        Act.CREATE: [Move.PUT, Move.PUT, there, there, there, there, there],
        Act.REPLACE: [Move.PUT, Move.PUT, other, Move.PUT, misplaced, misplaced, used],
        Act.DROP: [none, none, other, Move.FORGET, misplaced, misplaced, used],
    }
    assert {
        act: dict(zip(Situation, cells, strict=True)) for act, cells in rows.items()
    } == TRANSITIONS
    assert set(rows) == set(Act)
    assert set(Situation) == {expected for *_, expected in CELLS}


@pytest.mark.parametrize(
    ("asked", "record", "found"),
    [
        (replace(asked, act=act), record, found)
        for asked, record, found in CELLS
        for act in Act
        if act is not Act.START
    ]
    + STARTS,
)
def test_decide_does_what_the_table_says(
    asked: Ask, record: Record | None, found: Situation
) -> None:
    """A move is returned, a refusal raised."""
    act = asked.act
    outcome = TRANSITIONS[act][found]
    if isinstance(outcome, Move):
        assert decide(asked, record) is outcome
    else:
        with pytest.raises(outcome):
            decide(asked, record)


def test_a_promoted_session_is_found_under_both_versions() -> None:
    """The one that it stands on, and the one that its next request moves it to."""
    for version in ("aaaa", "bbbb"):
        named = ask(None, model=f"sine-cell:{version}")
        assert situation(named, RECORD, goal="bbbb") is Situation.NEXT
    assert situation(ask(None, model="sine-cell:cccc"), RECORD, "bbbb") is Situation.ELSEWHERE
    assert situation(ask(None, model="other:bbbb"), RECORD, "bbbb") is Situation.ELSEWHERE


def test_a_copy_is_the_same_but_for_its_birth_and_version() -> None:
    """The last reply is copied with it: a retry of it, sent to the copy, gets it."""
    copy = copy_of(RECORD, birth=8)
    assert copy == replace(RECORD, birth=8)
    assert situation(ask(38, SAME), copy) is Situation.AGAIN
    assert copy_of(RECORD, 8, "bbbb") == replace(RECORD, birth=8, version="bbbb")


@pytest.mark.parametrize(
    ("asked", "record", "status", "data", "message"),
    [
        (
            ask(38),
            RECORD,
            409,
            {"session_id": "s-12", "expected": 40, "got": 38},
            "session `s-12` stands at step 40, request says 38; resend from step 40 or drop `step`",
        ),
        (
            ask(3),
            None,
            410,
            {"session_id": "s-12", "expected": 0, "got": 3},
            "session `s-12` is gone or never began, request says step 3; begin again with step 0",
        ),
        (
            ask(None, model="series-lstm"),
            RECORD,
            409,
            {"session_id": "s-12", "expected": "sine-cell:aaaa", "got": "series-lstm"},
            "session `s-12` lives on sine-cell:aaaa, request says series-lstm; "
            "drop `model` or use another session_id",
        ),
        (
            Ask("s-12", act=Act.CREATE),
            RECORD,
            409,
            {"session_id": "s-12", "model": "sine-cell", "version": "aaaa", "step": 40},
            "session `s-12` is there already, on sine-cell:aaaa at step 40; "
            "use another session_id, or drop it first",
        ),
        (
            Ask("s-12", act=Act.DROP),
            None,
            404,
            {"session_id": "s-12"},
            "there is no session `s-12`; it never began, expired, or was dropped",
        ),
        (
            start(3),
            RECORD,
            400,
            {"session_id": "s-12", "expected": 0, "got": 3},
            "`step` is 3 in a request that begins session `s-12`, expected 0 or none",
        ),
        (
            ask(None, act=Act.CONTINUE),
            None,
            410,
            {"session_id": "s-12", "expected": 0},
            "session `s-12` is gone or never began; "
            "the first request of a sequence must specify START",
        ),
        (
            ask(7, act=Act.CONTINUE),
            None,
            410,
            {"session_id": "s-12", "expected": 0, "got": 7},
            "session `s-12` is gone or never began, request says step 7; "
            "the first request of a sequence must specify START",
        ),
        (
            ask(None, key_digest=KEY),
            KEYED,
            422,
            {"session_id": "s-12", "step": 40},
            "the last request of session `s-12` had this idempotency key and was another one; the "
            "session stands at step 40; use a new key for each request, and the same one only to "
            "send that request again",
        ),
    ],
)
def test_a_refusal_says_what_was_expected_and_what_came(
    asked: Ask, record: Record | None, status: int, data: dict[str, object], message: str
) -> None:
    """Thing, got, expected, then what to do."""
    with pytest.raises(ClientError) as caught:
        decide(asked, record)
    assert (caught.value.status, caught.value.data) == (status, data)
    assert caught.value.message == message


def test_a_new_session_starts_at_step_0_and_has_no_reply_to_repeat() -> None:
    """Nothing can be taken for a retry of what was never asked."""
    record = begin(birth=1, model="m", version="v", state=b"zero")
    assert (record.step, record.state) == (0, b"zero")
    assert situation(ask(0, b""), record) is Situation.NEXT


def test_advance_moves_the_step_and_keeps_the_reply() -> None:
    """The new record is the old one, `steps` later."""
    y = np.array([[1.5], [2.5]], np.float32)
    after = advance(RECORD, ask(40, SAME), 2, y, b"next", created=False)
    assert (after.birth, after.model, after.version) == (7, "sine-cell", "aaaa")
    assert (after.step, after.state) == (42, b"next")
    assert after.last == LastReply(40, SAME, y.astype("<f4").tobytes(), created=False)
    assert situation(ask(40, SAME), after) is Situation.AGAIN
    assert RECORD.step == 40


def test_the_last_reply_remembers_the_key_and_that_it_began_anew() -> None:
    """So that the same is told again, whatever the session did before."""
    y = np.array([[1.5]], np.float32)
    asked = start(None, SAME, key_digest=KEY)
    after = advance(begin(8, "m", "v", b""), asked, 1, y, b"", created=True, restarted=True)
    assert (after.last.created, after.last.restarted, after.last.key_digest) == (True, True, KEY)
    assert situation(asked, after) is Situation.AGAIN
    assert advance(RECORD, ask(None), 1, y, b"", created=False).last.key_digest == b""


def test_what_is_kept_of_a_key_does_not_grow_with_it() -> None:
    """16 bytes, or none where there was no key; the empty key is one."""
    assert digest_of_key(None) == b""
    assert {len(digest_of_key(key)) for key in ("", "a", "a" * 255)} == {16}


def test_the_digest_tells_rows_apart() -> None:
    """One changed bit is another request."""
    changed = ROWS.copy()
    changed[1, 0] = np.nextafter(changed[1, 0], np.float32(1))
    assert digest_of(ROWS.copy()) == SAME
    assert digest_of(changed) != SAME
