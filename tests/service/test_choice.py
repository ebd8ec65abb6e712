"""Chance that is a function of seed, stream and step."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.choice import Argmax, Sample, choose, sample_uniforms, softmax, uniforms

Array = np.ndarray
STREAM = ("", "s")


def logits(steps: int, size: int = 7, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 2, (steps, size)).astype(np.float32)


def sample(**more: object) -> Sample:
    return Sample.model_validate({"method": "sample", **more})


def test_argmax_takes_the_greatest_and_of_equal_ones_the_first() -> None:
    """Whoever asks, at whatever step."""
    z = np.array([[0, 3, 3], [5, -1, 2]], np.float32)
    assert choose(z, Argmax(), STREAM, 0).tolist() == [1, 0]


@given(st.lists(st.integers(1, 60), max_size=5), st.integers(0, 10**12))
def test_chunks_draw_what_the_whole_draws(cuts: list[int], first: int) -> None:
    """A step's draw does not depend on those before it in its request."""
    z, how = logits(64), sample(temperature=0.9, top_k=5, seed=3)
    whole = choose(z, how, STREAM, first)
    edges = sorted({0, 64, *cuts})
    parts = [choose(z[a:b], how, STREAM, first + a) for a, b in itertools.pairwise(edges)]
    assert np.concatenate(parts).tolist() == whole.tolist()


def test_draws_do_not_depend_on_how_many_are_made_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many logits are worked through in blocks."""
    z, how = logits(50), sample(temperature=2.0, top_k=4)
    whole = choose(z, how, STREAM, 9)
    monkeypatch.setattr("service.choice._BLOCK_VALUES", 20)
    assert choose(z, how, STREAM, 9).tolist() == whole.tolist()


@pytest.mark.parametrize(
    ("seed", "stream", "step"),
    [(1, STREAM, 0), (0, ("", "t"), 0), (0, ("acme", "s"), 0), (0, STREAM, 1), (0, ("s", ""), 0)],
)
def test_another_seed_session_tenant_or_step_draws_otherwise(
    seed: int, stream: tuple[str, str], step: int
) -> None:
    """Independent numbers: of 400 draws among 7 about a seventh agrees by chance."""
    z = np.zeros((400, 7), np.float32)
    base = choose(z, sample(), STREAM, 0)
    assert base.tolist() == choose(z, sample(), STREAM, 0).tolist()
    agree = (base == choose(z, sample(seed=seed), stream, step)).mean()
    assert 0.07 < agree < 0.22


def test_the_draws_of_a_seed_never_change() -> None:
    """Written down once: another numpy, or another Carousel, must not tell another story."""
    expected = [0.2849652527, 0.5865822896, 0.8277789827]
    assert uniforms(1, ("", "s"), 5, 3) == pytest.approx(expected, abs=1e-9)


def test_samples_draw_each_its_own_however_many_there_are() -> None:
    """Of a step, and none of what the stream itself draws at any."""
    many = sample_uniforms(1, STREAM, 7, 500, 6)
    assert many.shape == (500, 6)
    assert np.array_equal(sample_uniforms(1, STREAM, 7, 3, 6), many[:3])
    others = [
        sample_uniforms(1, STREAM, 8, 500, 6),
        sample_uniforms(2, STREAM, 7, 500, 6),
        sample_uniforms(1, ("", "t"), 7, 500, 6),
        uniforms(1, STREAM, 0, 3000).reshape(500, 6),
    ]
    together = np.concatenate([many, *others])
    assert len(np.unique(together)) == together.size
    assert abs(many.mean() - 0.5) < 0.02 and np.abs(np.corrcoef(many.T) - np.eye(6)).max() < 0.2


def test_what_samples_draw_never_changes() -> None:
    """Written down once, as the draws of a stream."""
    expected = [[0.6839301309, 0.0982964962], [0.8625239955, 0.7698387654]]
    assert sample_uniforms(1, ("", "s"), 5, 2, 2) == pytest.approx(np.array(expected), abs=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_softmax_of_the_tempered_logits(temperature: float) -> None:
    """Pearson's chi-square over 20,000 draws; 6 degrees of freedom exceed 22.5 once in 1,000."""
    z = logits(1)
    drawn = choose(np.repeat(z, 20_000, axis=0), sample(temperature=temperature), STREAM, 0)
    expected = softmax(z / np.float32(temperature))[0] * 20_000
    counts = np.bincount(drawn, minlength=7)
    assert ((counts - expected) ** 2 / expected).sum() < 22.5


def test_top_k_draws_from_the_k_greatest_in_their_proportions() -> None:
    """And from no other; 2 degrees of freedom exceed 13.8 once in 1,000."""
    z = logits(1)
    drawn = choose(np.repeat(z, 20_000, axis=0), sample(top_k=3), STREAM, 0)
    best = np.sort(np.argsort(-z[0])[:3])
    assert np.unique(drawn).tolist() == best.tolist()
    expected = softmax(z[:, best])[0] * 20_000
    counts = np.bincount(drawn, minlength=7)[best]
    assert ((counts - expected) ** 2 / expected).sum() < 13.8


def test_top_1_is_argmax_with_equals_too() -> None:
    """At any temperature."""
    z = np.round(logits(500))  # with many equals
    for temperature in (0.01, 1.0, 100.0):
        drawn = choose(z, sample(top_k=1, temperature=temperature), STREAM, 0)
        assert drawn.tolist() == choose(z, Argmax(), STREAM, 0).tolist()


def test_of_those_equal_to_the_kth_the_first_count() -> None:
    """k of them, not more."""
    z = np.array([[1, 2, 1, 1, 0]], np.float32).repeat(2000, axis=0)
    assert np.unique(choose(z, sample(top_k=3), STREAM, 0)).tolist() == [0, 1, 2]


def test_top_k_beyond_the_vocabulary_is_all_of_it() -> None:
    """The same draws as without."""
    z = logits(200)
    all_of_it = choose(z, sample(), STREAM, 0).tolist()
    assert choose(z, sample(top_k=7), STREAM, 0).tolist() == all_of_it
    assert choose(z, sample(top_k=10**9), STREAM, 0).tolist() == all_of_it


@pytest.mark.parametrize("temperature", [5e-324, 1e-12, 1e300])
def test_extreme_temperatures_and_logits_stay_in_range(temperature: float) -> None:
    """Cold is argmax, hot is even chances; no overflow is a warning (warnings are errors)."""
    z = np.array([[3e38, -3e38, 1.0]], np.float32).repeat(100, axis=0)
    drawn = choose(z, sample(temperature=temperature), STREAM, 0)
    assert set(drawn.tolist()) == ({0, 1, 2} if temperature > 1 else {0})


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 100])
def test_the_least_and_greatest_chance_take_none_that_has_no_weight(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Neither before the first that has, nor behind the last, whatever the total is."""
    almost = math.nextafter(1.0, 0.0)  # the greatest that 53 bits make
    monkeypatch.setattr("service.choice.uniforms", lambda *_: np.array([almost, 0.0]))
    z = np.array([[-2000.0, *logits(1, size)[0], -2000.0]] * 2, np.float32)
    assert choose(z, sample(), STREAM, 0).tolist() == [size, 1]


def test_softmax_sums_to_one_however_large_the_logits() -> None:
    """In float64."""
    p = softmax(np.array([[1000.0, 1000.0, -1000.0], [0.0, math.log(2), -math.inf]], np.float32))
    assert p.dtype == np.float64
    assert p == pytest.approx(np.array([[0.5, 0.5, 0], [1 / 3, 2 / 3, 0]]), abs=1e-7)
