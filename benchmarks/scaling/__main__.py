"""The command; see the package."""

import argparse
import asyncio
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress

import benchmarks.scaling as package
from benchmarks import ROOT
from benchmarks.conditions import conditions
from benchmarks.scaling.findings import Findings, Held, Imported, read_findings
from benchmarks.scaling.in_process import measure
from benchmarks.scaling.models import SIZES, measure_model, model_of, ten_models
from benchmarks.scaling.picture import draw
from benchmarks.scaling.redis_side import is_installed, measure_redis
from benchmarks.scaling.report import rewrite, show
from benchmarks.scaling.served import (
    MAX_SESSIONS,
    measure_bytes,
    measure_start,
    measure_way,
    serving,
)
from benchmarks.scaling.sleepers import IDLE_TIMEOUT_S, Seed, house, make_seed, put_to_sleep
from benchmarks.scaling.upkeep import measure_upkeep
from benchmarks.wire.carousel import NDJSON, UNARY, WS_BINARY, WS_TEXT
from benchmarks.wire.network import HIDDEN
from service.model import Model
from service.store.disk.store import DiskStore

T = TypeVar("T")

PARTS = ("in-process", "upkeep", "served", "redis", "start")
AGES = (1, 1_000, 1_000_000)
WAYS = ((UNARY, 16, 1), (NDJSON, 64, 64), (WS_TEXT, 64, 64), (WS_BINARY, 64, 64))
IMPORTS = ("pass", "import bentoml, bentoml._internal.service.openapi", "import service.api")
IMPORT_RUNS = 7
BYTES_TURNS = 50
SHORT: dict[str, Any] = {
    "asleep": [10, 1_000, 100_000],
    "rounds": 5,
    "seconds": 1.0,
    "redis_sessions": 20_000,
}
FULL: dict[str, Any] = {"asleep": [10, 1_000, 100_000, 1_000_000], "rounds": 15, "seconds": 3.0}
FULL |= {"redis_sessions": 100_000}


