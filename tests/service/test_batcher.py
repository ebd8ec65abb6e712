"""The laws of the batcher, on jobs that only count."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batcher import Batcher, Row
from service.errors import CapacityError


@dataclass(eq=False)
class Count:
    """A job of `steps` steps."""

    key: str
    steps: int = 1
    model: str = "m"
    done: int = 0
    number: int = field(default=0)
    runs_apart: bool = False
    rows: int = 1
    tenant: str = ""

    @property
    def steps_left(self) -> int:
        return self.steps - self.done


def batcher(max_batch: int = 4, max_queue: int = 100, slice_steps: int = 8) -> Batcher[Count]:
    return Batcher(max_batch, max_queue, slice_steps)


def finish(b: Batcher[Count], rows: list[Row[Count]]) -> None:
    for row in rows:
        row.job.done += row.steps
        b.release(row.job, finished=row.job.steps_left == 0)


def names(rows: list[Row[Count]]) -> list[str]:
    return [row.job.key for row in rows]


def test_whatever_waits_runs_together() -> None:
    """Nothing waits for a batch to fill."""
    b = batcher()
    for name in "abc":
        b.add(Count(name))
    assert names(b.take()) == ["a", "b", "c"]
    assert b.take() == []


def test_a_batch_has_at_most_max_batch_rows_and_the_rest_come_next() -> None:
    """In order of arrival."""
    b = batcher(max_batch=2)
    for name in "abc":
        b.add(Count(name))
    assert names(b.take()) == ["a", "b"]
    assert names(b.take()) == ["c"]


def test_one_session_has_one_row_in_a_batch_and_its_jobs_run_in_order() -> None:
    """The second waits until the first has finished, whoever else runs."""
    b = batcher()
    first, second = Count("a", number=1), Count("a", number=2)
    b.add(first)
    b.add(second)
    b.add(Count("b"))
    rows = b.take()
    assert [(row.job.key, row.job.number) for row in rows] == [("a", 1), ("b", 0)]
    assert b.take() == []
    finish(b, rows)
    assert [row.job for row in b.take()] == [second]


def test_a_batch_is_of_one_model_and_models_take_turns() -> None:
    """A busy model does not starve a quiet one."""
    b = batcher(max_batch=2)
    for name in "abcd":
        b.add(Count(name, model="busy"))
    b.add(Count("z", model="quiet"))
    taken = [b.take() for _ in range(3)]
    assert [names(rows) for rows in taken] == [["a", "b"], ["z"], ["c", "d"]]


def test_chunks_of_all_lengths_share_a_batch_and_single_steps_have_their_own() -> None:
    """What different lengths cost is the model's affair; a single step never waits for a row."""
    b = batcher(slice_steps=128, max_batch=9)
    for name, steps in [("a", 1), ("b", 2), ("c", 7), ("d", 8), ("e", 131), ("f", 1)]:
        b.add(Count(name, steps))
    taken = [b.take() for _ in range(2)]
    assert [names(rows) for rows in taken] == [["a", "f"], ["b", "c", "d", "e"]]
    assert [row.steps for rows in taken for row in rows] == [1, 1, 2, 7, 8, 128]


def test_a_long_chunk_runs_in_slices_between_which_others_have_their_turn() -> None:
    """Whoever comes while a slice runs waits for that slice only."""
    b = batcher(slice_steps=8)
    b.add(Count("long", 20))
    first = b.take()
    assert [row.steps for row in first] == [8]
    b.add(Count("short"))
    finish(b, first)
    assert names(b.take()) == ["short"]
    second = b.take()
    assert (names(second), second[0].steps) == (["long"], 8)
    finish(b, second)
    third = b.take()
    assert (names(third), third[0].steps) == (["long"], 4)


def test_jobs_that_run_apart_have_a_batch_each_and_others_their_turn_between() -> None:
    """Not all of their lane, nor as long a slice as where a slice is one call."""
    b = batcher(max_batch=64, slice_steps=128)
    for name in "abc":
        b.add(Count(name, 40, model="slow", runs_apart=True))
    for name in "xy":
        b.add(Count(name, 40, model="quick"))
    taken = [b.take() for _ in range(4)]
    assert [names(rows) for rows in taken] == [["a"], ["x", "y"], ["b"], ["c"]]
    assert [row.steps for rows in taken for row in rows] == [16, 40, 40, 16, 16]


