"""What a pipeline may declare, what contradicts what, and what fits which ports."""

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from service.manifest import Port
from service.pipeline import Alarm, Pipeline, Scaling

ONE = {"mean": [0.0], "std": [1.0]}
TWO = {"mean": [0.0, 1.0], "std": [1.0, 2.0]}
AB = {"vocabulary": ["a", "b"]}


def port(dtype: str, *tail: int, ids: int | None = None) -> Port:
    return Port.model_validate({"dtype": dtype, "shape": ["B", "T", *tail], "ids": ids})


REAL, LOGITS, IDS = port("float32", 1), port("float32", 2), port("int64", ids=2)


def test_an_absent_part_does_not_count() -> None:
    """What was written before a part was known keeps its bytes, and so its version."""
    pipeline = Pipeline.model_validate({"x": ONE, "y": ONE})
    assert pipeline.model_dump(mode="json", exclude_none=True) == {"x": ONE, "y": ONE}
    assert Pipeline().model_dump(mode="json", exclude_none=True) == {}


def test_every_part_is_read_and_written_as_it_came() -> None:
    """As JSON, through the file and through the manifest."""
    parts: dict[str, Any] = {
        **AB,
        "unknown": "b",
        "choose": {"method": "sample", "temperature": 0.5, "top_k": 4, "seed": 7},
    }
    pipeline = Pipeline.model_validate_json(json.dumps(parts))
    assert pipeline.model_dump(mode="json", exclude_none=True) == parts
    assert Pipeline.model_validate(parts) == pipeline
    alarm = {"alarm": {"score": "mse", "threshold": 1.0, "quantile": 0.99}}
    assert Pipeline.model_validate_json(json.dumps(alarm)).alarm == Alarm(
        score="mse", threshold=1.0, quantile=0.99
    )


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"vocabulry": ["a"]}, "Extra inputs"),
        ({"vocabulary": ["a"]}, "at least two"),
        ({"vocabulary": ["a", "b", "a"]}, '"a" again at position 2'),
        ({"vocabulary": ["a", ""]}, "empty one at position 1"),
        ({"vocabulary": ["a", 3]}, "valid string"),
        ({"classes": ["calm", "calm"]}, '"calm" again at position 1'),
        ({"unknown": "a"}, '`unknown` is "a", expected one of the tokens'),
        ({**AB, "unknown": "c"}, '`unknown` is "c", expected one of the tokens'),
        ({**AB, "x": ONE}, "scaling of `x` contradict"),
        ({**AB, "y": TWO}, "scaling of `y` as long contradict"),
        ({"classes": ["a", "b"], "y": TWO}, "`classes` and a scaling of `y` contradict"),
        (
            {"classes": ["a", "b"], "alarm": {"score": "y", "threshold": 1}},
            "`classes` and `alarm` contradict",
        ),
        ({**AB, "alarm": {"score": "mae", "threshold": 1}}, "tokens have no distance"),
        (
            {"x": ONE, "y": {"mean": [1], "std": [1]}, "alarm": {"score": "max", "threshold": 1}},
            "`y` must be scaled as `x` is",
        ),
        ({"choose": {"method": "argmax"}}, "nothing to choose from"),
        ({**AB, "choose": {"method": "greedy"}}, "argmax"),
        ({**AB, "choose": {"temperature": 1}}, "method"),
        ({**AB, "choose": {"method": "argmax", "seed": 1}}, "Extra inputs"),
        ({**AB, "choose": {"method": "sample", "temperature": 0}}, "greater than 0"),
        ({**AB, "choose": {"method": "sample", "temperature": "1"}}, "valid number"),
        ({**AB, "choose": {"method": "sample", "top_k": 0}}, "greater than or equal to 1"),
        ({**AB, "choose": {"method": "sample", "seed": -1}}, "greater than or equal to 0"),
        ({**AB, "choose": {"method": "sample", "seed": 2**63}}, "less than"),
        ({"alarm": {"score": "rmse", "threshold": 1}}, "'y', 'mse', 'mae' or 'max'"),
        ({"alarm": {"score": "y"}}, "Field required"),
        ({"alarm": {"score": "y", "threshold": True}}, "valid number"),
        ({"alarm": {"score": "y", "threshold": 1, "quantile": 1.5}}, "less than or equal to 1"),
        ({"error": {"std": [0.5, -0.1]}}, "`std` must not be negative"),
        ({"error": {"std": []}}, "non-empty list of finite numbers"),
    ],
)
def test_what_is_unknown_wrong_or_contradictory_is_refused(
    parts: dict[str, Any], said: str
) -> None:
    """With the place and what was expected."""
    with pytest.raises(ValidationError, match=said):
        Pipeline.model_validate_json(json.dumps(parts))


