"""A served model: an artifact, one of its variants loaded, and proof that it computes here.

Rules
- A model is served only after it passed its self-test on this machine; one line of the log says
  what was found, and on which CPU.
- A variant that was isolated where it was exported, and is not on this machine's kernels, runs
  one row and one step at a time.
- x comes in the client's raw units and y goes back in them; nothing else sees raw units.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from service.artifact import Array, Artifact, Golden
from service.cpu import read_cpu
from service.errors import NotIsolatedError, ShapeError, StateTooLargeError
from service.layout import State
from service.pieces import cut, run_pieces
from service.pipeline import Pipeline
from service.reading import Reader
from service.runtime import Runtime
from service.self_test import repeat, run_self_test
from service.wire import RowShape, all_finite, refuse_not_finite

logger = logging.getLogger("carousel.model")

_COST_ROWS = 64  # the second point of the cost line; the first is one row
_COST_REPEATS = 5  # the least of five: whatever else runs here makes some slower, and none faster


@dataclass(frozen=True)
class Cost:
    """The time of one step of a batch, as a line through two measured points."""

    base_s: float
    per_row_s: float

    def estimate_s(self, rows: int, steps: int) -> float:
        return steps * (self.base_s + rows * self.per_row_s)


@dataclass(frozen=True, eq=False)
class Model:
    """One variant of an artifact, ready to serve; equal to itself only."""

    artifact: Artifact
    runtime: Runtime
    cost: Cost

    @classmethod
    def load(
        cls,
        path: Path,
        variant: str | None = None,
        threads: int = 1,
        batch: int | None = None,
        max_state_bytes: int | None = None,
    ) -> "Model":
        """Load the artifact in directory `path` and replay its golden sequences.

        Args:
            batch: rows of a batch, if the operator asked for a number.
            max_state_bytes: what the state of one session may take; None: any.
        Raises:
            StateTooLargeError: it takes more. Allow it, or export a smaller model.
            NotIsolatedError: they asked for several, and the variant takes one at a time.
            ArtifactError: the artifact is broken, or has no such variant. Export it again.
            SelfTestError: this machine computes something else. Choose another variant.
        """
        artifact = Artifact.load(path)
        variant = variant or artifact.manifest.default_variant
        if batch is not None and batch > 1:
            _refuse_mixed_rows(artifact, variant, batch)
        if max_state_bytes is not None:
            _refuse_large_state(artifact, max_state_bytes)
        runtime = Runtime(artifact, variant, threads)
        golden = artifact.golden()
        _prove(artifact, runtime, golden)
        return cls(artifact, runtime, _measure_cost(artifact, runtime, golden))

    @cached_property
    def name(self) -> str:
        return self.artifact.manifest.name

    @cached_property
    def version(self) -> str:
        return self.artifact.manifest.version

    @cached_property
    def reference(self) -> str:
        return f"{self.name}:{self.version}"

    @cached_property
    def row_shape(self) -> RowShape:
        """What a client's x must look like."""
        manifest = self.artifact.manifest
        port = manifest.ports.x
        tail = tuple(int(dim) for dim in port.shape[2:])
        return RowShape(tail, port.dtype, manifest.pipeline.tokens)

    @cached_property
    def _pipeline(self) -> Pipeline:
        return self.artifact.manifest.pipeline

    @cached_property
    def _dtype(self) -> "np.dtype[Any]":
        return np.dtype(self.row_shape.dtype)

    @cached_property
    def reader(self) -> Reader:
        """What reads y for a reply."""
        manifest = self.artifact.manifest
        return Reader(manifest.pipeline, manifest.ports.y.shape[2:])

    @cached_property
    def initial_state(self) -> bytes:
        """The blob of a session that has not begun."""
        return self.artifact.layout.pack(self.artifact.initial)[0]

    def encode(self, x: Array) -> Array:
        """Raw x (T, ...), or (T,) ids -> (T, ...) of the port's dtype, in its units. A copy.

        Raises:
            ShapeError: x is not of the shape that the manifest's port says.
            NotFiniteError: x holds NaN or infinity, before or after scaling and the cast.
        """
        shape = self.row_shape
        if shape.vocabulary is not None and x.ndim < len(shape.tail) + 1:
            x = self._pipeline.one_hot(x)
        if x.shape[1:] != shape.tail or 0 in x.shape or x.ndim != len(shape.tail) + 1:
            raise ShapeError(
                f"`x` has shape {x.shape}, expected {shape.wanted} from manifest port `x`"
            )
        if shape.dtype == "int64":
            refuse_not_finite(x)  # before a cast that would make numbers of NaN
            self._refuse_unknown_ids(x)
        encoded = self._cast(x)
        if not all_finite(encoded):  # as x is not, or it is too large for the port's dtype
            refuse_not_finite(x)
            refuse_not_finite(encoded, f" in {shape.dtype}: {_extreme(x)} is too large")
        return encoded

    def _cast(self, x: Array) -> Array:
        """Standardised, in the port's dtype; what is too large for it becomes infinite."""
        if self._pipeline.x is None and x.dtype == self._dtype:
            return np.array(x, order="C")
        with np.errstate(over="ignore"):
            return self._pipeline.encode(x).astype(self._dtype, order="C")

    def encode_many(self, x: Array) -> Array:
        """`encode` of N requests of equally many steps: (N, T, ...) -> the same; raises as it."""
        return self.encode(x.reshape(-1, *x.shape[2:])).reshape(*x.shape[:2], *self.row_shape.tail)

    def _refuse_unknown_ids(self, x: Array) -> None:
        ids = self.artifact.manifest.ports.x.ids
        if ids is not None and not 0 <= int(x.min()) <= int(x.max()) < ids:
            wrong = int(x.min()) if x.min() < 0 else int(x.max())
            raise ShapeError(
                f"`x` holds the id {wrong}, expected 0 to {ids - 1} from manifest port `x`",
                got=wrong,
                expected=[0, ids - 1],
            )

    def decode(self, y: Array) -> Array:
        """The model's y (T, ...) -> raw units; float64 if the pipeline scales it."""
        return np.ascontiguousarray(self._pipeline.decode(y))

    def run(
        self, chunks: Sequence[Array], states: Sequence[bytes]
    ) -> tuple[list[Array], list[bytes], list[bool]]:
        """Advance B sessions at once, each by its own chunk.

        Args:
            chunks: B arrays (T_b, ...) as `encode` makes them; the lengths may differ.
            states: B blobs of this model's layout.
        Returns:
            B arrays y (T_b, ...) in the model's units, B new blobs, and for each row whether all
            of its y and state is finite.
        """
        lengths = [len(chunk) for chunk in chunks]
        if min(lengths) < max(lengths):
            return self._run_mixed(chunks, states, lengths)
        layout, first = self.artifact.layout, chunks[0]
        x = first if len(chunks) == 1 else np.concatenate(chunks)
        x = x.reshape(len(chunks), *first.shape)
        y, after = self.runtime.run(x, layout.unpack(states))
        return list(y), layout.pack(after), _finite_rows(y, after)

    def _run_mixed(
        self, chunks: Sequence[Array], states: Sequence[bytes], lengths: Sequence[int]
    ) -> tuple[list[Array], list[bytes], list[bool]]:
        layout, runtime = self.artifact.layout, self.runtime
        order = sorted(range(len(chunks)), key=lambda row: -lengths[row])
        long_first = [lengths[row] for row in order]
        x = np.zeros((len(chunks), long_first[0], *chunks[0].shape[1:]), chunks[0].dtype)
        for place, row in enumerate(order):
            x[place, : lengths[row]] = chunks[row]
        state, counts = layout.unpack([states[row] for row in order]), np.array(long_first)
        if runtime.isolated:
            pieces = cut(long_first, self.cost.per_row_s, self.cost.base_s)
            y, after = run_pieces(runtime.run, x, state, counts, pieces)
        else:
            y, after = runtime.run(x, state, counts)
        places = np.argsort(order)
        blobs, finite = layout.pack(after), _finite_rows(y, after)
        ys = [y[place, :length] for place, length in zip(places, lengths, strict=True)]
        return ys, [blobs[place] for place in places], [finite[place] for place in places]

    def run_many(self, x: Array, state: State) -> tuple[Array, State, Array]:
        """Advance B sessions by equally many steps.

        Args:
            x: (B, T, ...) as `encode_many` makes it.
            state: name -> (B, ...).
        Returns:
            y (B, T, ...) in the model's units, the new state, and (B,) bool: whether all of a row's
            y and state is finite.
        """
        y, after = self.runtime.run(x, state)
        return y, after, np.array(_finite_rows(y, after))


