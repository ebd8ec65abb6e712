"""`python -m benchmarks.sessions`: what it costs to keep sessions.

First the time to read and commit one row, in batches. Every store takes turns with SQLite (and
LMDB, where the package `lmdb` is installed) as a table of the same bytes, round after round, so
that a machine that slows down slows all of them; medians over the rounds. Only `disk (power)` waits
for the disk. `memory` shows what the measuring itself takes.

Then, with --sessions N, N idle sessions in the disk store: memory and disk for each, the time to
open the first and the last of them, and the time to open the store again.
"""

import argparse
import asyncio
import os
import platform
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.conditions import conditions
from service.session import LastReply, Record, SessionKey
from service.store import Commit, Outcome, Store
from service.store.disk.store import DiskStore
from service.store.memory import MemoryStore
from service.store.record_bytes import pack_record, unpack_record

HELD = 20_000  # sessions in each store
IDLE_TIMEOUT_S = 3_600.0
STATE_BYTES = 1_024  # hidden 128, one layer, float32: h and c
HEADER_BYTES = 136  # of such a state as safetensors
PIECE = 64  # sessions opened at once
WINDOW = 10_000  # sessions over which the time to open one is measured

Turn = Callable[[Sequence[SessionKey]], Awaitable[object]]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    console = Console()
    console.print(conditions(["numpy"], cores=os.cpu_count(), system=platform.platform()))
    root = Path(tempfile.mkdtemp(prefix="carousel-", dir=arguments.directory))
    try:
        if arguments.rounds:
            asyncio.run(_compare(root, arguments.rounds, console))
        if arguments.sessions:
            asyncio.run(_idle(root / "idle", arguments.sessions, console))
    finally:
        shutil.rmtree(root)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sessions", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="of the comparison; 0: none")
    parser.add_argument("--sessions", type=int, default=0, help="idle ones, for example 1000000")
    parser.add_argument("--directory", type=Path, help="where the stores lie; else in /tmp")
    return parser


def key_of(number: int) -> SessionKey:
    return SessionKey("", f"session-{number}")


