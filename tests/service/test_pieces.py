"""Chunks of different lengths in one batch: each gets what it gets alone, and costs that too."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.layout import State
from service.model import Model, _measure_cost
from service.pieces import Piece, cut, run_pieces

Array = np.ndarray
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12).map(
    lambda found: sorted(found, reverse=True)
)


def add_up(x: Array, state: State, lengths: Array | None = None) -> tuple[Array, State]:
    """A runtime that sums: y (B, T) is the sum so far, zero past a row's length."""
    steps = np.arange(1, x.shape[1] + 1)
    ends = np.full(len(x), x.shape[1]) if lengths is None else lengths
    sums = state["h"][:, None] + np.cumsum(x, axis=1)
    return np.where(steps <= ends[:, None], sums, 0), {"h": sums[np.arange(len(x)), ends - 1]}


def padded(lengths: list[int], pieces: list[Piece]) -> int:
    """Steps that are run and that nobody asked for."""
    return sum(piece.rows * (piece.end - piece.start) for piece in pieces) - sum(lengths)


@given(lengths=LENGTHS, call_cost=st.floats(0, 50))
def test_the_pieces_are_the_batch(lengths: list[int], call_cost: float) -> None:
    """One after the other up to the longest; each has the rows that go on past its start."""
    pieces = cut(lengths, 1.0, call_cost)
    assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
    assert pieces[-1].end == lengths[0]
    for piece in pieces:
        assert piece.rows == sum(length > piece.start for length in lengths)


@given(lengths=LENGTHS, call_cost=st.floats(0, 50))
def test_padding_never_costs_more_than_the_calls_that_would_save_it(
    lengths: list[int], call_cost: float
) -> None:
    """A piece is paid for with at most one call's worth of padding; a free call pads nothing."""
    pieces = cut(lengths, 1.0, call_cost)
    assert padded(lengths, pieces) <= call_cost * len(pieces)
    assert padded(lengths, cut(lengths, 1.0, 0.0)) == 0


def test_what_is_cut_is_what_pays() -> None:
    """63 single steps do not wait for 127 steps of padding each; two lengths that are close run
    in one call."""
    assert cut([128, *[1] * 63], 1.0, 20.0) == [Piece(64, 0, 1), Piece(1, 1, 128)]
    assert cut([9, 9, 8, 8], 1.0, 20.0) == [Piece(4, 0, 9)]
    assert cut([5], 1.0, 20.0) == [Piece(1, 0, 5)]


@given(lengths=LENGTHS, call_cost=st.floats(0, 50))
def test_pieces_give_what_one_call_gives(lengths: list[int], call_cost: float) -> None:
    """y, zeros behind each row, and each row's own last state; the state that came is unchanged."""
    x = np.arange(len(lengths) * lengths[0]).reshape(len(lengths), lengths[0])
    state, ends = {"h": np.arange(len(lengths))}, np.array(lengths)
    whole, after = add_up(x, state, ends)
    y, last = run_pieces(add_up, x, state, ends, cut(lengths, 1.0, call_cost))
    assert np.array_equal(y, whole)
    assert np.array_equal(last["h"], after["h"])
    assert np.array_equal(state["h"], np.arange(len(lengths)))


@given(
    lengths=st.lists(st.integers(1, 20), min_size=2, max_size=6),
    row_cost=st.sampled_from([0.0, 1.0]),
)
def test_a_model_gives_each_row_what_it_gives_it_alone(
    sine: Model, lengths: list[int], row_cost: float
) -> None:
    """Bit for bit, y and state, in whatever order they come, padded or cut."""
    rng = np.random.default_rng(sum(lengths))
    model = Model(sine.artifact, sine.runtime, type(sine.cost)(0.5, row_cost))
    chunks = [model.encode(rng.normal(size=(steps, 1))) for steps in lengths]
    (_, begun, _) = model.run([chunk[:1] for chunk in chunks], [model.initial_state] * len(chunks))
    ys, states, finite = model.run(chunks, begun)
    assert finite == [True] * len(chunks)
    for chunk, before, y, state in zip(chunks, begun, ys, states, strict=True):
        (alone,), (blob,), _ = model.run([chunk], [before])
        assert y.tobytes() == alone.tobytes()
        assert state == blob


def test_a_cost_is_measured_past_what_disturbs_it(
    sine: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds as long as the model is loaded, so a busy moment at the load must not be in it."""
    took = [2.0, 50.0, 9.0, 60.0, 7.0, 65.0, 99.0, 98.0, 97.0, 80.0]  # of 1 row, then of 64
    ends = iter(value for t in took for value in (0.0, t))
    monkeypatch.setattr("service.model.time", SimpleNamespace(perf_counter=lambda: next(ends)))
    cost = _measure_cost(sine.artifact, sine.runtime, sine.artifact.golden())
    assert (cost.base_s, cost.per_row_s) == (1.0, 1.0)