class Run:
    """One run; what it finds is in `found`."""

    def __init__(self, arguments: argparse.Namespace, root: Path, progress: Progress) -> None:
        self.found = Findings(
            conditions=conditions(
                ["onnxruntime", "numpy", "bentoml"],
                cores=os.cpu_count(),
                system=platform.platform(),
                hidden=HIDDEN,
                asleep=arguments.asleep,
                rounds=arguments.rounds,
            )
        )
        self._arguments, self._root, self._progress = arguments, root, progress

    def __call__(self) -> Findings:
        given = self._arguments
        begin = self._progress.add_task("models", total=None)
        has_all = bool({"served", "redis"}.intersection(given.parts))
        sizes = SIZES if has_all else (HIDDEN,)
        models = {hidden: model_of(given.cache, hidden) for hidden in sizes}
        ours = {hidden: make_seed(model) for hidden, model in models.items()}
        if has_all:
            self.found.models = [measure_model(model, hidden) for hidden, model in models.items()]
        self._progress.remove_task(begin)
        if "in-process" in given.parts:
            asyncio.run(self._in_process(ours[HIDDEN]))
        if "upkeep" in given.parts:
            for asleep in self._each("upkeep", given.asleep):
                folder = self._root / "upkeep"
                found = asyncio.run(measure_upkeep(folder, ours[HIDDEN], asleep))
                self.found.upkeep.append(found)
                shutil.rmtree(folder)
        if "served" in given.parts:
            self._served(models, ours)
        if "redis" in given.parts and is_installed():
            for hidden in self._each("Redis", list(SIZES)):
                one = asyncio.run(measure_redis(ours[hidden], given.redis_sessions))
                self.found.redis.append(one)
        if "start" in given.parts:
            self._start()
        return self.found

    async def _in_process(self, seed: Seed) -> None:
        given = self._arguments
        async with AsyncExitStack() as stack:
            houses = []
            for asleep in self._each("putting to sleep", given.asleep):
                folder = self._root / f"asleep-{asleep}"
                one = await stack.enter_async_context(house(folder, seed, asleep, AGES))
                houses.append(one)
                self.found.held.append(
                    Held(asleep, len(seed.state), one.disk_bytes, one.memory_bytes)
                )
            task = self._progress.add_task("steps in process", total=given.rounds + 1)
            self.found.points = await measure(
                houses, AGES, given.rounds, lambda: self._progress.advance(task)
            )

    def _served(self, models: dict[int, Model], seeds: dict[int, Seed]) -> None:
        given = self._arguments
        store = self._root / "served"
        asyncio.run(_fill(store, seeds[HIDDEN], max(given.asleep)))
        for hidden in self._each("real servers", [*SIZES, 0]):
            size = hidden or HIDDEN  # 0: that model again, beside many that sleep
            asleep = 0 if hidden else max(given.asleep)
            artifacts = models[size].artifact.path.parents[1]
            state_bytes = len(seeds[size].state)
            with serving(artifacts, None if hidden else store) as server:
                for way, sessions, on_one in WAYS:
                    if hidden == HIDDEN:
                        found = measure_bytes(server, way, on_one, BYTES_TURNS)
                        self.found.wire.append(found)
                    points = [
                        measure_way(server, way, sessions, given.seconds, asleep, state_bytes)
                        for _ in range(2)
                    ]
                    self.found.ways.append(min(points, key=lambda point: point.cpu_us))

    def _start(self) -> None:
        ten, one = ten_models(self._arguments.cache), self._root / "one"
        one.mkdir()
        first = next(iter(sorted(ten.iterdir())))
        (one / first.name).symlink_to(first.resolve())
        for artifacts in self._each("starts", [one, ten]):
            starts = [measure_start(artifacts) for _ in range(3)]
            self.found.starts.append(min(starts, key=lambda start: start.wall_s))
        for what in self._each("imports", list(IMPORTS)):
            code = f"import time; {what}; print(time.process_time())"
            times = [
                float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True))
                for _ in range(IMPORT_RUNS)
            ]
            self.found.imports.append(Imported(what, min(times)))

    def _each(self, title: str, what: Sequence[T]) -> Iterable[T]:
        return self._progress.track(what, description=title)


async def _fill(folder: Path, seed: Seed, asleep: int) -> None:
    store = DiskStore(folder, MAX_SESSIONS, IDLE_TIMEOUT_S)
    await put_to_sleep(store, seed, range(asleep))
    await store.close()


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    for name, value in (SHORT if arguments.short else FULL).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    root = Path(tempfile.mkdtemp(prefix="scaling-", dir=arguments.directory))
    try:
        with Progress(console=Console(stderr=True)) as progress:
            found = Run(arguments, root, progress)()
    finally:
        shutil.rmtree(root)
    if arguments.json and arguments.json.exists():
        found.keep(read_findings(arguments.json))
    show(found, Console(width=120))
    if arguments.json:
        found.write(arguments.json)
    if arguments.document:
        arguments.document.write_text(rewrite(arguments.document.read_text(), found))
    if arguments.picture:
        draw(found, arguments.picture)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--short", action="store_true", help="a minute or two: fewer sessions and rounds")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured (%(default)s)")
    add("--asleep", type=int, nargs="+", help="how many sleep, each in a store of its own")
    add("--rounds", type=int, help="of the steps in process")
    add("--seconds", type=float, help="of each closed loop over a server")
    add("--redis-sessions", type=int, help="in each Redis server")
    add("--cache", type=Path, default=ROOT / ".peers" / "model", help="models (%(default)s)")
    add("--directory", type=Path, help="where the stores lie; else in /tmp")
    add(
        "--json", type=Path, help="also write the figures there; what is there of other parts stays"
    )
    add("--document", type=Path, help="also write the tables there: docs/scaling.md")
    add("--picture", type=Path, help="also draw one there, PNG")
    return parser


if __name__ == "__main__":
    sys.exit(main())
