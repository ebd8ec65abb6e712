"""The gate: does a variant compute what was trained, over thousands of carried steps?

Rules
- Every measurement runs the very `Runtime` that the service runs.
- The reference is the user's eager module in float32, run over the whole sequence at once; the
  variant gets the same sequence in random chunks with its own state carried.
- `teacher-forced`: the example's real input, at least `MIN_STEPS` steps (a shorter example is
  cycled, and the report says so); of a windowed model `MIN_STEPS` in all rows together, since its
  answers cannot drift for longer than its window. `closed-loop`, for models whose y can be their
  next x: from many points of the example, each feeds its own output back for `HORIZON` steps.
  `generated`, for models of text: the reference writes on greedily from there for `HORIZON` tokens,
  and the variant reads what it wrote; were it to read its own, one near tie would end the
  comparison.
- The tolerance is stated as atol and rtol of the model's units. A variant that exceeds it anywhere
  fails, and then nothing at all is written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from export.errors import CausalityError
from export.reference import Reference
from service.artifact import Golden
from service.layout import State
from service.manifest import Parity, Ports, Tolerance
from service.pipeline import Pipeline
from service.runtime import Runtime

Array = np.ndarray
MIN_STEPS = 2_000
MAX_STEPS = 10_000  # of the example that count: the eager reference takes about 0.1 ms a step
MIN_WINDOWS = 4  # in each row: a windowed model's step takes as long as its whole window
MAX_ROWS = 4
HORIZON = 50
STARTS = 16
MAX_CHUNK = 64
GOLDEN_ROWS, GOLDEN_STEPS = 4, 64
TEACHER_FORCED, CLOSED_LOOP, GENERATED = "teacher-forced", "closed-loop", "generated"

FLOAT_TOLERANCE = Tolerance(atol=1e-5, rtol=1e-5)
# int8 is measured against what the output does: a share of the reference's standard deviation,
# and never less than the floor, which is as much of the data's own where the model is standardised
# (of the threshold, where y is the error of a reconstruction).
INT8_SHARE = {TEACHER_FORCED: 0.1, CLOSED_LOOP: 0.3, GENERATED: 0.1}
INT8_FLOOR = {TEACHER_FORCED: 0.01, CLOSED_LOOP: 0.03, GENERATED: 0.01}
FLOAT_CLOSED_LOOP = Tolerance(
    atol=1e-4, rtol=1e-4
)  # feedback multiplies rounding by the loop's gain


@dataclass(frozen=True)
class Case:
    """One input, and the reference's answer to it, in the model's units.

    x (B, T, ...) float32 or int64, y (B, T, ...); `cuts` are the steps at which a chunk begins.
    In a closed loop x is the first step only, (B, 1, ...), and the rows begin at `starts` of the
    teacher-forced case, as those of generated text do.
    """

    name: str
    x: Array
    y: Array
    cuts: tuple[int, ...]
    cycled: bool = False


@dataclass(frozen=True)
class Measured:
    """The error of one variant over one case: |variant - reference|, greatest of each step."""

    variant: str
    case: Case
    errors: Array  # (T,) in the model's units
    excess: Array  # (T,) error / tolerance, greatest of each step
    tolerance: Tolerance

    @property
    def passed(self) -> bool:
        return bool((self.excess <= 1).all())  # False for NaN

    @property
    def share_of_spread(self) -> float:
        """The greatest error as a share of the standard deviation of the reference's y."""
        return float(self.errors.max() / max(float(self.case.y.std()), float(np.finfo("f4").tiny)))

    @property
    def worst(self) -> int:
        """The step of the greatest error (of the greatest excess, if it failed)."""
        return int(np.nanargmax(self.errors if self.passed else self.excess))

    def summary(self) -> Parity:
        return Parity(
            case=self.case.name,
            steps=len(self.errors),
            tolerance=self.tolerance,
            max_error=float(self.errors.max()),
            at_step=int(self.errors.argmax()),
            passed=self.passed,
        )