def first_record(number: int) -> Record:
    """As a session of a real model begins, in size."""
    state = number.to_bytes(8, "little") * ((STATE_BYTES + HEADER_BYTES) // 8)
    last = LastReply(0, bytes(16), bytes(4), created=True)
    return Record(number, "series-lstm", "3eee6c5ae4c175da", 1, state, last)


def advanced(record: Record) -> Record:
    last = LastReply(record.step, record.last.digest, record.last.y, False)
    step = record.step + 1
    return Record(record.birth, record.model, record.version, step, record.state, last)


# Read and commit ------------------------------------------------------------------------------


async def _compare(root: Path, rounds: int, console: Console) -> None:
    contestants = await _contestants(root)
    table = Table(
        title=f"read and commit, us a row; {HELD} sessions of {STATE_BYTES} bytes of state"
    )
    for title in ("store", "batch of 1", "of 64"):
        table.add_column(title, justify="left" if title == "store" else "right")
    times: dict[tuple[str, int], list[float]] = {}
    rng = random.Random(1)
    for _ in range(rounds):
        for batch, batches in ((1, 200), (64, 10)):
            for name, turn in contestants.items():
                slow = batch == 1 and "power" in name
                chosen = [
                    [key_of(number) for number in rng.sample(range(HELD), batch)]
                    for _ in range(batches // 20 if slow else batches)
                ]
                begun = time.perf_counter()
                for keys in chosen:
                    await turn(keys)
                took_s = time.perf_counter() - begun
                times.setdefault((name, batch), []).append(took_s / batch / len(chosen) * 1e6)
    for name in contestants:
        table.add_row(name, *(f"{median(times[name, batch]):.1f}" for batch in (1, 64)))
    console.print(table)


async def _contestants(root: Path) -> dict[str, Turn]:
    stores: dict[str, Store] = {
        "memory": MemoryStore(HELD, IDLE_TIMEOUT_S),
        "disk (process)": DiskStore(root / "process", HELD, IDLE_TIMEOUT_S),
        "disk (power)": DiskStore(root / "power", HELD, IDLE_TIMEOUT_S, "power"),
    }
    found: dict[str, Turn] = {}
    for name, store in stores.items():
        await _open_sessions(store, range(HELD))
        found[name] = _turn_of(store)
    found["SQLite, WAL"] = _sqlite(root / "sqlite.db")
    with suppress(ModuleNotFoundError):
        found["LMDB"] = _lmdb(root / "lmdb")
    return found


async def _open_sessions(store: Store, numbers: range) -> None:
    for start in range(numbers.start, numbers.stop, PIECE):
        some = range(start, min(start + PIECE, numbers.stop))
        outcomes = await store.commit(
            [Commit(key_of(number), None, first_record(number)) for number in some]
        )
        if set(outcomes) != {Outcome.DONE}:
            raise SystemExit(f"sessions: {set(outcomes)} at session {start}: is the disk full?")


def _turn_of(store: Store) -> Turn:
    async def turn(keys: Sequence[SessionKey]) -> None:
        commits = [
            Commit(key, record, advanced(record))
            for key, record in zip(keys, await store.get(keys), strict=True)
            if record is not None
        ]
        await store.commit(commits)

    return turn


def _sqlite(path: Path) -> Turn:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=OFF")
    database.execute("CREATE TABLE sessions (key BLOB PRIMARY KEY, record BLOB) WITHOUT ROWID")
    rows = [(key_of(n).session_id.encode(), pack_record(first_record(n))) for n in range(HELD)]
    database.executemany("INSERT INTO sessions VALUES (?, ?)", rows)

    async def turn(keys: Sequence[SessionKey]) -> None:
        names = [key.session_id.encode() for key in keys]
        database.execute("BEGIN IMMEDIATE")
        select = "SELECT record FROM sessions WHERE key = ?"
        held = [database.execute(select, (name,)).fetchone()[0] for name in names]
        after = [pack_record(advanced(unpack_record(record))) for record in held]
        update = "UPDATE sessions SET record = ? WHERE key = ?"
        database.executemany(update, zip(after, names, strict=True))
        database.execute("COMMIT")

    return turn


def _lmdb(path: Path) -> Turn:
    lmdb = import_module("lmdb")
    environment = lmdb.open(str(path), map_size=1 << 30, sync=False, metasync=False)
    with environment.begin(write=True) as transaction:
        for number in range(HELD):
            record = pack_record(first_record(number))
            transaction.put(key_of(number).session_id.encode(), record)

    async def turn(keys: Sequence[SessionKey]) -> None:
        with environment.begin(write=True) as transaction:
            for key in keys:
                name = key.session_id.encode()
                record = unpack_record(transaction.get(name))
                transaction.put(name, pack_record(advanced(record)))

    return turn


# Idle -----------------------------------------------------------------------------------------


async def _idle(path: Path, sessions: int, console: Console) -> None:
    begun_bytes = _resident_bytes()
    store = DiskStore(path, sessions, IDLE_TIMEOUT_S)
    first_us = await _time_to_open(store, range(min(WINDOW, sessions)))
    middle = range(min(WINDOW, sessions), max(sessions - WINDOW, min(WINDOW, sessions)))
    await _open_sessions(store, middle)
    rest = range(middle.stop, sessions)
    last_us = await _time_to_open(store, rest) if rest else first_us
    memory = (_resident_bytes() - begun_bytes) / sessions
    disk = sum(file.stat().st_blocks * 512 for file in path.iterdir()) / sessions
    begun = time.perf_counter()
    await store.close()
    close_s = time.perf_counter() - begun
    begun = time.perf_counter()
    again = DiskStore(path, sessions, IDLE_TIMEOUT_S)
    held = await again.get([key_of(0), key_of(sessions - 1)])
    open_s = time.perf_counter() - begun
    if held != [first_record(0), first_record(sessions - 1)]:
        raise SystemExit("sessions: the store did not give back what it was given")
    begun = time.perf_counter()
    again._directory.repair()
    repair_s = time.perf_counter() - begun
    await again.close()
    limit = 1.5 * STATE_BYTES + 200
    console.print(
        f"{sessions} idle sessions of {STATE_BYTES} bytes of state: {disk:.0f} bytes of disk and "
        f"{memory:.0f} of memory each (at most {limit:.0f})\n"
        f"opening one of the first {WINDOW}: {first_us:.1f} us, of the last: {last_us:.1f} us\n"
        f"clean close {close_s:.2f} s, open again {open_s:.3f} s; after kill -9 of a writer "
        f"{repair_s:.2f} s more"
    )


async def _time_to_open(store: Store, numbers: range) -> float:
    begun = time.perf_counter()
    await _open_sessions(store, numbers)
    return (time.perf_counter() - begun) / len(numbers) * 1e6


def _resident_bytes() -> int:
    """Of this process, the mapped files too."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