def _finite_rows(y: Array, state: State) -> list[bool]:
    arrays = [a for a in (y, *state.values()) if a.dtype.kind == "f"]
    if all(all_finite(array) for array in arrays):
        return [True] * len(y)
    rows = [np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in arrays]
    return [bool(ok) for ok in np.logical_and.reduce(rows)]


def _extreme(x: Array) -> float:
    return float(x.flat[int(np.abs(x).argmax())])


# At load ---------------------------------------------------------------------------------------


def _refuse_mixed_rows(artifact: Artifact, variant: str, batch: int) -> None:
    if artifact.variant(variant).isolated:
        return
    others = [name for name, entry in artifact.manifest.variants.items() if entry.isolated]
    instead = f", or set CAROUSEL_VARIANT to one of {others}" if others else ""
    raise NotIsolatedError(
        f"{variant} of {artifact.path} is not isolated: in a batch, a session's answers would "
        f"depend on the sessions beside it, and CAROUSEL_MAX_BATCH={batch} asks for batches; unset "
        f"it (the variant then runs one session in a call){instead}",
        artifact=str(artifact.path),
        variant=variant,
    )


def _refuse_large_state(artifact: Artifact, most: int) -> None:
    size = len(artifact.layout.pack(artifact.initial)[0])
    if size > most:
        raise StateTooLargeError(
            f"a session of {artifact.path} has a state of {size} bytes, the server takes {most}; "
            f"set CAROUSEL_MAX_STATE_BYTES={size}, or export a smaller model",
            artifact=str(artifact.path),
            got=size,
            expected=most,
        )


