"""Perplexities worked out by hand, and a CharRNN through the real loop."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import language
from models.char_rnn import CharRNN
from models.fitting import Settings, fit
from models.language import Language, bigram_perplexity, stream_cross_entropy, unigram_perplexity
from models.text import Text, read

TRAIN = np.array([0, 0, 0, 1])
HOLDOUT = np.array([1, 0, 0, 1])


def abc() -> Text:
    """abcabcabc..., with the last 60 held out."""
    return read("abc", "abc" * 200, validation=90, holdout=60)


def test_the_unigram_baseline_is_the_one_worked_out_by_hand() -> None:
    """Counts 3 and 1, one added: 4/6 and 2/6. Of 0, 0, 1 the likelihood is 4/6 4/6 2/6."""
    expected = (4 / 6 * 4 / 6 * 2 / 6) ** (-1 / 3)
    assert unigram_perplexity(TRAIN, HOLDOUT, 2) == pytest.approx(expected)


def test_the_bigram_baseline_is_the_one_worked_out_by_hand() -> None:
    """After 0: twice 0 and once 1; after 1: nothing; one added to each. 1 0 0 1: 1/2, 3/5, 2/5."""
    expected = (1 / 2 * 3 / 5 * 2 / 5) ** (-1 / 3)
    assert bigram_perplexity(TRAIN, HOLDOUT, 2) == pytest.approx(expected)


class NextLetter(nn.Module):
    """Gives the next of a, b, c three times the weight of each other token; counts its steps."""

    def forward(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        right = nn.functional.one_hot((x + 1) % 3, 4)
        return math.log(3) * right, hidden + x.shape[1]

    def init_hidden(self, batch: int) -> Tensor:
        return torch.zeros(batch)


def test_perplexity_is_that_of_the_likelihoods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each right token has the likelihood 3 / (3 + 1 + 1 + 1): perplexity 2, in any chunks."""
    for chunk in (500, 7, 59):
        monkeypatch.setattr(language, "CHUNK", chunk)
        (score,) = Language(abc, steps=10).score(NextLetter())
        assert score.model == pytest.approx(2)
    assert score.measure == "perplexity"
    task = Language(abc, steps=10)
    assert task.validation_loss(NextLetter()) == pytest.approx(math.log(2))
    loss = task.loss(NextLetter(), 4, np.random.default_rng(0))
    assert loss.item() == pytest.approx(math.log(2))


def test_the_held_out_text_is_read_with_the_state_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 7 give what one chunk gives, with a model whose state matters."""
    torch.manual_seed(0)
    model = CharRNN(4, 3, 5)
    ids = abc().holdout
    whole = stream_cross_entropy(model, ids)
    monkeypatch.setattr(language, "CHUNK", 7)
    assert stream_cross_entropy(model, ids) == pytest.approx(whole, rel=1e-6)


def test_the_pipeline_holds_the_vocabulary_in_the_order_of_the_ids() -> None:
    """And nothing else: tokens are not scaled."""
    pipeline = Language(abc, steps=10).finished_pipeline(NextLetter())
    assert pipeline.to_json() == {
        "vocabulary": ["a", "b", "c", "\ufffd"],
        "unknown": "\ufffd",
    }


def test_one_epoch_of_the_real_loop_teaches_the_alphabet(tmp_path: Path) -> None:
    """abcabc: better than counting single characters, whose perplexity is 3."""
    torch.manual_seed(0)
    task = Language(abc, steps=12)
    model = CharRNN(len(abc().vocabulary), 4, 16)
    settings = Settings(epochs=1, batches=80, batch_size=8, learning_rate=0.02)
    checkpoint = tmp_path / "weights.safetensors"
    fit(model, task, settings, np.random.default_rng(0), checkpoint, lambda _: None)
    (score,) = task.score(model)
    assert score.naive["unigram"] == pytest.approx(3, rel=0.02)
    assert score.model < 2
    assert checkpoint.is_file()


def test_hidden_states_are_zeros_for_each_layer() -> None:
    """(h, c), each (L, B, H)."""
    for state in CharRNN(4, 3, 5).init_hidden(7):
        assert torch.equal(state, torch.zeros(2, 7, 5))