def test_a_job_of_many_rows_shares_a_batch_that_has_room_for_all_of_them() -> None:
    """Else it is among the first of the next; one that no batch has room for goes alone."""
    b = batcher(max_batch=6)
    for name, rows in [("a", 1), ("wide", 4), ("b", 1), ("wider", 5), ("c", 1), ("vast", 9)]:
        b.add(Count(name, rows=rows))
    taken = [b.take() for _ in range(4)]
    expected = [["a", "wide", "b"], ["wider", "c"], ["vast"], []]
    assert [names(rows) for rows in taken] == expected


def test_a_job_of_many_rows_that_runs_apart_is_not_split() -> None:
    """All of it in one batch, and nobody beside it."""
    b = batcher(max_batch=2)
    for name in "ab":
        b.add(Count(name, rows=5, runs_apart=True))
    assert [names(b.take()) for _ in range(2)] == [["a"], ["b"]]


def test_a_parked_job_waits_until_it_is_woken() -> None:
    """First of its session all the while; nobody else waits for it."""
    b = batcher()
    first, second = Count("a", steps=2, number=1), Count("a", number=2)
    for job in (first, second, Count("b", steps=2)):
        b.add(job)
    rows = b.take()
    first.done += 1
    b.park(first)
    b.release(rows[1].job, finished=True)
    assert (b.take(), b.has_waiting, b.is_empty) == ([], False, False)
    b.wake(first)
    b.wake(first)
    woken = b.take()
    assert [row.job for row in woken] == [first]
    b.wake(first)  # it runs, and is not parked
    finish(b, woken)
    assert [row.job for row in b.take()] == [second]


def test_a_parked_job_is_discarded_like_a_waiting_one() -> None:
    """Its session goes on, and waking it does nothing."""
    b = batcher()
    first, second = Count("a", steps=2, number=1), Count("a", number=2)
    b.add(first)
    b.add(second)
    b.take()
    b.park(first)
    assert b.discard(first)
    b.wake(first)
    rows = b.take()
    assert [row.job for row in rows] == [second]
    finish(b, rows)
    assert b.is_empty


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    """What waits and what runs both count."""
    b = batcher(max_queue=2)
    b.add(Count("a"))
    rows = b.take()
    b.add(Count("a"))
    assert b.is_full_for("")
    with pytest.raises(
        CapacityError, match=r"2 requests are waiting, the server takes 2"
    ) as caught:
        b.add(Count("b"))
    assert caught.value.data == {"limit": "queue", "retry_after_s": 1}
    finish(b, rows)
    b.add(Count("b"))


def test_a_tenant_cannot_fill_the_queue_for_all() -> None:
    """Its share is full, others are taken; what leaves the queue, done or discarded, makes room."""
    b: Batcher[Count] = Batcher(9, 5, max_per_tenant=2, retry_after_s=lambda waiting: 10 * waiting)
    first, second = Count("a", tenant="acme"), Count("b", tenant="acme")
    b.add(first)
    b.add(second)
    with pytest.raises(CapacityError, match=r"2 of your requests are waiting, .* 2 of one") as own:
        b.add(Count("c", tenant="acme"))
    assert own.value.data == {"limit": "tenant_queue", "retry_after_s": 20}
    assert b.is_full_for("acme") and not b.is_full_for("zeta")
    assert b.discard(second)
    b.add(Count("c", tenant="acme"))
    for n, tenant in enumerate(["zeta", "zeta", "ops"]):
        b.add(Count(f"{tenant}-{n}", tenant=tenant))
    with pytest.raises(CapacityError, match="5 requests are waiting, the server takes 5") as whole:
        b.add(Count("d", tenant="ops"))
    assert whole.value.data == {"limit": "queue", "retry_after_s": 50}
    finish(b, b.take())
    assert not b.is_full_for("acme")


