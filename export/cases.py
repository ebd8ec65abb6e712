"""What the gate asks: the cases of one reference and example, and the reference's answers.

Rules
- The reference is the user's eager module in float32, with its state carried from chunk to chunk.
- Cases are `steps` long (`--steps`). A shorter example is cycled, and the report says so; of a
  longer one the first steps count.
- Driven from outside: `teacher-forced`, the example's real input; `shock`, the same with single
  steps thrown far out; `silence`, the same until it falls silent (`driven` says what that is).
- Leading itself: `closed-loop`, for models whose y can be their next x: from many points of the
  example each feeds its own output back, all of them for `HORIZON` steps, `LONG_ROWS` of them for
  `steps`. `generated`, for models of text: the reference writes on greedily from there for
  `HORIZON` tokens, and the variant reads what it wrote; were it to read its own, one near tie would
  end the comparison.
- Errors are judged step by step where the input says what the phase is. A closed loop is judged so
  for `HORIZON` steps, and after them by its climate (`climate`); so is silence in which the
  reference itself does not come to rest.
- A windowed model cannot drift for longer than its window, and takes as long as that for each step:
  its real input is `WINDOWED_STEPS` in all rows together, its shock and silence a few windows, its
  closed loop `HORIZON`.
- A case in which the reference itself gives NaN or infinity is left out.
- Nothing here is drawn otherwise than from a fixed seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from export.climate import Climate
from export.driven import WARM_STEPS, shocked, silenced
from export.reference import Reference
from export.running import Advance, Run, Tell, drive, feed
from export.spread import flat_outputs, spread_of
from service.artifact import Golden
from service.layout import State
from service.manifest import Ports
from service.pipeline import Pipeline

Array = np.ndarray
STEPS = 10_000  # of every case, unless told otherwise
WINDOWED_STEPS = 2_000
MIN_WINDOWS = 4  # in each row of a windowed model
MAX_ROWS = 4
NUDGE = 1e-6  # some ten roundings of float32
HORIZON = 50
STARTS = 16
LONG_ROWS = 1  # of the closed loops goes on: some variants run rows one by one, step by step
LEAST_CLIMATE = 500  # steps after the horizon: fewer do not show a climate
MAX_CHUNK = 64
GOLDEN_ROWS, GOLDEN_STEPS = 4, 64
AT_REST = 0.01  # spreads: what moves less in the second half of a silence has come to rest
TEACHER_FORCED, SHOCK, SILENCE = "teacher-forced", "shock", "silence"
CLOSED_LOOP, GENERATED = "closed-loop", "generated"


@dataclass(frozen=True)
class Case:
    """One input, and the reference's answer to it, in the model's units.

    x (B, T, ...) float32 or int64, y (B, T, ...); `cuts` are the steps at which a chunk begins.
    In a closed loop x is the first step only, (B, 1, ...), and the rows begin at `starts` of the
    teacher-forced case, as those of generated text do; the first of them are `LONG_ROWS` that go
    on, y of the others is zero after `HORIZON`.
    """

    name: str
    x: Array
    y: Array
    cuts: tuple[int, ...]
    cycled: bool = False
    judged: int | None = None  # the first steps, whose errors are judged; None: all
    climate: Climate | None = None  # what the steps after them are held against
    calm: Array | None = None  # of a shocked row: what the reference answers without the shocks
    places: tuple[int, ...] = ()  # of shocks, or where silence begins
    moved: Array | None = None  # (B, T, O) how far rounding has moved the reference's y by then


class Cases:
    """The cases of one reference and example."""

    def __init__(
        self,
        reference: Reference,
        x: Array,
        ports: Ports,
        pipeline: Pipeline,
        steps: int | None = None,
        progress: Callable[[str], None] = lambda what: None,
    ) -> None:
        """Args:
        x: (N, T, ...) the example, in the model's units and dtype.
        steps: of each case; None: `STEPS`.
        """
        self.reference = reference
        self.pipeline = pipeline
        self.means = pipeline.y_means(ports.y.shape[2:])
        self.period = x.shape[1]  # steps after which the example begins again
        self._ports = ports
        self._example = x
        self._steps = STEPS if steps is None else steps
        self._progress = progress
        self._advance = _advance(reference)
        self._same_scaling = pipeline.x == pipeline.y
        self.driven = self._driven_cases()
        self.closed_loop = self._closed_loop_case() if self._can_close() else None
        self.generated = self._generated_case() if self.means == "tokens" else None
        self.golden = _golden(reference, x)

    @property
    def teacher_forced(self) -> Case:
        return self.driven[0][0]

    def named(self, name: str) -> Case | None:
        return next((case for case in self.every if case.name == name), None)

    def pieces(self, steps: int) -> tuple[Array, State]:
        """Pieces of the real input from the starts on: x (N, steps, ...) and the state before."""
        x = self.teacher_forced.x
        places = np.add.outer(self.starts, np.arange(steps)) % x.shape[1]
        return np.concatenate([x[:, at] for at in places]), self.gather(self._states)

    @property
    def every(self) -> list[Case]:
        more = [self.closed_loop, self.generated]
        driven = [case for batch in self.driven for case in batch]
        return [*driven, *(case for case in more if case is not None)]

    @cached_property
    def rounding(self) -> dict[str, Array]:
        """Driven case -> (B, T, O): how far the reference's y has moved by each step when its input
        and state are nudged by `NUDGE` at every chunk. A steep module (a norm of next to nothing)
        is no fixed point of float32, whoever computes it.
        """
        rng, found = np.random.default_rng(0), {}

        def advance(x: Array, state: State) -> tuple[Array, State]:
            nudged = {name: _nudged(value, rng) for name, value in state.items()}
            return self._advance(_nudged(x, rng), nudged)

        for batch in self.driven:
            run = self.run_batch(advance, batch, self._tell(batch[0].cuts[-1]))
            for case, y in zip(batch, split_rows(run.y, batch), strict=True):
                moved = np.abs(flat_outputs(y) - flat_outputs(case.y).astype(np.float64))
                found[case.name] = np.maximum.accumulate(moved, axis=1)
        return found

    def initial(self, batch: int) -> State:
        return {name: value.numpy() for name, value in self.reference.initial(batch).items()}

    def run_batch(self, advance: Advance, batch: Sequence[Case], tell: Tell) -> Run:
        """The cases of one batch, row under row; states are those of its first case's rows."""
        x = np.concatenate([case.x for case in batch])
        starts, rows = {int(start) for start in self.starts}, len(batch[0].x)
        return drive(advance, x, self.initial(len(x)), batch[0].cuts, starts, rows, tell)

    def gather(self, states: Mapping[int, State]) -> State:
        """The states at the starts, all rows of all starts side by side: name -> (S * B, ...)."""
        return {
            spec.name: np.concatenate([states[int(start)][spec.name] for start in self.starts])
            for spec in self.reference.states
        }

    def run_closed_loop(self, advance: Advance, state: State, tell: Tell) -> Run:
        """From the starts on, each row with its own output as its next input."""
        x = self._at_starts()
        lengths = np.full(len(x), HORIZON)
        lengths[:LONG_ROWS] = HORIZON if self.reference.window else max(HORIZON, self._steps)
        return feed(advance, x, state, lengths, self._feed_back, tell)

    def _feed_back(self, y: Array) -> Array:
        """y as the next x."""
        if self._same_scaling:
            return y
        with np.errstate(over="ignore", invalid="ignore"):  # infinity is found out
            return self.pipeline.encode(self.pipeline.decode(y)).astype(np.float32)

    def _can_close(self) -> bool:
        return self.pipeline.feeds_numbers_back(self._ports.x, self._ports.y)

    def _driven_cases(self) -> list[list[Case]]:
        """Cases of one length are rows of one batch; the first is the real input."""
        found: list[list[Case]] = []
        for batch in self._questions():
            run = self.run_batch(self._advance, batch, self._tell(batch[0].cuts[-1]))
            if not found:
                self.state_ranges = run.ranges
                self._states = run.states
                self.spread = spread_of(run.y[: len(batch[0].x)])
            answered = [
                self._judged(replace(case, y=y))
                for case, y in zip(batch, split_rows(run.y, batch), strict=True)
                if case.name == TEACHER_FORCED or np.isfinite(y).all()
            ]
            found.append(answered)
        real = found[0][0].y[:1]
        return [
            [
                replace(case, calm=real[:, : case.y.shape[1]]) if case.name == SHOCK else case
                for case in batch
            ]
            for batch in found
            if batch
        ]

    def _questions(self) -> list[list[Case]]:
        """The driven cases before they are answered."""
        window = self.reference.window
        real, cycled = _real(self._example, self._steps, window)
        steps = real.shape[1]
        self.starts = _starts(steps, window)
        cuts = _cuts(np.random.default_rng(0), steps, self.starts)
        short = MIN_WINDOWS * window if window else steps
        row = np.ascontiguousarray(real[:1, :short])
        thrown = shocked(row, self.pipeline, self._example)
        silent, begins = silenced(row, self.pipeline, self._example)
        own = tuple(cut for cut in cuts if cut < short)
        none = np.zeros(0, np.float32)
        first = Case(TEACHER_FORCED, real, none, cuts, cycled)
        more = [
            Case(SHOCK, thrown.x, none, own, cycled, places=thrown.places),
            Case(SILENCE, silent, none, own, cycled, places=(begins,)),
        ]
        return [[first], more] if window else [[first, *more]]

    def _judged(self, case: Case) -> Case:
        """Silence in which the reference does not come to rest is judged by its climate."""
        if case.name != SILENCE or self.reference.window:
            return case
        late = flat_outputs(case.y)[:, case.y.shape[1] // 2 :]
        if (np.ptp(late, axis=(0, 1)) <= AT_REST * self.spread).all():
            return case
        judged = min(case.places[0] + HORIZON, case.x.shape[1])
        if case.x.shape[1] - judged < LEAST_CLIMATE:
            return replace(case, judged=judged)
        return replace(case, judged=judged, climate=Climate(case.y, judged, self.spread))

    def _closed_loop_case(self) -> Case:
        states = self.gather(self._states)
        run = self.run_closed_loop(self._advance, states, self._tell(self._steps))
        y = _finite_part(run.y)
        case = Case(CLOSED_LOOP, run.x[:, :1], y, (), judged=HORIZON)
        if y.shape[1] - HORIZON < LEAST_CLIMATE:
            return case
        return replace(case, climate=Climate(y[:LONG_ROWS], HORIZON, self.spread))

    def _generated_case(self) -> Case:
        x, states = self._at_starts(), self.gather(self._states)
        lengths = np.full(len(x), HORIZON)
        run = feed(self._advance, x, states, lengths, self._likeliest)
        return Case(GENERATED, run.x, run.y, ())

    def _at_starts(self) -> Array:
        return np.concatenate([self.teacher_forced.x[:, s : s + 1] for s in self.starts])

    def _likeliest(self, y: Array) -> Array:
        """The likeliest token of each row's step as its next x."""
        ids = y.argmax(axis=-1)
        one_hot = self._ports.x.dtype == "float32"
        return self.pipeline.one_hot(ids) if one_hot else np.asarray(ids, np.int64)

    def _tell(self, steps: int) -> Tell:
        return lambda done: self._progress(f"running the reference: {done:,} of {steps:,} steps")


def _nudged(value: Array, rng: np.random.Generator) -> Array:
    """Off by `NUDGE` of each row's own size; integers as they are."""
    if value.dtype.kind != "f":
        return value
    size = np.sqrt((value.reshape(len(value), -1) ** 2).mean(axis=1))
    noise = NUDGE * size.reshape(-1, *[1] * (value.ndim - 1)) * rng.standard_normal(value.shape)
    return np.asarray(value + noise, value.dtype)


def split_rows(y: Array, batch: Sequence[Case]) -> list[Array]:
    """y of each case of a batch."""
    return np.split(y, np.cumsum([len(case.x) for case in batch])[:-1])


def _advance(reference: Reference) -> Advance:
    def advance(x: Array, state: State) -> tuple[Array, State]:
        with torch.no_grad():
            tensors = {name: torch.from_numpy(value) for name, value in state.items()}
            y, new = reference.run(torch.from_numpy(x), tensors)
        return y.numpy(), {name: value.numpy() for name, value in new.items()}

    return advance


def _real(x: Array, steps: int, window: int | None) -> tuple[Array, bool]:
    """The example as at most MAX_ROWS rows of `steps`, cycled if shorter."""
    rows = x[:MAX_ROWS]
    if window:
        steps = max(-(-min(steps, WINDOWED_STEPS) // len(rows)), MIN_WINDOWS * window)
    repeats = -(-steps // x.shape[1])
    if repeats == 1:
        return np.ascontiguousarray(rows[:, :steps]), False
    return np.concatenate([rows] * repeats, axis=1)[:, :steps], True


def _starts(steps: int, window: int | None) -> Array:
    warm = window or min(WARM_STEPS, steps // 10)
    return np.linspace(warm, steps - 1, STARTS).astype(int)


def _cuts(rng: np.random.Generator, steps: int, starts: Array) -> tuple[int, ...]:
    cuts = {0, *(int(s) for s in starts)}
    at = 0
    while at < steps:
        cuts.add(at)
        at += int(rng.integers(1, MAX_CHUNK))
    return tuple(sorted(cuts))


def _finite_part(y: Array) -> Array:
    """y (B, T, ...) up to where a reference that does not stay finite by itself is lost."""
    lost = ~np.isfinite(flat_outputs(y)).all(axis=(0, 2))
    return y[:, : max(HORIZON, int(lost.argmax()))] if lost.any() else y


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
