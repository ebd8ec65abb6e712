"""The transition table, every cell."""

import numpy as np
import pytest

from service.errors import ClientError, ModelConflictError, SessionGoneError, StepConflictError
from service.session import (
    TRANSITIONS,
    Ask,
    LastReply,
    Move,
    Record,
    Situation,
    advance,
    begin,
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


def test_the_table_knows_every_situation_and_leads_to_what_the_design_says() -> None:
    """Three situations run or replay, three are refused."""
    assert {
        Situation.NEW: Move.BEGIN,
        Situation.GONE: SessionGoneError,
        Situation.ELSEWHERE: ModelConflictError,
        Situation.NEXT: Move.ADVANCE,
        Situation.AGAIN: Move.REPLAY,
        Situation.MISPLACED: StepConflictError,
    } == TRANSITIONS
    assert set(TRANSITIONS) == set(Situation) == {expected for *_, expected in CELLS}


@pytest.mark.parametrize(("asked", "record", "found"), CELLS)
def test_decide_does_what_the_table_says(
    asked: Ask, record: Record | None, found: Situation
) -> None:
    """A move is returned, a refusal raised."""
    outcome = TRANSITIONS[found]
    if isinstance(outcome, Move):
        assert decide(asked, record) is outcome
    else:
        with pytest.raises(outcome):
            decide(asked, record)


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
