"""Text becomes numbers and back, and no part knows another's characters."""

import numpy as np

from models.text import UNKNOWN, python_topics, read


def test_characters_are_numbered_in_order_and_the_unseen_is_unknown() -> None:
    """Of "banana" and then "bc": a, b, n are seen in training, and c is not."""
    text = read("fruit", "bananabc", validation=1, holdout=1)
    assert text.vocabulary == ("a", "b", "n", UNKNOWN)
    assert text.train.tolist() == [1, 0, 2, 0, 2, 0]
    assert text.validation.tolist() == [1]
    assert text.holdout.tolist() == [3]
    assert text.holdout.dtype == np.int64


def test_the_help_of_python_is_long_enough() -> None:
    """Hundreds of thousands of characters to train, 12,000 held out, and a readable start."""
    text = python_topics()
    assert len(text.train) > 300_000
    assert len(text.holdout) == 12_000
    assert len(text.vocabulary) == len(set(text.vocabulary)) == text.train.max() + 2
    start = "".join(text.vocabulary[index] for index in text.train[:24])
    assert start == 'The "assert" statement\n*'
