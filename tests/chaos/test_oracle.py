"""The oracle finds what it is there for, and nothing else."""

import dataclasses

import numpy as np
import pytest

from service.model import Model
from tests.chaos.oracle import Chunk, Ledger, Rows

ID = "s"


def rows(seed: int, steps: int) -> Rows:
    rng = np.random.default_rng(seed)
    return tuple((float(value),) for value in rng.normal(size=steps))


def chunks(*steps: int, seed: int = 0, session_id: str = ID) -> list[Chunk]:
    """Chunks of so many steps, one after another."""
    found: list[Chunk] = []
    for n, count in enumerate(steps):
        start = found[-1].end if found else 0
        found.append(Chunk(session_id, start, rows(100 * seed + n, count)))
    return found


def advance(model: Model, state: bytes, chunk: Chunk) -> tuple[Rows, bytes]:
    (y,), (state,), _ = model.run([model.encode(np.array(chunk.x))], [state])
    return tuple(tuple(float(str(v)) for v in row) for row in model.decode(y)), state


def play(model: Model, history: list[Chunk], silent: tuple[int, ...] = ()) -> Ledger:
    """A server that runs `history`; the replies to the chunks at the places `silent` are lost."""
    ledger = Ledger()
    state = model.initial_state
    for n, chunk in enumerate(history):
        y, state = advance(model, state, chunk)
        if n not in silent:
            ledger.acknowledge(chunk, y)
    return ledger


def verdict(model: Model, ledger: Ledger, stand: int) -> str:
    return "; ".join(map(str, ledger.judge(model, {ID: stand})))


def test_a_history_that_kept_every_promise_has_no_fault(model: Model) -> None:
    """Replies that came twice count once."""
    history = chunks(1, 5, 2)
    ledger = play(model, history)
    ledger.acknowledge(history[2], ledger.acknowledged[history[2]])
    assert (verdict(model, ledger, 8), ledger.steps) == ("", 8)


def test_a_lost_step_is_found(model: Model) -> None:
    """The server went back to a state that it had before."""
    history = chunks(1, 5, 2)
    assert "lost: the server holds 6 steps, 8 were" in verdict(model, play(model, history), 6)


def test_a_step_that_nobody_was_told_of_is_found(model: Model) -> None:
    """The server moved on, and no client has an answer or a doubt."""
    history = chunks(1, 5, 2)
    assert "lost" in verdict(model, play(model, history, silent=(1,)), 8)


def test_a_step_that_was_run_twice_is_found(model: Model) -> None:
    """Its index moved once, the state twice."""
    history = chunks(1, 1, 2)
    ledger = play(model, [history[0], history[1], history[1]][:2])
    state = model.initial_state
    for chunk in (history[0], history[1], history[1]):
        _, state = advance(model, state, chunk)
    y, _ = advance(model, state, history[2])
    ledger.acknowledge(history[2], y)
    assert "moved: y of step 2 of 4" in verdict(model, ledger, 4)


def test_another_sessions_state_is_found(model: Model) -> None:
    """y of this session from the state of another."""
    mine, others = chunks(2, 3), chunks(2, 3, seed=7)
    ledger = play(model, mine[:1])
    _, state = advance(model, model.initial_state, others[0])
    y, _ = advance(model, state, mine[1])
    ledger.acknowledge(mine[1], y)
    assert "mixed" in verdict(model, ledger, 5)


def test_two_answers_for_one_advance_are_found(model: Model) -> None:
    """Two clients were both told that they moved the session from step 2."""
    mine, others = chunks(2, 3), chunks(2, 3, seed=7)
    ledger = play(model, mine)
    ledger.acknowledge(others[1], ledger.acknowledged[mine[1]])
    assert "doubled" in verdict(model, ledger, 5)


def test_overlapping_answers_are_found(model: Model) -> None:
    """Another cut of the same steps was answered too."""
    mine = chunks(2, 3, 1)
    ledger = play(model, mine)
    inside = dataclasses.replace(mine[1], start=3)
    ledger.acknowledge(inside, ledger.acknowledged[mine[1]])
    assert "doubled" in verdict(model, ledger, 6)


def test_another_answer_to_a_retry_is_found(model: Model) -> None:
    """The same request, other y."""
    history = chunks(2)
    ledger = play(model, history)
    ledger.acknowledge(history[0], ((1.0,), (2.0,)))
    assert "answered twice, by other y" in verdict(model, ledger, 2)


def test_a_chunk_in_doubt_fills_the_gap_it_fits(model: Model) -> None:
    """Of two in doubt at one place, the one that was run; without it the chain is broken."""
    history, others = chunks(2, 3, 1), chunks(2, 3, 1, seed=7)
    ledger = play(model, history, silent=(1,))
    ledger.doubt(others[1])
    assert "mixed or moved: y of step 5 of 6" in verdict(model, ledger, 6)
    ledger.doubt(history[1])
    assert verdict(model, ledger, 6) == ""


@pytest.mark.parametrize("last", [0, 1])
def test_a_single_wrong_bit_is_found(model: Model, last: int) -> None:
    """In the first row or the last."""
    history = chunks(4)
    ledger = play(model, history)
    (y,) = ledger.acknowledged.values()
    wrong = [list(row) for row in y]
    wrong[-last][0] = float(str(np.nextafter(np.float32(wrong[-last][0]), np.float32(9))))
    ledger.acknowledged[history[0]] = tuple(tuple(row) for row in wrong)
    assert f"y of step {3 * last} of 4" in verdict(model, ledger, 4)