def test_a_discarded_job_never_runs_and_its_session_goes_on() -> None:
    """First, middle or last in its session's queue."""
    for gone in range(3):
        b = batcher()
        jobs = [Count("a", number=n) for n in range(3)]
        for job in jobs:
            b.add(job)
        assert b.discard(jobs[gone])
        assert not b.discard(jobs[gone])
        ran = []
        while rows := b.take():
            ran += [row.job.number for row in rows]
            finish(b, rows)
        assert ran == [n for n in range(3) if n != gone]
        assert b.is_empty


def test_a_running_job_is_not_discarded() -> None:
    """Its batch is under way; its result is committed."""
    b = batcher()
    job = Count("a")
    b.add(job)
    rows = b.take()
    assert b.is_running(job)
    assert not b.discard(job)
    finish(b, rows)
    assert b.is_empty


def test_a_job_put_back_stays_first_of_its_session() -> None:
    """As after a lost commit, or when its model had to be corrected."""
    b = batcher()
    first, second = Count("a", number=1), Count("a", number=2)
    b.add(first)
    b.add(second)
    b.take()
    first.model = "other"
    b.release(first, finished=False)
    assert [row.job for row in b.take()] == [first]


def test_last_of_is_the_latest_job_that_has_not_finished() -> None:
    """What a request that names no model goes by, before its session is known."""
    b = batcher()
    assert b.last_of("a") is None
    first, second = Count("a"), Count("a")
    b.add(first)
    b.add(second)
    assert b.last_of("a") is second
    finish(b, b.take())
    finish(b, b.take())
    assert b.last_of("a") is None


def test_tenants_take_turns_in_a_batch_and_from_batch_to_batch() -> None:
    """One job each while all have some; who had the last turn is the last in the next batch."""
    b = batcher(max_batch=4)
    for n in range(9):
        b.add(Count(f"flood-{n}", tenant="flood"))
    for name in ("x", "y"):
        b.add(Count(f"{name}-0", tenant=name))
        b.add(Count(f"{name}-1", tenant=name))
    taken = [names(b.take()) for _ in range(4)]
    assert taken == [
        ["flood-0", "x-0", "y-0", "flood-1"],
        ["x-1", "y-1", "flood-2", "flood-3"],
        ["flood-4", "flood-5", "flood-6", "flood-7"],
        ["flood-8"],
    ]


def test_a_wide_job_is_not_kept_out_by_the_single_rows_of_others() -> None:
    """Where it finds no room, its tenant is the first of the next batch; then others are."""
    b = batcher(max_batch=4)
    for n in range(2):
        b.add(Count(f"single-{n}", tenant="single"))
    for n in range(2):
        b.add(Count(f"wide-{n}", rows=4, tenant="wide"))
    b.add(Count("last", tenant="last"))
    taken = [names(b.take()) for _ in range(4)]
    assert taken == [["single-0", "last", "single-1"], ["wide-0"], ["wide-1"], []]


JOBS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.integers(1, 40), st.sampled_from("mn")), max_size=40
)


@given(
    jobs=JOBS,
    gaps=st.lists(st.integers(0, 5), min_size=40, max_size=40),
    widths=st.lists(st.integers(1, 3), min_size=40, max_size=40),
)
def test_every_job_runs_whole_once_and_in_the_order_of_its_session(
    jobs: list[tuple[str, int, str]], gaps: list[int], widths: list[int]
) -> None:
    """Whatever arrives, and whenever batches are taken in between."""
    b = batcher(max_batch=3, slice_steps=8)
    todo = [
        Count(name, steps, model, number=n, rows=widths[n])
        for n, (name, steps, model) in enumerate(jobs)
    ]
    finished: dict[str, list[int]] = {}

    def run_one() -> bool:
        rows = b.take()
        assert sum(row.job.rows for row in rows) <= 3
        assert all(count == 1 for count in Counter(names(rows)).values())
        assert len({row.job.model for row in rows}) <= 1
        assert all(1 <= row.steps <= 8 for row in rows)
        assert len({row.job.steps_left == 1 for row in rows}) <= 1
        for row in rows:
            if row.steps == row.job.steps_left:
                finished.setdefault(row.job.key, []).append(row.job.number)
        finish(b, rows)
        return bool(rows)

    for job, gap in zip(todo, gaps, strict=False):
        b.add(job)
        for _ in range(gap):
            run_one()
    while run_one():
        continue
    assert b.is_empty
    expected: dict[str, list[int]] = {}
    for job in todo:
        expected.setdefault(job.key, []).append(job.number)
    assert finished == expected