def test_a_threshold_is_finite() -> None:
    """JSON as Python writes it may hold infinity."""
    with pytest.raises(ValidationError, match="finite number"):
        Pipeline.model_validate({"alarm": {"score": "y", "threshold": float("inf")}})


@pytest.mark.parametrize(
    ("parts", "x", "y", "means"),
    [
        ({}, REAL, REAL, "numbers"),
        ({"x": ONE, "y": TWO}, REAL, LOGITS, "numbers"),
        (AB, IDS, LOGITS, "tokens"),
        (AB, port("int64"), LOGITS, "tokens"),
        (AB, LOGITS, LOGITS, "tokens"),  # one-hot
        (AB, IDS, REAL, "numbers"),  # a rating of a text
        ({**AB, "y": ONE}, IDS, REAL, "numbers"),
        ({**AB, "classes": ["good", "bad"]}, IDS, LOGITS, "classes"),
        ({**AB, "alarm": {"score": "y", "threshold": 1}}, IDS, port("float32"), "score"),
        ({"classes": ["good", "bad"]}, REAL, LOGITS, "classes"),
        ({"x": ONE, "y": TWO, "alarm": {"score": "y", "threshold": 1}}, REAL, LOGITS, None),
        ({"x": TWO, "y": TWO, "alarm": {"score": "mse", "threshold": 1}}, LOGITS, REAL, "score"),
        ({"y": ONE, "alarm": {"score": "y", "threshold": 1}}, REAL, REAL, "score"),
        ({"x": TWO, "y": TWO, "error": {"std": [0.5, 0]}}, LOGITS, LOGITS, "numbers"),
    ],
)
def test_what_fits_and_what_y_then_means(
    parts: dict[str, Any], x: Port, y: Port, means: str | None
) -> None:
    """A vocabulary that y has not the width of is of x alone; `classes` and `alarm` go first."""
    pipeline = Pipeline.model_validate(parts)
    assert (pipeline.misfit(x, y) is None) == (means is not None)
    if means:
        assert pipeline.y_means(y.shape[2:]) == means


@pytest.mark.parametrize(
    ("parts", "x", "y", "said"),
    [
        ({"x": TWO}, REAL, REAL, "`x` has 2 features, the module's x has shape"),
        ({"y": TWO}, REAL, REAL, "`y` has 2 features, the module's y has shape"),
        (AB, port("int64", ids=3), LOGITS, "has 2 tokens, the module's x is int64 of shape .* 3 i"),
        (AB, port("int64", 1), LOGITS, r"expected integers of shape \['B', 'T'\] with 2 ids"),
        (AB, REAL, LOGITS, "call the meanings of y `classes`"),
        ({"classes": ["a", "b", "c"]}, REAL, LOGITS, "has 3 `classes`, the module's y has shape"),
        ({"classes": ["a", "b"]}, REAL, REAL, 'is an `alarm` with "score": "y"'),
        ({"alarm": {"score": "y", "threshold": 1}}, REAL, LOGITS, "wants one score a step"),
        ({"alarm": {"score": "mse", "threshold": 1}}, REAL, LOGITS, "exported as windowed"),
        ({**AB, "choose": {"method": "argmax"}}, IDS, REAL, "nothing to choose from"),
        ({"error": {"std": [0.5]}}, REAL, LOGITS, "that of a forecast of the next x"),
        ({**AB, "error": {"std": [0.5, 1]}}, LOGITS, LOGITS, "that of a forecast of the next x"),
        ({"error": {"std": [0.5]}}, LOGITS, LOGITS, "`error` has 1 features, the module's y has"),
    ],
)
def test_what_does_not_fit_is_said(parts: dict[str, Any], x: Port, y: Port, said: str) -> None:
    """Both sizes, and the way out."""
    misfit = Pipeline.model_validate(parts).misfit(x, y)
    with pytest.raises(ValueError, match=said):
        raise ValueError(misfit)


def test_the_score_of_a_reconstruction_is_not_scaled() -> None:
    """It is a distance in the model's units; the module's own y is in raw ones."""
    scaling = Scaling(mean=[10.0], std=[2.0])
    y = np.array([[1.5]], np.float32)
    for score, decoded in (("mse", 1.5), ("y", 13.0)):
        alarm = Alarm.model_validate({"score": score, "threshold": 1})
        assert Pipeline(x=scaling, y=scaling, alarm=alarm).decode(y).tolist() == [[decoded]]


def test_one_hot_rows_have_their_one_at_the_tokens_place() -> None:
    """float32, whatever the shape of the ids."""
    rows = Pipeline.model_validate({"vocabulary": ["a", "b", "c"]}).one_hot(np.array([[2, 0]]))
    assert rows.dtype == np.float32
    assert rows.tolist() == [[[0, 0, 1], [1, 0, 0]]]