def _prove(artifact: Artifact, runtime: Runtime, golden: Golden) -> None:
    """Run the self-test; a variant that mixes rows on this machine runs them apart from now on."""
    found = run_self_test(artifact, runtime, golden)
    if error := found.failure():
        raise error
    if runtime.isolated and not found.isolated:
        logger.warning(
            "%s of %s gives other bits in a batch or in chunks on this machine than alone, though "
            "not where it was exported; it runs one row and one step at a time",
            runtime.variant,
            artifact.path,
        )
    runtime.isolated = found.isolated
    logger.info(
        "%s:%s %s: golden sequences within %.1e of the reference, %.1e allowed; %s; %s on %s",
        artifact.manifest.name,
        artifact.manifest.version,
        runtime.variant,
        found.worst.max_error,
        found.worst.allowed,
        "isolated" if found.isolated else "not isolated",
        runtime.engine,
        read_cpu(),
    )


def _measure_cost(artifact: Artifact, runtime: Runtime, golden: Golden) -> Cost:
    one = _time_step(artifact, runtime, golden, 1)
    many = _time_step(artifact, runtime, golden, _COST_ROWS)
    per_row = max(many - one, 0.0) / (_COST_ROWS - 1)
    return Cost(base_s=max(one - per_row, 0.0), per_row_s=per_row)


def _time_step(artifact: Artifact, runtime: Runtime, golden: Golden, rows: int) -> float:
    x = np.repeat(golden.x[:1, :1], rows, axis=0)
    state = repeat(artifact.initial, rows)
    times = []
    for _ in range(_COST_REPEATS):
        start = time.perf_counter()
        runtime.run(x, state)
        times.append(time.perf_counter() - start)
    return min(times)
