"""Whether a server's y is the model's: looked at before a way of asking is measured."""

import random
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from benchmarks.wire.carousel import Way
from benchmarks.wire.client import Client
from benchmarks.wire.link import LinkError
from benchmarks.wire.links import kind_of
from benchmarks.wire.servers import Server
from service.artifact import Artifact
from service.layout import State
from service.runtime import Runtime

Array = np.ndarray
TOLERANCE = 2e-5  # absolute and relative: between two graphs of one model; ten times what was seen
AGREE_STEPS = 20


class PlainLoop(Protocol):
    """The model, in this process."""

    @property
    def width(self) -> int:
        """Numbers in a row of x."""

    def start(self) -> Any:
        """The state of a session that has not begun."""

    def step(self, x: Array, state: Any) -> tuple[Array, Any]:
        """One row x (I,) -> y (O,) and the new state; `state` is not changed."""


class ArtifactLoop:
    """The default variant of an artifact, one row at a time; x (T, I) of numbers, raw units."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._runtime = Runtime(artifact, artifact.manifest.default_variant)

    @property
    def width(self) -> int:
        return int(self._artifact.manifest.ports.x.shape[2])

    def start(self) -> State:
        return self._artifact.initial

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        """As `PlainLoop` says."""
        manifest = self._artifact.manifest
        rows = manifest.pipeline.encode(x[np.newaxis]).astype(manifest.ports.x.dtype)
        y, state = self._runtime.run(rows[np.newaxis], state)
        return manifest.pipeline.decode(y[0])[0].reshape(-1), state


def is_same(y: Sequence[float] | Array, expected: Array) -> bool:
    return len(y) == len(expected) and bool(
        np.allclose(y, expected, rtol=TOLERANCE, atol=TOLERANCE)
    )


def rows_of(seed: object, count: int, width: int) -> Array:
    """(count, width) in -1 to 1."""
    rng = random.Random(str(seed))
    return np.array([[rng.uniform(-1, 1) for _ in range(width)] for _ in range(count)])


async def agree(way: Way, server: Server, loop: PlainLoop, prefix: str) -> None:
    """Two sessions, in turns; LinkError if the way is not offered, or y is not the model's."""
    names = [f"{prefix}-{number}" for number in range(2)]
    groups = [names] if kind_of(way.link).shared else [[name] for name in names]
    for group in groups:
        rows = {name: rows_of(name, AGREE_STEPS, loop.width) for name in group}
        states = {name: loop.start() for name in group}
        async with Client(way.link, way.path, way.port_of(server), group) as client:
            for step in range(AGREE_STEPS):
                for name in group:
                    x = rows[name][step]
                    y = await client.step(name, x.tolist())
                    expected, states[name] = loop.step(x, states[name])
                    if not is_same(y, expected):
                        raise LinkError(f"step {step}: y is {y}, expected {expected.tolist()}")
