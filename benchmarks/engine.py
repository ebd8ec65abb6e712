"""`python -m benchmarks.engine`: what the engine adds to the model, in process.

Requests of one step each go through an `Engine` as the protocols send them, all sessions at once,
so that each batch holds every session: the time from a decoded request to its answer, without a
socket. Figures are CPU time of this process (user and system), which a busy machine does not change
as much as the clock. Stores and batch sizes take turns, round after round; the least of the rounds
counts. `model` is `Runtime.run` alone on a batch of that size, in the same rounds.

Then the parts of one request's way, each called by itself over and over: what a change moved.
"""

import argparse
import asyncio
import cProfile
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.conditions import conditions
from benchmarks.wire.network import write_network
from service.artifact import find_artifacts
from service.batcher import Batcher
from service.catalog import Catalog
from service.engine import Engine
from service.job import Job, Request
from service.model import Model
from service.self_test import repeat
from service.session import SessionKey
from service.store import Commit, Store
from service.store.disk.store import DiskStore
from service.store.memory import MemoryStore
from service.store.record_bytes import pack_record, unpack_record
from service.wire import Array, RowShape

STORES = ("memory", "disk")
MAX_SESSIONS = 10_000
IDLE_TIMEOUT_S = 3_600.0
REQUESTS = 2_000  # at least, of each contestant in a round: some tens of milliseconds


@dataclass(frozen=True)
class Given:
    """The rows of a request, decoded already."""

    rows: Array

    def decode(self, shape: RowShape) -> Array:
        return self.rows


class Contestant:
    """An engine of its own, and the sessions that send to it."""

    def __init__(self, engine: Engine, model: Model, batch: int) -> None:
        self.engine = engine
        self._keys = [SessionKey("acme", f"session-{number:06}") for number in range(batch)]
        shape = model.row_shape
        rng = np.random.default_rng(0)
        if shape.dtype == "int64":
            rows = np.zeros((batch, 1, *shape.tail), np.int64)
        else:
            rows = rng.uniform(-1, 1, (batch, 1, *shape.tail)).astype(np.float32)
        self._rows = [Given(row) for row in rows]
        self._steps = 0

    async def turn(self, batches: int) -> None:
        """One step of every session, `batches` times; each request says its step."""
        engine = self.engine
        for _ in range(batches):
            jobs = [
                await engine.submit(Request(key, rows, self._steps))
                for key, rows in zip(self._keys, self._rows, strict=True)
            ]
            for job in jobs:
                await job.future
            self._steps += 1


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    console = Console(width=100)
    path = arguments.artifact or _export(arguments.cache, arguments.hidden)
    model = Model.load(path, arguments.variant)
    about = conditions(
        ["numpy", "onnxruntime"],
        cores=os.cpu_count(),
        model=model.reference,
        variant=model.runtime.variant,
        state_bytes=model.artifact.layout.size,
        rounds=arguments.rounds,
    )
    console.print(about)
    with tempfile.TemporaryDirectory(prefix="carousel-") as folder:
        asyncio.run(_measure(model, Path(folder), arguments, console))
    return 0


def _export(cache: Path, hidden: int) -> Path:
    (path,) = find_artifacts(write_network(cache, hidden).artifacts)
    return path


async def _measure(
    model: Model, folder: Path, arguments: argparse.Namespace, console: Console
) -> None:
    async with AsyncExitStack() as stack:
        contestants: dict[tuple[str, int], Contestant] = {}
        for name in arguments.store:
            for batch in arguments.batch:
                store = _open(name, folder / f"{name}-{batch}")
                engine = Engine(
                    Catalog([model]), store, max_batch=batch, max_queue=10 * batch, max_steps=1
                )
                engine.start()
                stack.push_async_callback(engine.close)
                contestants[name, batch] = Contestant(engine, model, batch)
                await contestants[name, batch].turn(2)
        if arguments.profile:
            await _profile(contestants)
            return
        await _compare(model, contestants, arguments.rounds, console)
        _show_parts(model, await _parts(model, folder, arguments.rounds), console)


def _open(name: str, path: Path) -> Store:
    if name == "memory":
        return MemoryStore(MAX_SESSIONS, IDLE_TIMEOUT_S)
    return DiskStore(path, MAX_SESSIONS, IDLE_TIMEOUT_S)


async def _compare(
    model: Model, contestants: dict[tuple[str, int], Contestant], rounds: int, console: Console
) -> None:
    least: dict[tuple[str, int], float] = {}
    batches = sorted({batch for _, batch in contestants})
    for _ in range(rounds):
        for batch in batches:
            count = max(1, REQUESTS // batch)
            run = _runner(model, batch)
            spent = {("model", batch): _cpu_us(run, count) / batch}
            for (name, size), contestant in contestants.items():
                if size == batch:
                    begun = time.process_time()
                    await contestant.turn(count)
                    spent[name, batch] = (time.process_time() - begun) * 1e6 / count / batch
            for place, us in spent.items():
                least[place] = min(us, least.get(place, us))
    table = Table(title="us of CPU a request of one step")
    table.add_column("")
    for batch in batches:
        table.add_column(f"batch {batch}", justify="right")
    for name in ("model", *dict.fromkeys(name for name, _ in contestants)):
        table.add_row(name, *(f"{least[name, batch]:.1f}" for batch in batches))
    console.print(table)


def _runner(model: Model, batch: int) -> Callable[[], object]:
    golden = model.artifact.golden()
    x = np.resize(golden.x[:, 0], (batch, 1, *golden.x.shape[2:]))
    state = repeat(model.artifact.initial, batch)
    return lambda: model.runtime.run(x, state)


def _cpu_us(call: Callable[[], object], times: int) -> float:
    begun = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - begun) * 1e6 / times


