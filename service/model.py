"""A served model: an artifact, one of its variants loaded, and proof that it computes here.

Rules
- A model is served only after it replayed its golden sequences on this machine within the
  variant's tolerance: each alone, all in one batch, and one of them step by step with the state
  carried. A wrong state shows in the y of the next step, so y is what is compared.
- A variant that was isolated where it was exported, and is not on this machine's kernels, runs
  one row and one step at a time.
- x comes in the client's raw units and y goes back in them; nothing else sees raw units.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

import numpy as np
from safetensors import SafetensorError

from service.artifact import Array, Artifact, Golden
from service.errors import ArtifactError, SelfTestError, ShapeError
from service.layout import State
from service.manifest import Tolerance, Variant
from service.reading import Reader
from service.runtime import Runtime
from service.wire import RowShape, refuse_not_finite

TEACHER_FORCED = "teacher-forced"  # the parity case whose x is given, as the golden one's is
logger = logging.getLogger("carousel.model")

_COST_ROWS = 64  # the second point of the cost line; the first is one row
_COST_REPEATS = 5  # the median of five is steady enough for a choice between inline and thread


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
    def load(cls, path: Path, variant: str | None = None, threads: int = 1) -> "Model":
        """Load the artifact in directory `path` and replay its golden sequences.

        Raises:
            ArtifactError: the artifact is broken, or has no such variant. Export it again.
            SelfTestError: this machine computes something else. Choose another variant.
        """
        artifact = Artifact.load(path)
        name = variant or artifact.manifest.default_variant
        runtime = Runtime(artifact, name, threads)
        golden = _read_golden(artifact)
        _self_test(artifact, runtime, golden)
        return cls(artifact, runtime, _measure_cost(artifact, runtime, golden))

    @property
    def name(self) -> str:
        return self.artifact.manifest.name

    @property
    def version(self) -> str:
        return self.artifact.manifest.version

    @property
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
            x = self.artifact.manifest.pipeline.one_hot(x)
        if x.ndim != len(shape.tail) + 1 or x.shape[1:] != shape.tail or 0 in x.shape:
            raise ShapeError(
                f"`x` has shape {x.shape}, expected {shape.wanted} from manifest port `x`"
            )
        refuse_not_finite(x)
        self._refuse_unknown_ids(x)
        with np.errstate(over="ignore"):  # the overflow is found in its result, just below
            encoded = self.artifact.manifest.pipeline.encode(x).astype(shape.dtype)
        refuse_not_finite(encoded, f" in {shape.dtype}: {_extreme(x)} is too large")
        return np.ascontiguousarray(encoded)

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
        return np.ascontiguousarray(self.artifact.manifest.pipeline.decode(y))

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
        layout = self.artifact.layout
        x, lengths = _pad(chunks)
        y, after = self.runtime.run(x, layout.unpack(states), lengths)
        finite = _finite_rows(y, after)
        return [y[b, :n] for b, n in enumerate(lengths)], layout.pack(after), finite


def _pad(chunks: Sequence[Array]) -> tuple[Array, Array]:
    lengths = np.array([len(chunk) for chunk in chunks], np.int64)
    if len(chunks) == 1:
        return chunks[0][np.newaxis], lengths
    x = np.zeros((len(chunks), lengths.max(), *chunks[0].shape[1:]), chunks[0].dtype)
    for b, chunk in enumerate(chunks):
        x[b, : len(chunk)] = chunk
    return x, lengths


def _finite_rows(y: Array, state: State) -> list[bool]:
    arrays = [a for a in (y, *state.values()) if a.dtype.kind == "f"]
    if all(np.isfinite(array).all() for array in arrays):
        return [True] * len(y)
    rows = [np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in arrays]
    return [bool(ok) for ok in np.logical_and.reduce(rows)]


def _extreme(x: Array) -> float:
    return float(x.flat[int(np.abs(x).argmax())])


# The self-test ---------------------------------------------------------------------------------


def _read_golden(artifact: Artifact) -> Golden:
    try:
        return artifact.golden()
    except (KeyError, SafetensorError) as error:
        raise ArtifactError(
            f"{artifact.path / artifact.manifest.golden.file} cannot be read ({error}); "
            "export the model again",
            artifact=str(artifact.path),
        ) from error


def _self_test(artifact: Artifact, runtime: Runtime, golden: Golden) -> None:
    tolerance = _tolerance(artifact.variant(runtime.variant))
    initial = artifact.initial
    found: list[Array] = []
    ways: dict[str, Callable[[], Array]] = {
        "each alone": lambda: np.concatenate(
            [runtime.run(golden.x[n : n + 1], initial)[0] for n in range(len(golden.x))]
        ),
        "in one batch": lambda: runtime.run(golden.x, _repeat(initial, len(golden.x)))[0],
        "step by step": lambda: _step_by_step(runtime, golden.x[:1], initial),
    }
    for way, compute in ways.items():
        try:
            y = compute()
        except Exception as error:  # ONNX Runtime's and torch's share no base but Exception
            raise SelfTestError(
                f"{runtime.variant} of {artifact.path} cannot run its golden sequences {way}: "
                f"{error}",
                artifact=str(artifact.path),
                variant=runtime.variant,
            ) from error
        _compare(artifact, runtime.variant, way, y, golden.y, tolerance)
        found.append(y)
    alone, batched, stepped = found
    same = alone.tobytes() == batched.tobytes() and alone[:1].tobytes() == stepped.tobytes()
    if runtime.isolated and not same:
        logger.warning(
            "%s of %s gives other bits in a batch or in chunks on this machine than alone, though "
            "not where it was exported; it runs one row and one step at a time",
            runtime.variant,
            artifact.path,
        )
        runtime.isolated = False


def _tolerance(variant: Variant) -> Tolerance:
    """What the gate allowed where x is given; else the widest that it allowed."""
    for parity in variant.parity:
        if parity.case.startswith(TEACHER_FORCED):
            return parity.tolerance
    widest = max(
        (p.tolerance for p in variant.parity), key=lambda t: (t.atol, t.rtol), default=None
    )
    if widest is None:
        raise SelfTestError(f"{variant.file} has no parity in the manifest; export the model again")
    return widest


def _repeat(state: State, batch: int) -> State:
    return {name: np.repeat(value, batch, axis=0) for name, value in state.items()}


def _step_by_step(runtime: Runtime, x: Array, state: State) -> Array:
    ys = []
    for t in range(x.shape[1]):
        y, state = runtime.run(x[:, t : t + 1], state)
        ys.append(y)
    return np.concatenate(ys, axis=1)


def _compare(
    artifact: Artifact, variant: str, way: str, y: Array, golden: Array, tolerance: Tolerance
) -> None:
    expected = golden[: len(y)]
    if y.shape != expected.shape:
        raise SelfTestError(
            f"{variant} of {artifact.path} gives y of shape {y.shape} for its golden sequences, "
            f"expected {expected.shape}; export the model again",
            artifact=str(artifact.path),
            variant=variant,
        )
    error = np.abs(y.astype(np.float64) - expected)
    excess = error - (tolerance.atol + tolerance.rtol * np.abs(expected))
    if (excess <= 0).all():  # NaN compares false, and so fails
        return
    sequence, step = np.unravel_index(int(np.nan_to_num(excess, nan=np.inf).argmax()), y.shape)[:2]
    raise SelfTestError(
        f"{variant} of {artifact.path} is off by {error[sequence, step].max():.2g} at step {step} "
        f"of golden sequence {sequence}, run {way} (atol {tolerance.atol:g}, "
        f"rtol {tolerance.rtol:g}): this machine computes something else than was exported; "
        "choose another variant or export the model here",
        artifact=str(artifact.path),
        variant=variant,
    )


def _measure_cost(artifact: Artifact, runtime: Runtime, golden: Golden) -> Cost:
    one = _time_step(artifact, runtime, golden, 1)
    many = _time_step(artifact, runtime, golden, _COST_ROWS)
    per_row = max(many - one, 0.0) / (_COST_ROWS - 1)
    return Cost(base_s=max(one - per_row, 0.0), per_row_s=per_row)


def _time_step(artifact: Artifact, runtime: Runtime, golden: Golden, rows: int) -> float:
    x = np.repeat(golden.x[:1, :1], rows, axis=0)
    state = _repeat(artifact.initial, rows)
    times = []
    for _ in range(_COST_REPEATS):
        start = time.perf_counter()
        runtime.run(x, state)
        times.append(time.perf_counter() - start)
    return median(times)
