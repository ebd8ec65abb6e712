"""The self-test: an artifact's golden sequences, replayed by a runtime on this machine.

Rules
- A variant is sound here when y is within its tolerance of the reference's answers, whichever way
  the sequences are run: each alone, all in one batch, and one step by step with the state carried.
  A wrong state shows in the y of the next step, so y is what is compared.
- It is isolated here when these ways agree bit for bit, and neighbours with hostile values (huge,
  denormal) in a larger batch do not move a bit either. A variant that was isolated where it was
  exported need not be so on this machine's kernels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from service.artifact import Array, Artifact, Golden
from service.errors import SelfTestError
from service.layout import State
from service.manifest import Tolerance, Variant
from service.runtime import Runtime

TEACHER_FORCED = "teacher-forced"  # the parity case whose x is given, as the golden one's is
ALONE, BATCHED, STEP_BY_STEP = "each alone", "in one batch", "step by step"
CROWD_ROWS, CROWD_STEPS = 64, 8  # kernels for wide batches, in some milliseconds
HOSTILE = (1.0, 1e4, 1e30, 1e-40)  # the scale of neighbours; the last is denormal


@dataclass(frozen=True)
class Replay:
    """The golden sequences run in one way, at the element that is nearest to its limit."""

    way: str
    max_error: float  # |y - golden| there, in the model's units
    allowed: float  # atol + rtol * |golden| there
    sequence: int
    step: int

    @property
    def passed(self) -> bool:
        return self.max_error <= self.allowed  # NaN compares false, and so fails


@dataclass(frozen=True)
class SelfTest:
    """What the replay of one variant found."""

    artifact: str
    variant: str
    tolerance: Tolerance
    replays: tuple[Replay, ...]
    isolated: bool  # on this machine; never where the manifest says that it is not

    @property
    def passed(self) -> bool:
        return all(replay.passed for replay in self.replays)

    @property
    def worst(self) -> Replay:
        """A failed one, if any; else the one nearest to its limit."""
        return max(self.replays, key=lambda r: (not r.passed, r.max_error - r.allowed))

    def failure(self) -> SelfTestError | None:
        """The error of the first way that failed."""
        for replay in self.replays:
            if not replay.passed:
                return SelfTestError(
                    f"{self.variant} of {self.artifact} is off by {replay.max_error:.2g} at step "
                    f"{replay.step} of golden sequence {replay.sequence}, run {replay.way} "
                    f"(atol {self.tolerance.atol:g}, rtol {self.tolerance.rtol:g}): this machine "
                    "computes something else than was exported; choose another variant or export "
                    "the model here",
                    artifact=self.artifact,
                    variant=self.variant,
                )
        return None


def run_self_test(artifact: Artifact, runtime: Runtime, golden: Golden) -> SelfTest:
    """Replay `golden` in every way; `runtime` stays as it is.

    Raises:
        SelfTestError: the variant cannot run them, or gives y of another shape. Export it again.
    """
    initial = artifact.initial
    count = len(golden.x)
    ways: dict[str, Callable[[], Array]] = {
        ALONE: lambda: np.concatenate(
            [runtime.run(golden.x[n : n + 1], initial)[0] for n in range(count)]
        ),
        BATCHED: lambda: runtime.run(golden.x, repeat(initial, count))[0],
        STEP_BY_STEP: lambda: _step_by_step(runtime, golden.x[:1], initial),
    }
    tolerance = _tolerance(artifact.variant(runtime.variant))
    found: list[Array] = []
    replays: list[Replay] = []
    for way, compute in ways.items():
        y = _compute(artifact, runtime, way, compute, golden.y)
        found.append(y)
        replays.append(_compare(way, y, golden.y, tolerance))
    alone, batched, stepped = found
    same = alone.tobytes() == batched.tobytes() and alone[:1].tobytes() == stepped.tobytes()
    isolated = runtime.isolated and same and _holds_in_a_crowd(runtime, golden.x, initial, alone)
    return SelfTest(str(artifact.path), runtime.variant, tolerance, tuple(replays), isolated)


def repeat(state: State, batch: int) -> State:
    """One row of state -> `batch` rows of it."""
    return {name: np.repeat(value, batch, axis=0) for name, value in state.items()}


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


def _step_by_step(runtime: Runtime, x: Array, state: State) -> Array:
    ys = []
    for t in range(x.shape[1]):
        y, state = runtime.run(x[:, t : t + 1], state)
        ys.append(y)
    return np.concatenate(ys, axis=1)


def _compute(
    artifact: Artifact, runtime: Runtime, way: str, compute: Callable[[], Array], golden: Array
) -> Array:
    data = {"artifact": str(artifact.path), "variant": runtime.variant}
    try:
        y = compute()
    except Exception as error:  # ONNX Runtime's and torch's share no base but Exception
        raise SelfTestError(
            f"{runtime.variant} of {artifact.path} cannot run its golden sequences {way}: {error}",
            **data,
        ) from error
    expected = golden[: len(y)].shape
    if y.shape != expected:
        raise SelfTestError(
            f"{runtime.variant} of {artifact.path} gives y of shape {y.shape} for its golden "
            f"sequences, expected {expected}; export the model again",
            **data,
        )
    return y


def _compare(way: str, y: Array, golden: Array, tolerance: Tolerance) -> Replay:
    expected = golden[: len(y)].astype(np.float64)
    error = np.abs(y.astype(np.float64) - expected)
    allowed = tolerance.atol + tolerance.rtol * np.abs(expected)
    place = np.unravel_index(int(np.nan_to_num(error - allowed, nan=np.inf).argmax()), y.shape)
    sequence, step = int(place[0]), int(place[1])
    return Replay(way, float(error[place]), float(allowed[place]), sequence, step)


def _holds_in_a_crowd(runtime: Runtime, x: Array, initial: State, alone: Array) -> bool:
    """Whether the sequences keep their bits, scattered among hostile rows of a larger batch."""
    rng = np.random.default_rng(0)
    batch = max(CROWD_ROWS, 2 * len(x))
    steps = min(CROWD_STEPS, x.shape[1])
    crowd = np.resize(x[:, :steps], (batch, steps, *x.shape[2:]))
    if x.dtype.kind == "f":
        scale = rng.choice(HOSTILE, batch).reshape(-1, *[1] * (x.ndim - 1))
        crowd = np.asarray(rng.standard_normal(crowd.shape) * scale, x.dtype)
    places = rng.permutation(batch)[: len(x)]
    crowd[places] = x[:, :steps]
    try:
        y, _ = runtime.run(crowd, repeat(initial, batch))
    except RuntimeError:  # torch's int8 products refuse the whole batch for one row that is NaN
        return False
    return y[places].tobytes() == np.ascontiguousarray(alone[:, :steps]).tobytes()