@given(waiting=st.integers(1, 12), long_steps=st.integers(100, 10_000))
def test_nobody_waits_for_more_than_the_slice_that_runs(waiting: int, long_steps: int) -> None:
    """However long the chunk, a single step that arrives is in the next batch but its lane's."""
    b = batcher(max_batch=20, slice_steps=8)
    b.add(Count("long", long_steps))
    running = b.take()
    for n in range(waiting):
        b.add(Count(str(n)))
    finish(b, running)
    assert len(b.take()) == waiting


TENANTS = st.lists(st.integers(1, 60), min_size=1, max_size=6)  # sessions of each that wait


@given(
    floods=TENANTS,
    own=st.integers(0, 3),
    max_batch=st.integers(1, 8),
    long_too=st.booleans(),
    before=st.integers(0, 3),
)
def test_how_long_a_job_waits_depends_on_the_number_of_tenants_alone(
    floods: list[int], own: int, max_batch: int, long_too: bool, before: int
) -> None:
    """Not on how many sessions others have waiting, who come again as soon as they are done."""
    b = batcher(max_batch=max_batch, max_queue=10_000)
    for number, sessions in enumerate(floods):
        for n in range(sessions):
            b.add(Count(f"{number}-{n}", tenant=str(number)))
            if long_too:
                b.add(Count(f"long-{number}-{n}", 10_000, tenant=str(number)))
    for _ in range(before):
        again(b)
    for n in range(own):
        b.add(Count(f"mine-{n}", tenant="me"))
    b.add(Count("late", tenant="me"))
    waited = 0
    while "late" not in again(b):
        waited += 1
    lanes = 2 if long_too else 1
    turns = (own + 1) * (len(floods) + 1)
    assert waited < lanes * -(-turns // max_batch) + (lanes - 1)


def again(b: Batcher[Count]) -> list[str]:
    """Run a batch; whoever is done comes again with the same. The names in it."""
    rows = b.take()
    finish(b, rows)
    for row in rows:
        if row.job.steps_left == 0:
            b.add(Count(row.job.key, row.job.steps, tenant=row.job.tenant))
    return names(rows)


@given(widths=st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=4), min_size=1, max_size=5))
def test_jobs_of_any_width_have_their_turn(widths: list[list[int]]) -> None:
    """At the latest once every other tenant, whose jobs never end, has had a batch for itself."""
    b = batcher(max_batch=8, max_queue=10_000)
    for number, wide in enumerate(widths):
        for n, width in enumerate(wide):
            b.add(Count(f"{number}-{n}", 10_000, rows=width, tenant=str(number)))
    finish(b, b.take())
    b.add(Count("mine", 2, rows=8, tenant="me"))
    waited = 0
    while "mine" not in names(rows := b.take()):
        finish(b, rows)
        waited += 1
    assert waited <= len(widths)


@given(streams=st.integers(1, 12), steps=st.integers(1_000, 1_000_000), batches=st.integers(0, 5))
def test_long_streams_cost_a_single_step_one_batch(streams: int, steps: int, batches: int) -> None:
    """Sessions that stream a million steps each: a step that comes is in the batch after the one
    that runs, or after one more."""
    b = batcher(max_batch=4)
    for n in range(streams):
        b.add(Count(f"long-{n}", steps))
    for _ in range(batches):
        finish(b, b.take())
    running = b.take()
    b.add(Count("one"))
    finish(b, running)
    waited = 0
    while "one" not in names(rows := b.take()):
        finish(b, rows)
        waited += 1
    assert waited <= 1
