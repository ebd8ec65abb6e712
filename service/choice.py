"""How one of several is chosen by its logit: the greatest, or drawn by chance.

Rules
- What is drawn at a step is a function of the step's logits, the seed, who draws (`stream`) and
  the step's index alone: a request that is sent again gets the same, in whatever chunks.
- Chance is counter-based (Philox; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
  2011): a step's number is found by its index, without those before it.
- Samples of one stream draw from counts that no step of the stream itself comes to: what one of
  them draws does not depend on how many there are.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

Array = np.ndarray

_WORDS = 4  # of 64 bits that Philox makes of one count; of a stream's step the first is used
_SAMPLES_BITS = 64  # counts below 2^64 are the stream's own steps, those above its samples'
_BLOCK_VALUES = 1 << 20  # logits at a time: 8 MiB in float64, whatever the size of the vocabulary


class Argmax(BaseModel):
    """The greatest logit; of equal ones the first."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: Literal["argmax"] = "argmax"


class Sample(BaseModel):
    """Drawn with the probabilities softmax(logits / temperature), of the `top_k` greatest only."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: Literal["sample"]
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0  # unitless
    top_k: Annotated[int, Field(ge=1)] | None = None  # None: all
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


Choose = Annotated[Argmax | Sample, Field(discriminator="method")]
CHOOSE_FORM = (
    '{"method": "argmax"} or {"method": "sample", "temperature": 0.8, "top_k": 40, "seed": 1}'
)


def choose(logits: Array, how: Argmax | Sample, stream: Sequence[str], step: int) -> Array:
    """One index a step.

    Args:
        logits: (T, V) finite, of steps `step`, `step` + 1, ... Not changed.
        how: the method.
        stream: who draws, such as tenant and session id.
    Returns:
        (T,) int64, from 0 to V - 1.
    """
    if isinstance(how, Argmax):
        return likeliest(logits)
    return draw(logits, how, uniforms(how.seed, stream, step, len(logits)))


def likeliest(logits: Array) -> Array:
    """(N, V) -> (N,) int64: the greatest of each row, of equal ones the first."""
    return np.asarray(logits.argmax(axis=1), np.int64)


def draw(logits: Array, how: Sample, chances: Array) -> Array:
    """(N, V) logits and (N,) chances in [0, 1) -> (N,) int64, one index a row."""
    rows = max(1, _BLOCK_VALUES // logits.shape[1])
    blocks = [
        _draw(logits[at : at + rows].astype(np.float64), how, chances[at : at + rows])
        for at in range(0, len(logits), rows)
    ]
    return np.concatenate(blocks)


def uniforms(seed: int, stream: Sequence[str], first: int, count: int) -> Array:
    """(count,) float64 in [0, 1): each a function of seed, stream and its index from `first` on."""
    return _chances(seed, stream, first, count)[:, 0]


def sample_uniforms(
    seed: int, stream: Sequence[str], step: int, samples: int, each: int = 1
) -> Array:
    """(samples, each) float64 in [0, 1) of one step, for samples beside the stream itself."""
    counts = -(-each // _WORDS)  # of each sample
    first = (step + 1) << _SAMPLES_BITS
    chances = _chances(seed, stream, first, samples * counts)
    return chances.reshape(samples, counts * _WORDS)[:, :each]


def _chances(seed: int, stream: Sequence[str], first: int, count: int) -> Array:
    """(count, _WORDS) float64 in [0, 1)."""
    name = json.dumps([seed, *stream]).encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little")
    words = np.random.Philox(key=key, counter=first).random_raw(_WORDS * count)
    return np.asarray((words.reshape(count, _WORDS) >> np.uint64(11)) * 2.0**-53)


def softmax(logits: Array) -> Array:
    """(T, V) -> (T, V) float64; each row sums to 1."""
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _draw(logits: Array, how: Sample, chances: Array) -> Array:
    """By inversion: the first index at which the cumulated weight exceeds the chance's share."""
    with np.errstate(over="ignore"):  # a small temperature drives the lesser ones to -inf: weight 0
        weights = np.exp((logits - logits.max(axis=1, keepdims=True)) / how.temperature)
    if how.top_k is not None and how.top_k < logits.shape[1]:
        weights[~_is_among_greatest(logits, how.top_k)] = 0.0
    cumulated = weights.cumsum(axis=1)
    # A chance is 1 - 2^-53 at most, so its share rounds to less than the total, whatever that is.
    share = chances[:, None] * cumulated[:, -1:]
    return np.asarray((cumulated <= share).sum(axis=1), np.int64)


def _is_among_greatest(logits: Array, k: int) -> Array:
    """(T, V) bool, k true in a row; of those equal to the k-th the first ones are taken."""
    kth = np.partition(logits, -k, axis=1)[:, -k, None]
    above = logits > kth
    equal = logits == kth
    places = k - above.sum(axis=1, keepdims=True)
    return np.asarray(above | (equal & (equal.cumsum(axis=1) <= places)))
