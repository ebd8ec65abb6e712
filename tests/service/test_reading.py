"""What a reply says of y beside its numbers."""

import math
from typing import Any

import numpy as np
import pytest

from service.errors import RequestError
from service.pipeline import Pipeline
from service.reading import Reader

Array = np.ndarray
STREAM = ("", "s")
Y = np.array([[0, 2, 1], [3, -1, 0], [0, 0, 1]], np.float32)


def reader(*tail: int, **parts: Any) -> Reader:
    return Reader(Pipeline.model_validate(parts), tail)


def read(one: Reader, y: Array = Y, **asked: Any) -> dict[str, Any]:
    return one.read(y, one.wish(asked.get("want"), asked.get("choose")), STREAM, 0)


TEXT = reader(3, vocabulary=["a", "b", "c"])
WORDS = reader(3, vocabulary=["to", "be", "c"])
LABELS = reader(3, classes=["calm", "loud", "off"])
NUMBERS = reader(3)


def test_numbers_are_read_as_nothing_more() -> None:
    """Without a vocabulary, classes or an alarm."""
    assert NUMBERS.fields == ("y",)
    assert read(NUMBERS) == {}


def test_characters_become_text_and_longer_tokens_a_list() -> None:
    """One a step, the likeliest."""
    assert (TEXT.fields, read(TEXT)) == (("y", "text"), {"text": "bac"})
    assert (WORDS.fields, read(WORDS)) == (("y", "tokens"), {"tokens": ["be", "to", "c"]})


def test_a_vocabulary_of_x_alone_reads_nothing_in_y() -> None:
    """y has another width than it."""
    assert read(reader(2, vocabulary=["a", "b", "c"]), Y[:, :2]) == {}


def test_classes_become_labels_and_probabilities() -> None:
    """One label a step, and the softmax of its logits."""
    found = read(LABELS)
    assert LABELS.fields == ("y", "labels", "probabilities")
    assert found["labels"] == ["loud", "calm", "off"]
    weights = [math.exp(0), math.exp(2), math.exp(1)]
    assert found["probabilities"][0] == pytest.approx([w / sum(weights) for w in weights])


def test_classes_of_text_are_classes() -> None:
    """The vocabulary is then that of x, though y is as wide."""
    both = reader(3, vocabulary=["a", "b", "c"], classes=["calm", "loud", "off"])
    assert read(both)["labels"] == ["loud", "calm", "off"]


def test_an_alarm_is_a_score_above_the_threshold() -> None:
    """At the threshold it is none, also where float32 writes it a little higher."""
    alarm = reader(1, alarm={"score": "y", "threshold": 0.1})
    above = np.nextafter(np.float32(0.1), np.float32(1))
    y = np.array([[0.1], [above], [0.0], [5]], np.float32)
    assert alarm.fields == ("y", "alarm")
    assert read(alarm, y) == {"alarm": [False, True, False, True]}
    flat = reader(alarm={"score": "y", "threshold": -1e300})
    assert read(flat, y[:, 0].astype(np.float64)) == {"alarm": [True] * 4}
    never = reader(1, alarm={"score": "mse", "threshold": 1e300})
    assert read(never, y) == {"alarm": [False] * 4}


@pytest.mark.parametrize(
    ("want", "fields"),
    [
        (["labels"], {"labels"}),
        (["probabilities", "y"], {"probabilities"}),
        (["y"], set()),
        (["y", "labels", "labels"], {"labels"}),
    ],
)
def test_a_request_may_want_less(want: list[str], fields: set[str]) -> None:
    """Only what it names, of what the model has."""
    assert set(read(LABELS, want=want)) == fields


@pytest.mark.parametrize(
    ("one", "want", "said"),
    [
        (TEXT, ["text", "labels"], "`want` is `labels`, expected some of y, text"),
        (NUMBERS, ["text"], "`want` is `text`, expected some of y"),
        (TEXT, [], "`want` is an empty list, expected some of y, text"),
    ],
)
def test_a_field_that_the_model_has_not_is_refused(one: Reader, want: list[str], said: str) -> None:
    """With those that it has."""
    with pytest.raises(RequestError, match=said):
        one.wish(want, None)


def test_a_request_may_choose_otherwise_than_the_pipeline() -> None:
    """In place of the pipeline's method, all of it."""
    y = np.zeros((60, 3), np.float32)
    drawn = read(TEXT, y, choose={"method": "sample", "seed": 5})["text"]
    assert set(drawn) == {"a", "b", "c"}
    declared = reader(3, vocabulary=["a", "b", "c"], choose={"method": "sample", "seed": 5})
    assert read(declared, y)["text"] == drawn
    assert read(declared, y, choose={"method": "argmax"})["text"] == "a" * 60
    assert read(LABELS, y, choose={"method": "sample"})["labels"] != ["calm"] * 60


@pytest.mark.parametrize(
    ("one", "choose", "said"),
    [
        (NUMBERS, {"method": "argmax"}, "nothing to choose from"),
        (TEXT, {}, "`choose`: Unable to extract tag"),
        (TEXT, {"method": "sample", "temperature": 0}, "`choose.temperature`: Input should be gre"),
        (TEXT, {"method": "argmax", "top_k": 3}, "`choose.top_k`: Extra inputs"),
        (TEXT, {"method": "sample", "top_k": 2.5}, "`choose.top_k`: Input should be a valid inte"),
    ],
)
def test_a_wrong_choice_is_refused(one: Reader, choose: dict[str, Any], said: str) -> None:
    """With its place and the form."""
    with pytest.raises(RequestError, match=said):
        one.wish(None, choose)


def test_what_is_drawn_is_the_streams_and_the_steps() -> None:
    """Another session draws otherwise; the same one from a later step on draws the rest."""
    one = reader(3, vocabulary=["a", "b", "c"], choose={"method": "sample"})
    y, wish = np.zeros((50, 3), np.float32), one.wish(None, None)
    whole = one.read(y, wish, STREAM, 0)["text"]
    assert one.read(y, wish, ("", "other"), 0)["text"] != whole
    assert one.read(y[20:], wish, STREAM, 20)["text"] == str(whole)[20:]
