"""What the gate asks: the cases of one reference and example, and the reference's answers.

Rules
- The reference is the user's eager module in float32, with its state carried from chunk to chunk.
- `teacher-forced`: the example's real input, at least `MIN_STEPS` steps (a shorter example is
  cycled, and the report says so); of a windowed model `MIN_STEPS` in all rows together, since its
  answers cannot drift for longer than its window. `closed-loop`, for models whose y can be their
  next x: from many points of the example, each feeds its own output back for `HORIZON` steps.
  `generated`, for models of text: the reference writes on greedily from there for `HORIZON` tokens,
  and the variant reads what it wrote; were it to read its own, one near tie would end the
  comparison.
- Nothing here is drawn otherwise than from a fixed seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from export.reference import Reference
from service.artifact import Golden
from service.layout import State
from service.manifest import Ports
from service.pipeline import Pipeline

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


class Cases:
    """The cases of one reference and example."""

    def __init__(self, reference: Reference, x: Array, ports: Ports, pipeline: Pipeline) -> None:
        """Args:
        x: (N, T, ...) the example, in the model's units and dtype.
        """
        self.reference = reference
        self.pipeline = pipeline
        self._ports = ports
        long, cycled = _long(x, reference.window)
        warm = reference.window or MIN_STEPS // 10
        starts = np.linspace(warm, long.shape[1] - 1, STARTS).astype(int)
        cuts = _cuts(np.random.default_rng(0), long.shape[1], starts)
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
        for spec in self.reference.states:
            values = np.stack([state[spec.name] for state in self._states.values()])
            found[spec.name] = (float(values.min()), float(values.max()))
        return found

    @property
    def every(self) -> list[Case]:
        more = [self.closed_loop, self.generated]
        return [self.teacher_forced, *(case for case in more if case is not None)]

    def _can_close(self) -> bool:
        x, y = self._ports.x, self._ports.y
        if self.pipeline.y_means(y.shape[2:]) != "numbers":
            return False
        return x.dtype == y.dtype == "float32" and x.shape == y.shape

    def _can_write(self) -> bool:
        return self.pipeline.y_means(self._ports.y.shape[2:]) == "tokens"

    def gather(self, states: Mapping[int, State]) -> State:
        """The states at the starts, all rows of all starts side by side: name -> (S * B, ...)."""
        return {
            spec.name: np.concatenate([states[int(start)][spec.name] for start in self._starts])
            for spec in self.reference.states
        }

    def feed_back(self, y: Array) -> Array:
        """y as the next x."""
        raw = self.pipeline.decode(y)
        return self.pipeline.encode(raw).astype(np.float32)

    def _closed_loop_case(self) -> Case:
        xs, y = self._roll_out(self.feed_back)
        return Case(CLOSED_LOOP, xs[:, :1], y, ())

    def _generated_case(self) -> Case:
        xs, y = self._roll_out(self._likeliest)
        return Case(GENERATED, xs, y, ())

    def _likeliest(self, y: Array) -> Array:
        """The likeliest token of each row's step as its next x."""
        ids = y.argmax(axis=-1)
        one_hot = self._ports.x.dtype == "float32"
        return self.pipeline.one_hot(ids) if one_hot else np.asarray(ids, np.int64)

    def _roll_out(self, follow: Callable[[Array], Array]) -> tuple[Array, Array]:
        """The reference from the starts on, each x made of the y before: x, y (S * B, T, ...)."""
        x = np.concatenate([self.teacher_forced.x[:, s : s + 1] for s in self._starts])
        states = {n: torch.from_numpy(v) for n, v in self.gather(self._states).items()}
        xs, ys = [], []
        with torch.no_grad():
            for _ in range(HORIZON):
                y, states = self.reference.run(torch.from_numpy(x), states)
                xs.append(x)
                ys.append(y.numpy())
                x = follow(ys[-1])
        return np.concatenate(xs, axis=1), np.concatenate(ys, axis=1)


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


def chunks(case_cuts: Sequence[int], steps: int) -> list[tuple[int, int]]:
    """The start and the end of each chunk."""
    return list(zip(case_cuts, [*case_cuts[1:], steps], strict=True))


def _run_reference(
    reference: Reference, x: Array, cuts: Sequence[int]
) -> tuple[Array, dict[int, State]]:
    """y, and the state before each cut."""
    ys, states = [], {}
    state = reference.initial(len(x))
    with torch.no_grad():
        for start, stop in chunks(cuts, x.shape[1]):
            states[start] = {name: value.numpy() for name, value in state.items()}
            y, state = reference.run(torch.from_numpy(x[:, start:stop]), state)
            ys.append(y.numpy())
    return np.concatenate(ys, axis=1), states


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
