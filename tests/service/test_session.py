"""The transition table, every cell."""

from dataclasses import replace

import numpy as np
import pytest

from service.errors import (
    ClientError,
    ModelConflictError,
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
    situation,
)

ROWS = np.array([[0.5], [0.25]], np.float32)
SAME, OTHER = digest_of(ROWS), digest_of(ROWS + 1)

RECORD = Record(
    birth=7,
    model="sine-cell",
    version="aaaa",
    step=40,
    state=b"state",
    last=LastReply(step=38, digest=SAME, y=b"reply", created=False),
)


def ask(step: int | None, digest: bytes = OTHER, model: str | None = None) -> Ask:
    return Ask("s-12", step, digest, model)


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
]


@pytest.mark.parametrize(("asked", "record", "expected"), CELLS)
def test_each_request_is_in_one_situation(
    asked: Ask, record: Record | None, expected: Situation
) -> None:
    """The situation follows from the record and the request alone."""
    assert situation(asked, record) is expected


def test_the_table_knows_every_situation_of_every_act() -> None:
    """Each cell as the design says; a row for each act, a column for each situation."""
    gone, other, misplaced = SessionGoneError, ModelConflictError, StepConflictError
    none, there = SessionNotFoundError, SessionExistsError
    rows: dict[Act, list[Move | type[ClientError]]] = {
        # no record, none at step > 0, another model, next, again, any other step
        Act.ADVANCE: [Move.BEGIN, gone, other, Move.ADVANCE, Move.REPLAY, misplaced],
        Act.COPY: [none, none, other, Move.READ, misplaced, misplaced],
        Act.CREATE: [Move.PUT, Move.PUT, there, there, there, there],
        Act.REPLACE: [Move.PUT, Move.PUT, other, Move.PUT, misplaced, misplaced],
        Act.DROP: [none, none, other, Move.FORGET, misplaced, misplaced],
    }
    assert {
        act: dict(zip(Situation, cells, strict=True)) for act, cells in rows.items()
    } == TRANSITIONS
    assert set(rows) == set(Act)
    assert set(Situation) == {expected for *_, expected in CELLS}


@pytest.mark.parametrize("act", Act)
@pytest.mark.parametrize(("asked", "record", "found"), CELLS)
def test_decide_does_what_the_table_says(
    asked: Ask, record: Record | None, found: Situation, act: Act
) -> None:
    """A move is returned, a refusal raised."""
    asked = replace(asked, act=act)
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


def test_the_digest_tells_rows_apart() -> None:
    """One changed bit is another request."""
    changed = ROWS.copy()
    changed[1, 0] = np.nextafter(changed[1, 0], np.float32(1))
    assert digest_of(ROWS.copy()) == SAME
    assert digest_of(changed) != SAME
