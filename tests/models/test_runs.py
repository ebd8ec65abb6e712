"""A run is there whole, or it is not there."""

import json
from pathlib import Path

import pytest

from models.errors import RunError
from models.runs import Report, new_run
from models.scores import Score


def write(folder: Path, text: str) -> None:
    (folder / "report.json").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_appears_when_it_is_complete(tmp_path: Path) -> None:
    """While it is written there is no folder of its name; then it alone is there."""
    with new_run(tmp_path / "runs" / "a") as folder:
        write(folder, "new")
        assert not (tmp_path / "runs" / "a").exists()
    assert (tmp_path / "runs" / "a" / "report.json").read_text() == "new"
    assert names(tmp_path / "runs") == ["a"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C in the middle: no folder of its name, and no rubbish beside it."""
    with pytest.raises(KeyboardInterrupt), new_run(tmp_path / "a") as folder:
        write(folder, "half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_new_run_replaces_the_old_only_when_it_is_complete(tmp_path: Path) -> None:
    """A failure leaves the old one as it was; a success leaves the new one alone."""
    with new_run(tmp_path / "a") as folder:
        write(folder, "old")
        (folder / "extra").touch()
    with pytest.raises(RuntimeError, match="no"), new_run(tmp_path / "a"):
        raise RuntimeError("no")
    assert names(tmp_path / "a") == ["extra", "report.json"]
    with new_run(tmp_path / "a") as folder:
        write(folder, "new")
        assert (tmp_path / "a" / "report.json").read_text() == "old"
    assert (tmp_path / "a" / "report.json").read_text() == "new"
    assert names(tmp_path / "a") == ["report.json"]
    assert names(tmp_path) == ["a"]


def test_a_folder_that_is_no_run_is_not_replaced(tmp_path: Path) -> None:
    """A folder without a report may be somebody's work."""
    (tmp_path / "thesis.txt").touch()
    with (
        pytest.raises(RunError, match=r"holds no report\.json.*choose another --out"),
        new_run(tmp_path),
    ):
        raise AssertionError("the block must not be entered")
    assert names(tmp_path) == ["thesis.txt"]


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Through JSON and back; and there is no report where there is no run."""
    report = Report(
        name="a",
        seed=1,
        parameters={"cell": {"weights": 4, "biases": 2}},
        scores=[Score("one-step", "°C", 1.0, {"last value": 2.0})],
        training_s=3.5,
        epochs=4,
        best_epoch=2,
        best_loss=0.25,
        settings={"epochs": 4},
        versions={"python": "3"},
    )
    write(tmp_path, json.dumps(report.to_json()))
    assert Report.read(tmp_path) == report
    assert Report.read(tmp_path / "none") is None
