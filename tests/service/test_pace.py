"""The estimate behind Retry-After."""

import pytest

from service.pace import LONGEST_S, Pace


def test_before_anything_ran_a_full_queue_is_a_second() -> None:
    """A guess, which the first batches replace."""
    assert Pace(4096).retry_after_s(4096) == 1


@pytest.mark.parametrize(
    ("finished", "running_s", "waiting", "wait_s"),
    [
        (100, 1.0, 1000, 10),  # 100 a second
        (64, 0.002, 4096, 1),  # 32,000 a second: at least one second
        (1, 2.0, 20, 40),  # a slow model
        (1, 60.0, 4096, LONGEST_S),
        (0, 60.0, 1, LONGEST_S),  # nothing was finished in a minute
    ],
)
def test_what_waits_is_done_at_the_pace_of_what_was_done(
    finished: int, running_s: float, waiting: int, wait_s: int
) -> None:
    """Whole seconds, from 1 to 60."""
    pace = Pace(1)
    for _ in range(200):
        pace.note(finished, running_s)
    assert abs(pace.retry_after_s(waiting) - wait_s) <= 1
    assert isinstance(pace.retry_after_s(waiting), int)


def test_a_change_of_pace_is_believed_within_seconds() -> None:
    """From 1000 requests a second to 10: after twenty seconds of that, most of the way."""
    pace = Pace(1000)
    for _ in range(1000):
        pace.note(10, 0.01)
    assert pace.retry_after_s(300) == 1
    for _ in range(200):
        pace.note(1, 0.1)
    assert 20 <= pace.retry_after_s(300) <= 30


def test_an_idle_server_keeps_its_pace() -> None:
    """Only time in which something ran counts."""
    pace = Pace(1)
    pace.note(1000, 10.0)
    before = pace.retry_after_s(1000)
    pace.note(0, 0.0)
    assert pace.retry_after_s(1000) == before
    assert 10 <= before <= 11
