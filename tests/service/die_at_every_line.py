"""`python die_at_every_line.py DIRECTORY DURABILITY`: a writer dies before each line, in turn.

A process that runs the history below is killed before the n-th line that it executes in the store's
own modules, in functions that write, for every n. After each death another process opens the store,
and every session must be as the acknowledged commits left it, or as the one that was under way
would have. Every tenth time the one that puts it right is killed too, at a line of its own.
"""

import asyncio
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from service.session import Record, SessionKey
from service.store import Commit, Outcome
from service.store.disk import index as index_module
from service.store.disk import slots as slots_module
from service.store.disk.machine import Machine
from service.store.disk.store import DiskStore, Durability
from tests.service.disk_checks import assert_sound, commit_any_way, key, record_of

TIMEOUT_S = 10.0
A, B, C, D = key("A"), key("B", "tenant"), key("C"), key("D", "other")
State = dict[SessionKey, Record | None]


# Their lines write nothing to the files: to die there is to die before the next line that does.
PURE = frozenset(
    {
        *("find", "read", "seat", "hash_of", "as_bytes", "file", "at", "refresh", "_now_ms"),
        *("_look_again", "_gather", "_joined", "_slot_rows", "_alike", "_first_due", "_sums"),
        *("_filesystem_of", "map_file", "<listcomp>", "<dictcomp>", "<genexpr>"),
    }
)


@dataclass(frozen=True)
class Batch:
    """What is committed at once, and how long before it nothing happened."""

    after: State
    wait_s: float = 0.0


HISTORY = [
    Batch({A: record_of(1, 100), B: record_of(1, 2000)}),
    Batch({A: record_of(2, 100), B: record_of(2, 2000), C: record_of(1, 100)}, 6.0),
    Batch({A: record_of(3, 900), C: None}),
    Batch({C: record_of(1, 100, birth=2), D: record_of(1, 300)}),
    Batch({A: record_of(4, 100), D: record_of(2, 300)}, 6.0),  # B's time is up
    Batch({B: record_of(1, 2000, birth=2)}),
    Batch({A: record_of(5, 100), D: record_of(3, 300)}, 9.0),  # and now C's, and the last sweep's
    Batch({A: record_of(6, 100), D: record_of(4, 100)}),
    Batch({A: record_of(7, 100), D: record_of(5, 100)}),
]


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1e9 + self.now


def before_and_after(acknowledged: int) -> Iterator[tuple[float, State, State]]:
    """When the writer died, and what the sessions may be: without the batch under way, and with."""
    clock, due = Clock(), dict[SessionKey, float]()
    state: State = dict.fromkeys((A, B, C, D))
    for number, batch in enumerate([*HISTORY, Batch({})]):
        clock.now += batch.wait_s
        for one, until in due.items():
            if until <= clock.now:
                state[one] = None
        after = {**state, **batch.after}
        if number == acknowledged:
            yield clock.now, state, after
            return
        due |= dict.fromkeys(batch.after, clock.now + TIMEOUT_S)
        state = after


def write(path: Path, durability: Durability, acknowledge: Callable[[], object]) -> None:
    clock = Clock()
    store = DiskStore(path, 10, TIMEOUT_S, durability, Machine(1, clock, clock.wall))

    async def run() -> None:
        for batch in HISTORY:
            clock.now += batch.wait_s
            held = await store.get(list(batch.after))
            commits = [
                Commit(one, before, after)
                for (one, after), before in zip(batch.after.items(), held, strict=True)
            ]
            assert set(await commit_any_way(store, commits)) == {Outcome.DONE}
            acknowledge()
        await store.sweep()
        await store.close()

    asyncio.run(run())


def die_before(line: int) -> None:
    """Let this process be killed before the n-th line that it runs in the store."""
    ours = os.path.dirname(slots_module.__file__)
    left = itertools.count(line, -1)

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(ours) or code.co_name in PURE:
            return None
        if event == "line" and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    import threading

    threading.settrace(trace)


def in_a_process(what: Callable[[], object]) -> bool:
    """Whether it lived to the end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            what()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("the writer failed, which is not dying")
    return not os.WIFSIGNALED(status)


def check(path: Path, durability: Durability, acknowledged: int, boot: int) -> None:
    """In the next process: all is there, and it goes on."""
    ((now, before, after),) = before_and_after(acknowledged)
    clock = Clock(now)
    machine = Machine(boot, clock, clock.wall)
    store = DiskStore(path, 10, TIMEOUT_S, durability, machine)

    async def run() -> None:
        await store.commit([])  # the first to have the lock puts it right
        assert_sound(store)
        found = await store.get(list(before))
        for one, record in zip(before, found, strict=True):
            assert record in (before[one], after[one]), (one, record, acknowledged)
        count = sum(record is not None for record in found)
        assert await store.count() == count
        for one, record in zip(before, found, strict=True):
            step = 0 if record is None else record.step
            outcomes = await store.commit([Commit(one, record, record_of(step + 1, 500))])
            assert outcomes == [Outcome.DONE]
        assert await store.get(list(before)) == [
            record_of(1 if record is None else record.step + 1, 500) for record in found
        ]
        assert_sound(store)
        await store.close()

    asyncio.run(run())


def main(root: Path, durability: Durability, first: int = 0) -> None:
    slots_module.GROW_BYTES = 1 << 13  # so that files grow here
    index_module.CROWDED = 1e-3  # and that the index is written anew for a tomb or two
    for line in itertools.count(first):
        path = root / str(line)
        reader, writer = os.pipe()

        def child(path: Path = path, line: int = line, writer: int = writer) -> None:
            die_before(line)
            write(path, durability, lambda: os.write(writer, b"."))

        lived = in_a_process(child)
        os.close(writer)
        acknowledged = len(os.read(reader, 100))
        os.close(reader)
        if line % 10 == 0 and not lived:

            def second(path: Path = path, line: int = line, seen: int = acknowledged) -> None:
                die_before(line // 10)
                check_only_open(path, durability, seen)

            in_a_process(second)
        boot = 2 if durability == "power" and line % 10 in (0, 1, 3, 5) else 1
        try:
            check(path, durability, acknowledged, boot)
        except BaseException:
            print(f"after a death before line {line}, with {acknowledged} batches acknowledged:")
            raise
        shutil.rmtree(path)
        if line % 100 == 0:
            print(line, flush=True)
        if lived:
            print(f"{line} deaths")
            return


def check_only_open(path: Path, durability: Durability, acknowledged: int) -> None:
    ((now, _, _),) = before_and_after(acknowledged)
    boot = 2 if durability == "power" else 1
    clock = Clock(now)
    store = DiskStore(path, 10, TIMEOUT_S, durability, Machine(boot, clock, clock.wall))
    asyncio.run(store.commit([]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))  # type: ignore[arg-type]
