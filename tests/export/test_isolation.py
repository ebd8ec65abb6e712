"""What company does to a row is found out, whatever it is."""

from collections.abc import Callable

import numpy as np
import pytest

from export.isolation import COMPANIES, MAX_BATCH, Isolation, measure_isolation
from service.artifact import Artifact
from service.layout import State
from service.manifest import Port, Ports, StatePort
from service.runtime import Runtime

Array = np.ndarray
Answer = Callable[[Array, Array, Array], tuple[Array, Array]]  # x, h, lengths -> y, h
X = np.random.default_rng(3).uniform(-1, 1, (2, 50, 3)).astype(np.float32)
INITIAL = {"h": np.zeros((1, 3), np.float32)}


class Spoiled(Runtime):
    """h is the sum of x, and y is h; then `spoil` does something to a batch that it should not."""

    def __init__(self, spoil: Answer, bound: float | None = None) -> None:
        shape: list[int | str] = ["B", 3]
        state = StatePort(
            dtype="float32", shape=shape, name="h", input="h_0", output="h_n", bound=bound
        )
        port = Port(dtype="float32", shape=["B", "T", 3])
        self.ports = Ports(x=port, y=port, states=[state])
        self._spoil = spoil
        self.greatest_start = 0.0  # of the states that batches began with

    def run(self, x: Array, state: State, lengths: Array | None = None) -> tuple[Array, State]:
        lengths = np.full(len(x), x.shape[1]) if lengths is None else lengths
        ys, h = [], state["h"].copy()
        if len(x) > 1:
            self.greatest_start = max(self.greatest_start, float(np.abs(h).max()))
        for t in range(x.shape[1]):
            h = np.where((t < lengths)[:, None], h + x[:, t], h)
            ys.append(h)
        y, h = self._spoil(np.stack(ys, axis=1), h, lengths)
        return y, {"h": h}


def measure(spoil: Answer) -> Isolation:
    return measure_isolation(Spoiled(spoil), X, INITIAL)


def moved(isolation: Isolation) -> set[str]:
    return {found.company for found in isolation.found if found.moved}


def clean(y: Array, h: Array, lengths: Array) -> tuple[Array, Array]:
    return y, h


def one_scale(y: Array, h: Array, lengths: Array) -> tuple[Array, Array]:
    """Rounded to 255 levels of the greatest value in the batch, as stock quantization does."""
    scale = np.abs(y).max() / 127 or 1.0
    return np.asarray(np.rint(y / scale) * scale, np.float32), h


def last_place(y: Array, h: Array, lengths: Array) -> tuple[Array, Array]:
    y = y.copy()
    y[-1] += 1e-3 * (len(y) > 1)
    return y, h


def long_chunk(y: Array, h: Array, lengths: Array) -> tuple[Array, Array]:
    return y, h + np.float32(0.5) * (y.shape[1] > 1)


def signed_zero(y: Array, h: Array, lengths: Array) -> tuple[Array, Array]:
    return np.copysign(np.float32(0), np.full_like(y, 1.5 - len(y))), h


def refuses(y: Array, h: Array, lengths: Array) -> tuple[Array, Array]:
    if np.abs(y).max() > 1e20:
        raise RuntimeError("a row is too great")
    return y, h


def leaks_nan(y: Array, h: Array, lengths: Array) -> tuple[Array, Array]:
    return y + (np.float32("nan") if np.abs(y).max() > 1e20 else np.float32(0)), h


def test_rows_that_feel_nothing_are_isolated() -> None:
    """Every company was tried, none moved a bit."""
    isolation = measure(clean)
    assert [found.company for found in isolation.found] == list(COMPANIES)
    assert all((f.trials, f.moved, f.y, f.state) == (12, 0, 0, 0) for f in isolation.found)
    assert isolation.isolated


def test_a_scale_of_the_whole_batch_is_measured() -> None:
    """Beside rows that send 1e4 a row is rounded away whole: it moves by as much as it is."""
    isolation = measure(one_scale)
    far = {found.company: found.y for found in isolation.found}
    assert not isolation.isolated
    assert 0 < far["calm"] < 0.1
    assert 0.5 < far["1e4"] < 9
    assert far["1e30"] == pytest.approx(far["1e4"], rel=0.2)
    assert isolation.worst.company in ("1e4", "1e30", "mixed")
    assert isolation.worst.state == 0


def test_a_place_in_the_batch_is_told_from_the_company() -> None:
    """Copies of the row stand at every place, so the last is always among them."""
    found = {f.company: f for f in measure(last_place).found}
    assert found["places"].moved == found["places"].trials
    assert found["places"].y == pytest.approx(1e-3, rel=1e-2)
    assert found["chunks"].moved == 0


def test_a_chunk_is_felt_by_a_row_alone() -> None:
    """The state counts as y does."""
    found = {f.company: f for f in measure(long_chunk).found}
    assert found["chunks"].moved
    assert found["chunks"].y == 0
    assert found["chunks"].state == pytest.approx(0.5)


def test_bits_count_and_not_distances() -> None:
    """Another zero is another answer."""
    isolation = measure(signed_zero)
    assert {"places", "calm"} <= moved(isolation)
    assert isolation.worst.y == 0
    assert not isolation.isolated


@pytest.mark.parametrize("spoil", [refuses, leaks_nan])
def test_a_refused_batch_and_nan_are_infinitely_far(spoil: Answer) -> None:
    """One row takes the others' answers away."""
    isolation = measure(spoil)
    assert moved(isolation) == {"1e30", "mixed"}
    assert isolation.worst.y == float("inf")


@pytest.mark.parametrize(("bound", "greatest"), [(1.0, 1.0), (None, 1e30)])
def test_a_bounded_state_is_not_sent_beyond_its_bound(bound: float | None, greatest: float) -> None:
    """Others may be: a session that was sent 1e30 may stand there."""
    runtime = Spoiled(clean, bound)
    found = measure_isolation(runtime, X, INITIAL).found
    assert "1e30" in {one.company for one in found}
    assert runtime.greatest_start == pytest.approx(greatest, rel=0.1)


def test_ids_and_bounded_states_cannot_be_hostile() -> None:
    """Then nobody is: the hostile companies are not in the report."""
    isolation = measure_isolation(Spoiled(clean, bound=1.0), np.zeros((1, 9, 3), np.int64), INITIAL)
    assert [found.company for found in isolation.found] == ["chunks", "places", "calm"]


def test_as_many_trials_as_wanted_and_others_for_another_seed() -> None:
    """The same seed gives the same trials."""
    sizes: list[int] = []

    def look(y: Array, h: Array, lengths: Array) -> tuple[Array, Array]:
        sizes.append(len(y))
        return y, h

    drawn = []
    for seed in (0, 0, 1):
        sizes.clear()
        found = measure_isolation(Spoiled(look), X, INITIAL, trials=30, seed=seed).found
        assert {f.trials for f in found} == {30}
        assert 2 < max(sizes) <= MAX_BATCH
        drawn.append(list(sizes))
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sine-cell", "series-lstm"])
@pytest.mark.parametrize("variant", ["onnx-fp32", "onnx-int8-rowwise"])
def test_thousands_of_batches_move_no_bit(
    name: str, variant: str, demo_artifacts: dict[str, Artifact]
) -> None:
    """2,100 of them for each of the isolated variants, in every kind of company."""
    artifact = demo_artifacts[name]
    x = artifact.golden().x
    runtime = Runtime(artifact, variant)
    assert measure_isolation(runtime, x, artifact.initial, trials=300, seed=1).isolated