class Gate:
    """The cases of one reference and example."""

    def __init__(self, reference: Reference, x: Array, ports: Ports, pipeline: Pipeline) -> None:
        """Args:
        x: (N, T, ...) the example, in the model's units and dtype.
        """
        self._reference = reference
        self._ports = ports
        self._pipeline = pipeline
        long, cycled = _long(x, reference.window)
        self._rng = np.random.default_rng(0)
        warm = reference.window or MIN_STEPS // 10
        starts = np.linspace(warm, long.shape[1] - 1, STARTS).astype(int)
        cuts = _cuts(self._rng, long.shape[1], starts)
        y, self._states = _run_reference(reference, long, cuts)
        self.teacher_forced = Case(TEACHER_FORCED, long, y, cuts, cycled)
        self._starts = starts
        self.closed_loop = self._closed_loop_case() if self._can_close() else None
        self.generated = self._generated_case() if self._can_write() else None
        self.golden = _golden(reference, x)

    @property
    def state_ranges(self) -> dict[str, tuple[float, float]]:
        """The least and greatest value of each state, seen at the chunks' ends."""
        found = {}
        for spec in self._reference.states:
            values = np.stack([state[spec.name] for state in self._states.values()])
            found[spec.name] = (float(values.min()), float(values.max()))
        return found

    def check_causal(self) -> None:
        """The module by itself gives what it gives in chunks with its state carried.

        Raises:
            CausalityError: it does not; the message says where, and what looks ahead.
        """
        case = self.teacher_forced
        count = case.x.shape[1]
        steps = self._reference.whole_steps(count)
        steps = list(range(count) if steps is None else steps)
        with torch.no_grad():
            whole = self._reference.whole(torch.from_numpy(case.x), steps).numpy()
        chunked = case.y[:, steps]
        error = np.abs(whole - chunked)
        excess = error - FLOAT_TOLERANCE.atol - FLOAT_TOLERANCE.rtol * np.abs(chunked)
        if not (excess <= 0).all():
            step = steps[int(np.nanargmax(excess.reshape(*excess.shape[:2], -1).max(axis=(0, 2))))]
            raise CausalityError(
                f"the module gives another y in chunks than over the whole sequence: off by "
                f"{np.nanmax(error):.1e} (allowed {FLOAT_TOLERANCE.atol:g}), worst at step {step} "
                f"of {count}. {self._reference.what_looks_ahead()}{self._way_out()}"
            )

    def _way_out(self) -> str:
        if self._reference.window:
            return ""
        return (
            ". `--mode windowed --window N` serves it on its last N inputs, N as many as in a "
            "training window"
        )

    def tolerances(self, variant: str, override: float | None) -> dict[str, Tolerance]:
        """atol and rtol of each case for `variant`; `override` is an atol given by the user."""
        if override is not None:
            return {case.name: Tolerance(atol=override) for case in self.cases}
        if "int8" not in variant:
            given = {TEACHER_FORCED: FLOAT_TOLERANCE, GENERATED: FLOAT_TOLERANCE}
            return {**given, CLOSED_LOOP: FLOAT_CLOSED_LOOP}
        spread = float(self.teacher_forced.y.std())
        return {
            name: Tolerance(atol=_round(max(self._floor(name), share * spread)))
            for name, share in INT8_SHARE.items()
        }

    def _floor(self, case: str) -> float:
        """A score's scale is its threshold: an error as large as the data's own would hide it."""
        alarm = self._pipeline.alarm
        if alarm and alarm.is_reconstruction:
            return INT8_SHARE[case] * abs(alarm.threshold)
        return INT8_FLOOR[case]

    @property
    def cases(self) -> list[Case]:
        more = [self.closed_loop, self.generated]
        return [self.teacher_forced, *(case for case in more if case is not None)]

    def measure(self, runtime: Runtime, override: float | None = None) -> list[Measured]:
        """Run every case through `runtime`."""
        tolerances = self.tolerances(runtime.variant, override)
        y, states = _run_chunks(runtime, self.teacher_forced, self._initial())
        measured = [_compare(runtime.variant, self.teacher_forced, y, tolerances[TEACHER_FORCED])]
        if self.closed_loop:
            start = self._gather(states)
            y = self._run_closed_loop(runtime, start)
            measured.append(_compare(runtime.variant, self.closed_loop, y, tolerances[CLOSED_LOOP]))
        if self.generated:
            y, _ = runtime.run(self.generated.x, self._gather(states))
            measured.append(_compare(runtime.variant, self.generated, y, tolerances[GENERATED]))
        return measured

    def _initial(self) -> State:
        initial = self._reference.initial(len(self.teacher_forced.x))
        return {name: value.numpy() for name, value in initial.items()}

    def _can_close(self) -> bool:
        x, y = self._ports.x, self._ports.y
        if self._pipeline.y_means(y.shape[2:]) != "numbers":
            return False
        return x.dtype == y.dtype == "float32" and x.shape == y.shape

    def _can_write(self) -> bool:
        return self._pipeline.y_means(self._ports.y.shape[2:]) == "tokens"

    def _gather(self, states: Mapping[int, State]) -> State:
        """The states at the starts, all rows of all starts side by side: name -> (S * B, ...)."""
        return {
            spec.name: np.concatenate([states[int(start)][spec.name] for start in self._starts])
            for spec in self._reference.states
        }

    def _feed_back(self, y: Array) -> Array:
        raw = self._pipeline.decode(y)
        return self._pipeline.encode(raw).astype(np.float32)

    def _closed_loop_case(self) -> Case:
        xs, y = self._roll_out(self._feed_back)
        return Case(CLOSED_LOOP, xs[:, :1], y, ())

    def _generated_case(self) -> Case:
        xs, y = self._roll_out(self._write)
        return Case(GENERATED, xs, y, ())

    def _write(self, y: Array) -> Array:
        """The likeliest token of each row's step as its next x."""
        ids = y.argmax(axis=-1)
        one_hot = self._ports.x.dtype == "float32"
        return self._pipeline.one_hot(ids) if one_hot else np.asarray(ids, np.int64)

    def _roll_out(self, follow: Callable[[Array], Array]) -> tuple[Array, Array]:
        """The reference from the starts on, each x made of the y before: x, y (S * B, T, ...)."""
        x = np.concatenate([self.teacher_forced.x[:, s : s + 1] for s in self._starts])
        states = {n: torch.from_numpy(v) for n, v in self._gather(self._states).items()}
        xs, ys = [], []
        with torch.no_grad():
            for _ in range(HORIZON):
                y, states = self._reference.run(torch.from_numpy(x), states)
                xs.append(x)
                ys.append(y.numpy())
                x = follow(ys[-1])
        return np.concatenate(xs, axis=1), np.concatenate(ys, axis=1)

    def _run_closed_loop(self, runtime: Runtime, state: State) -> Array:
        if self.closed_loop is None:
            raise CausalityError("this model's y cannot be its next x")
        x, ys = self.closed_loop.x, []
        for _ in range(HORIZON):
            y, state = runtime.run(x, state)
            ys.append(y)
            x = self._feed_back(y)
        return np.concatenate(ys, axis=1)