async def _profile(contestants: dict[tuple[str, int], Contestant]) -> None:
    for (name, batch), contestant in contestants.items():
        profile = cProfile.Profile()
        profile.enable()
        await contestant.turn(max(1, REQUESTS // batch))
        profile.disable()
        print(f"{name}, batch {batch}, {max(REQUESTS, batch)} requests")
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(40)


# The parts of one request's way ----------------------------------------------------------------


async def _parts(model: Model, folder: Path, rounds: int) -> dict[str, float]:
    """Least us of CPU of each part, for one request; of the batch's parts in batches of 64."""
    loop = asyncio.get_running_loop()
    batch = 64
    contestant = Contestant(_idle_engine(model, batch), model, batch)
    requests = [
        Request(key, rows, 1) for key, rows in zip(contestant._keys, contestant._rows, strict=True)
    ]
    request = requests[0]
    future = loop.create_future()
    jobs = [Job(one, model, 1, future) for one in requests]
    for job in jobs:
        job.start(None, 1, anew=False)
    blobs, chunks = [model.initial_state] * batch, [job.x for job in jobs]
    records = []
    for job in jobs:
        ys, states, finite = model.run(chunks[:1], blobs[:1])
        job.advance(ys, states, finite)
        records.append(job.whole_record())
    record, job = records[0], jobs[0]
    raw = pack_record(record)
    batcher: Batcher[Job] = Batcher(batch, 10 * batch)
    disk = DiskStore(folder / "parts", MAX_SESSIONS, IDLE_TIMEOUT_S)
    memory = MemoryStore(MAX_SESSIONS, IDLE_TIMEOUT_S)
    keys = [one.key for one in jobs]

    def wait_turn() -> None:
        for job in jobs:
            batcher.add(job)
        for row in batcher.take():
            batcher.release(row.job, finished=True)

    alone: dict[str, Callable[[], object]] = {
        "request to job": lambda: Job(request, model, 1, future),
        "  of it encode": lambda: model.encode(request.rows.decode(model.row_shape)),
        "record": job.whole_record,
        "answer": lambda: job.whole_answer(record),
        "pack_record": lambda: pack_record(record),
        "unpack_record": lambda: unpack_record(raw),
        "future": loop.create_future,
    }
    together: dict[str, Callable[[], object]] = {
        "batcher": wait_turn,
        "model.run": lambda: model.run(chunks, blobs),
        "  of it the runtime": _runner(model, batch),
    }
    found = dict.fromkeys([*alone, *together, "memory get", "disk get"], float("inf"))
    for _ in range(rounds):
        for name, call in alone.items():
            found[name] = min(found[name], _cpu_us(call, REQUESTS))
        for name, call in together.items():
            found[name] = min(found[name], _cpu_us(call, REQUESTS // batch) / batch)
        for name, store in (("memory", memory), ("disk", disk)):
            for part, us in (await _store_us(store, keys, records, REQUESTS // batch)).items():
                found[f"{name} {part}"] = min(found.get(f"{name} {part}", us), us)
    await disk.close()
    return found


def _idle_engine(model: Model, batch: int) -> Engine:
    store = MemoryStore(MAX_SESSIONS, IDLE_TIMEOUT_S)
    return Engine(Catalog([model]), store, max_batch=batch, max_queue=batch, max_steps=1)


async def _store_us(
    store: Store, keys: Sequence[SessionKey], records: Sequence[object], times: int
) -> dict[str, float]:
    """us of one row to get it, and to commit it."""
    spent = {"get": 0.0, "commit": 0.0}
    for _ in range(times):
        begun = time.process_time()
        held = await store.get(keys)
        got = time.process_time()
        await store.commit(
            [Commit(k, b, a) for k, b, a in zip(keys, held, records, strict=True)]  # type: ignore
        )
        spent["get"] += got - begun
        spent["commit"] += time.process_time() - got
    return {part: s * 1e6 / times / len(keys) for part, s in spent.items()}


def _show_parts(model: Model, found: dict[str, float], console: Console) -> None:
    table = Table(title="parts of it, us of CPU a request (of a batch of 64 where there is one)")
    table.add_column("part")
    table.add_column("us", justify="right")
    for name, us in found.items():
        table.add_row(name, f"{us:.2f}")
    console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--artifact", type=Path, help="NAME/VERSION of a model; else one LSTM layer is exported")
    add("--variant", help="of it; else its default")
    add("--hidden", type=int, default=128, help="size of the exported LSTM (%(default)s)")
    add("--cache", type=Path, default=Path(".peers"), help="where it is kept (%(default)s)")
    add("--batch", type=int, nargs="+", default=[1, 16, 64, 256], help="sessions (%(default)s)")
    add("--store", nargs="+", choices=STORES, default=STORES, help="which (all)")
    add("--rounds", type=int, default=10, help="turns of each (%(default)s)")
    add("--profile", action="store_true", help="say where Python's time goes instead")
    return parser


if __name__ == "__main__":
    sys.exit(main())
