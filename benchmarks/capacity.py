"""`python -m benchmarks.capacity --sessions 10000000 --steps-per-second 2`: what that needs.

The formula, of constants that `python -m benchmarks.scaling` measured (docs/scaling.json; docs/
scaling.md shows them, and by how much the formula misses what was measured beside them):

    CPU of a step    way + model + state bytes * per byte    (way: by the protocol)
    cores            sessions * steps per second * CPU of a step / utilization
    workers          one for each core
    disk             slots, in classes an eighth apart, and 32 bytes for each home of the index
    memory           as much for mapped files (the page cache, which all workers share), and that
                     of each worker
    Redis            bytes a session = base + per byte * state bytes; its cores, one for each node
    network          payload and headers of a step, both directions, by the protocol

It is of steps that come one at a time; chunks cost less (docs/serving.md). Its CPU is of the
machine of docs/scaling.json, at its clock; measure your own with `--measured`.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.scaling.findings import MEASURED, Findings, read_findings
from benchmarks.wire.network import WIDTH
from service.session import LastReply, Record
from service.store.disk.index import ENTRY_BYTES, OVERHANG, bits_for
from service.store.disk.layout import BODY_AT, HEADER_BYTES, SLOT_BYTES, class_for
from service.store.disk.slots import GROW_BYTES
from service.store.record_bytes import pack_record

UTILIZATION = 0.6  # of a core: beyond it what waits in the queue is most of a latency
WAYS = ("unary", "ndjson", "ws text", "ws binary")
ID_BYTES = 16  # of a session's id, and of a model's name
WIRE_NUMBER = {"unary": (22, 12), "ndjson": (22, 12), "ws text": (22, 12), "ws binary": (4, 4)}


@dataclass(frozen=True)
class Demand:
    """What is to be served."""

    sessions: int  # live
    steps_per_second: float  # of each session
    state_bytes: int = 1_160  # as stored: 136 more than its arrays, for an LSTM of one layer
    model_us: float | None = None  # CPU of a step in a batch; None: of the measured models
    way: str = "ws binary"
    inputs: int = WIDTH  # numbers in a row of x
    outputs: int = WIDTH  # and of y
    utilization: float = UTILIZATION


@dataclass(frozen=True)
class Need:
    """What that takes. GB: 1e9 bytes."""

    steps_per_second: float
    cpu_us: float  # of a step
    cores: float
    workers: int
    disk_gb: float
    memory_gb: float  # mapped files and workers
    redis_memory_gb: float  # in place of the disk, if sessions are there
    redis_cores: float  # of the servers' CPU
    redis_nodes: int  # each has one core for commands
    redis_network_gb_s: float
    network_gb_s: float
    network_bytes: float  # of a step


@dataclass(frozen=True)
class Constants:
    """Fitted to what was measured."""

    way_us: dict[str, float]
    byte_us: float  # of a byte of state: load, commit, gather, scatter
    model_us: list[tuple[int, float]]  # state bytes -> CPU of a step in a batch
    redis_base: float
    redis_byte: float
    redis_us: list[tuple[int, float]]
    redis_wire: list[tuple[int, float]]
    wire: dict[str, float]
    worker_bytes: float


def fit(found: Findings) -> Constants:
    """Lines through the smallest and the largest model; what lies between them is the check."""
    models = sorted((one.state_bytes, one.model_us) for one in found.models)
    low, high = models[0], models[-1]
    ways = [one for one in found.ways if one.asleep == 0]
    at = {(one.way, one.state_bytes): one.cpu_us for one in ways}
    ours = {key: us - _at(models, key[1]) for key, us in at.items()}
    slopes = [
        (ours[way, high[0]] - ours[way, low[0]]) / (high[0] - low[0])
        for way in WAYS
        if (way, high[0]) in ours and (way, low[0]) in ours
    ]
    byte_us = max(float(np.median(slopes)), 0.0)
    way_us = {
        way: float(
            np.mean(
                [
                    us - byte_us * size
                    for (w, size), us in ours.items()
                    if w == way and size in (low[0], high[0])
                ]
            )
        )
        for way in WAYS
        if any(w == way for w, _ in ours)
    }
    redis = sorted((one.state_bytes, one) for one in found.redis)
    base = byte = 0.0
    if redis:
        (small, a), (large, b) = redis[0], redis[-1]
        byte = (b.memory_bytes - a.memory_bytes) / max(large - small, 1)
        base = a.memory_bytes - byte * small
    many = {one.way: one.total for one in found.wire}
    start = min(found.starts, key=lambda one: one.models, default=None)
    return Constants(
        way_us,
        byte_us,
        models,
        base,
        byte,
        [(size, one.server_us) for size, one in redis],
        [(size, one.wire_bytes) for size, one in redis],
        many,
        (start.memory_mib if start else 0.0) * 2**20,
    )


def step_us(constants: Constants, way: str, state_bytes: int, model_us: float | None) -> float:
    """CPU of the server for one step, in us."""
    model = _at(constants.model_us, state_bytes) if model_us is None else model_us
    return constants.way_us[way] + model + constants.byte_us * state_bytes


def disk_bytes(sessions: int, state_bytes: int, outputs: int = WIDTH) -> int:
    """All files of a disk store that is made for so many sessions and holds them."""
    last = LastReply(1, bytes(16), bytes(4 * outputs), created=False)
    record = pack_record(Record(1, "m" * 4, "v" * 16, 2, bytes(state_bytes), last))
    slot = SLOT_BYTES[class_for(BODY_AT + ID_BYTES + len(record))]
    per_growth = GROW_BYTES // slot * slot
    slots = math.ceil(sessions * slot / per_growth) * per_growth
    index = ((1 << bits_for(sessions)) + OVERHANG) * ENTRY_BYTES
    return slots + index + HEADER_BYTES


def redis_bytes(constants: Constants, state_bytes: int) -> float:
    return constants.redis_base + constants.redis_byte * state_bytes


def wire_bytes(constants: Constants, way: str, inputs: int = WIDTH, outputs: int = WIDTH) -> float:
    """Of a step, both directions, with headers."""
    into, out = WIRE_NUMBER[way]
    return constants.wire[way] + into * (inputs - WIDTH) + out * (outputs - WIDTH)


def need(demand: Demand, constants: Constants) -> Need:
    rate = demand.sessions * demand.steps_per_second
    cpu_us = step_us(constants, demand.way, demand.state_bytes, demand.model_us)
    cores = rate * cpu_us / 1e6 / demand.utilization
    workers = max(math.ceil(cores), 1)
    disk = disk_bytes(demand.sessions, demand.state_bytes, demand.outputs)
    redis_cores = rate * _at(constants.redis_us, demand.state_bytes) / 1e6
    one = wire_bytes(constants, demand.way, demand.inputs, demand.outputs)
    return Need(
        rate,
        cpu_us,
        cores,
        workers,
        disk / 1e9,
        (disk + workers * constants.worker_bytes) / 1e9,
        demand.sessions * redis_bytes(constants, demand.state_bytes) / 1e9,
        redis_cores,
        max(math.ceil(redis_cores / demand.utilization), 1),
        rate * _at(constants.redis_wire, demand.state_bytes) / 1e9,
        rate * one / 1e9,
        one,
    )


def _at(points: Sequence[tuple[int, float]], size: int) -> float:
    """On the line through the points, which goes on at both ends; 0 where there are none."""
    if len(points) < 2:
        return points[0][1] if points else 0.0
    sizes, values = zip(*points, strict=True)
    if sizes[0] <= size <= sizes[-1]:
        return float(np.interp(size, sizes, values))
    near = points[:2] if size < sizes[0] else points[-2:]
    (a, low), (b, high) = near
    return max(low + (high - low) * (size - a) / (b - a), 0.0)


# The command ------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        found = read_findings(arguments.measured)
    except OSError as error:
        print(
            f"capacity: {arguments.measured} cannot be read ({error.strerror}); "
            f"`python -m benchmarks.scaling --json {arguments.measured}` writes it",
            file=sys.stderr,
        )
        return 1
    given = {name: value for name, value in vars(arguments).items() if name in _NAMES}
    demand = Demand(**given)
    needed = need(demand, fit(found))
    if arguments.json:
        print(json.dumps({"demand": asdict(demand), "need": asdict(needed)}, indent=1))
    else:
        print(in_words(demand, needed))
    return 0


_NAMES = tuple(Demand.__dataclass_fields__)


def in_words(demand: Demand, needed: Need) -> str:
    share = f"{demand.utilization:.0%}"
    return "\n".join(
        [
            f"{demand.sessions:,} live sessions of {demand.state_bytes:,} bytes of state, "
            f"{demand.steps_per_second:g} steps a second each, by {demand.way}:",
            f"  steps        {needed.steps_per_second:,.0f} a second",
            f"  CPU          {needed.cpu_us:.0f} us a step: {needed.cores:,.1f} cores at {share}, "
            f"{needed.workers:,} workers",
            f"  disk         {needed.disk_gb:,.1f} GB",
            f"  memory       {needed.memory_gb:,.1f} GB, of which {needed.disk_gb:,.1f} are mapped "
            "files",
            f"  network      {needed.network_bytes:,.0f} bytes a step: "
            f"{needed.network_gb_s:,.3f} GB/s",
            "or with the sessions in Redis, in place of the disk:",
            f"  Redis        {needed.redis_memory_gb:,.1f} GB, {needed.redis_cores:,.1f} cores: "
            f"{needed.redis_nodes:,} nodes at {share}",
            f"  network      {needed.redis_network_gb_s:,.3f} GB/s between workers and Redis",
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.capacity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sessions", type=_at_least_one, required=True, help="live ones")
    add("--steps-per-second", type=_positive, required=True, help="of each session")
    add(
        "--state-bytes",
        type=_at_least_one,
        default=Demand.state_bytes,
        help="as stored: 136 more than its arrays, of one LSTM layer (%(default)s)",
    )
    add(
        "--model-us",
        type=_positive,
        help="CPU of a step of the model in a batch; else of the measured models, by their state",
    )
    add("--way", choices=WAYS, default=Demand.way, help="how steps are asked for (%(default)s)")
    add("--inputs", type=_at_least_one, default=WIDTH, help="numbers in x (%(default)s)")
    add("--outputs", type=_at_least_one, default=WIDTH, help="and in y (%(default)s)")
    add("--utilization", type=_share, default=UTILIZATION, help="of a core (%(default)s)")
    add("--measured", type=Path, default=MEASURED, help="the constants (docs/scaling.json)")
    add("--json", action="store_true", help="the same as JSON")
    return parser


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}, expected 1 or more")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}, expected more than 0")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}, expected more than 0 and at most 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