def _long(x: Array, window: int | None) -> tuple[Array, bool]:
    """The example as at most MAX_ROWS rows of MIN_STEPS to MAX_STEPS steps, cycled if shorter."""
    least, most = MIN_STEPS, MAX_STEPS
    if window:
        least = most = max(-(-MIN_STEPS // min(len(x), MAX_ROWS)), MIN_WINDOWS * window)
    rows = x[:MAX_ROWS, :most]
    repeats = -(-least // rows.shape[1])
    if repeats == 1:
        return np.ascontiguousarray(rows), False
    return np.concatenate([rows] * repeats, axis=1)[:, :most], True


def _cuts(rng: np.random.Generator, steps: int, starts: Array) -> tuple[int, ...]:
    cuts = {0, *(int(s) for s in starts)}
    at = 0
    while at < steps:
        cuts.add(at)
        at += int(rng.integers(1, MAX_CHUNK))
    return tuple(sorted(cuts))


def _chunks(case_cuts: Sequence[int], steps: int) -> list[tuple[int, int]]:
    return list(zip(case_cuts, [*case_cuts[1:], steps], strict=True))


def _run_reference(
    reference: Reference, x: Array, cuts: Sequence[int]
) -> tuple[Array, dict[int, State]]:
    """y, and the state before each cut."""
    ys, states = [], {}
    state = reference.initial(len(x))
    with torch.no_grad():
        for start, stop in _chunks(cuts, x.shape[1]):
            states[start] = {name: value.numpy() for name, value in state.items()}
            y, state = reference.run(torch.from_numpy(x[:, start:stop]), state)
            ys.append(y.numpy())
    return np.concatenate(ys, axis=1), states


def _run_chunks(runtime: Runtime, case: Case, state: State) -> tuple[Array, dict[int, State]]:
    ys, states = [], {}
    for start, stop in _chunks(case.cuts, case.x.shape[1]):
        states[start] = state
        y, state = runtime.run(np.ascontiguousarray(case.x[:, start:stop]), state)
        ys.append(y)
    return np.concatenate(ys, axis=1), states


def _compare(variant: str, case: Case, y: Array, tolerance: Tolerance) -> Measured:
    error = np.abs(y.astype(np.float64) - case.y).reshape(*case.y.shape[:2], -1)
    allowed = tolerance.atol + tolerance.rtol * np.abs(case.y).reshape(error.shape)
    return Measured(
        variant, case, error.max(axis=(0, 2)), (error / allowed).max(axis=(0, 2)), tolerance
    )


def _golden(reference: Reference, x: Array) -> Golden:
    """A few pieces of the example, evenly spaced, from the initial state."""
    steps = min(GOLDEN_STEPS, x.shape[1])
    if reference.window:
        steps = max(GOLDEN_STEPS, reference.window + GOLDEN_STEPS // 4)  # full windows, which move
        x = np.concatenate([x] * -(-steps // x.shape[1]), axis=1)
    starts = np.linspace(0, x.shape[1] - steps, GOLDEN_ROWS).astype(int)
    rows = np.stack([x[k % len(x), s : s + steps] for k, s in enumerate(starts)])
    with torch.no_grad():
        y, final = reference.run(torch.from_numpy(rows), reference.initial(GOLDEN_ROWS))
    return Golden(rows, y.numpy(), {name: value.numpy() for name, value in final.items()})


def _round(value: float) -> float:
    """Two significant digits: a tolerance to be read by people."""
    return float(f"{value:.1e}")
