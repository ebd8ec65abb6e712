"""The command, from arguments to files, on a series that is learnt in a second."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.data import Series
from models.fitting import Settings
from models.forecasting import Forecasting
from models.networks import LSTMForecaster
from models.predictors import StockPredictor
from models.train import main
from models.windows import WindowForecasting
from models.zoo import ZOO as REAL_ZOO
from models.zoo import Entry

ROOT = Path(__file__).parents[2]


def alternating() -> Series:
    """1, -1, 1, ... with noise of 0.3, in raw units of 10 around 50."""
    noise = 0.3 * np.random.default_rng(0).standard_normal(1000)
    values = 50 + 10 * ((-1.0) ** np.arange(1000) + noise)
    return Series("flip-flop", "V", values[:, None].astype(np.float32), 2, 600, 800)


def flip_flop() -> LSTMForecaster:
    return LSTMForecaster(1, 4, 1, num_layers=2, dropout=0.05)


ENTRY = Entry(
    name="flip-flop",
    description="a small LSTM on an alternating series",
    factory=flip_flop,
    task=Forecasting(alternating, warmup=6, rollout=3, rollout_weight=1.0),
    settings=Settings(epochs=8, batches=16, batch_size=8, learning_rate=0.05),
)
ZOO = {"flip-flop": ENTRY}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command writes under the current folder."""
    monkeypatch.chdir(tmp_path)


def test_a_trained_model_leaves_a_complete_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 0, four files, and in them what was trained; the table is shown."""
    assert main(["flip-flop"], ZOO) == 0
    run = Path("runs/flip-flop")
    assert sorted(file.name for file in run.iterdir()) == [
        "holdout.npy",
        "pipeline.json",
        "report.json",
        "weights.safetensors",
    ]
    flip_flop().load_state_dict(load_file(run / "weights.safetensors"))
    holdout = np.load(run / "holdout.npy")
    assert holdout.dtype == np.float32
    assert np.array_equal(holdout, alternating().values[800:])
    pipeline = json.loads((run / "pipeline.json").read_text())
    train = alternating().values[:600].astype(np.float64)
    one_step = json.loads((run / "report.json").read_text())["scores"][0]
    assert pipeline == {
        "x": {"mean": [pytest.approx(train.mean())], "std": [pytest.approx(train.std())]},
        "y": pipeline["x"],
        "error": {"std": [pytest.approx(one_step["model"], rel=0.3)]},
    }
    shown = capsys.readouterr()
    assert "one-step" in shown.out
    assert "50-step closed-loop" in shown.out
    assert "written to runs/flip-flop" in shown.out
    assert "val=" in shown.err


def test_the_report_says_how_good_the_kept_weights_are() -> None:
    """Its scores are those of the weights in the folder, and better than the naive ones in it."""
    assert main(["flip-flop", "--seed", "3"], ZOO) == 0
    report = json.loads(Path("runs/flip-flop/report.json").read_text(encoding="utf-8"))
    model = flip_flop().eval()
    model.load_state_dict(load_file("runs/flip-flop/weights.safetensors"))
    for said, found in zip(report["scores"], ENTRY.task.score(model), strict=True):
        assert said["model"] == pytest.approx(found.model, rel=1e-5)
        assert said["naive"] == pytest.approx(found.naive)
        assert said["model"] <= 0.95 * min(said["naive"].values())
    assert report["name"] == "flip-flop"
    assert report["seed"] == 3
    # 4 H (H + I) weights in each layer, 2 x 4 H biases in each layer; H = 4, I = 1 and then 4
    assert report["parameters"]["lstm"] == {"weights": 80 + 128, "biases": 64}
    assert report["versions"]["torch"] == torch.__version__
    assert report["training_s"] > 0


def test_a_run_of_a_window_model_says_how_long_its_window_is() -> None:
    """The report of one that takes six steps at a time says 6, of one that takes any, nothing."""

    def last_output() -> StockPredictor:
        return StockPredictor(input_size=1, hidden_size=8, num_layers=1, dropout=0.0)

    task = WindowForecasting(alternating, window=6)
    settings = Settings(epochs=12, batches=20, batch_size=32, learning_rate=0.03)
    entry = Entry("last", "the last output", last_output, task, settings)
    assert main(["last"], {"last": entry}) == 0
    assert main(["flip-flop"], ZOO) == 0
    runs = (Path("runs/last"), Path("runs/flip-flop"))
    reports = [json.loads((run / "report.json").read_text(encoding="utf-8")) for run in runs]
    assert [report["window"] for report in reports] == [6, None]
    last_output().load_state_dict(load_file("runs/last/weights.safetensors"))


def test_the_same_seed_gives_the_same_weights() -> None:
    """Bit for bit, though there is dropout; and another seed gives others."""
    weights = []
    for seed in ("1", "1", "2"):
        assert main(["flip-flop", "--seed", seed], ZOO) == 0
        weights.append(Path("runs/flip-flop/weights.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_a_model_that_does_not_beat_the_naive_forecasts_is_not_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two batches teach nothing: status 1, the errors in numbers, the run of before untouched."""
    assert main(["flip-flop"], ZOO) == 0
    before = Path("runs/flip-flop/report.json").read_bytes()
    capsys.readouterr()
    assert main(["flip-flop", "--epochs", "1", "--batches", "2"], ZOO) == 1
    assert "error: `flip-flop` does not beat the naive forecasts: " in capsys.readouterr().err
    assert Path("runs/flip-flop/report.json").read_bytes() == before
    assert main(["flip-flop", "--epochs", "1", "--batches", "2", "--out", "other"], ZOO) == 1
    assert [path.name for path in Path().iterdir()] == ["runs"]


def test_settings_on_the_command_line_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    """They are in the report, beside those of the entry; one out of range is an error."""
    assert main(["flip-flop", "--epochs", "9", "--learning-rate", "0.06", "--out", "a/b"], ZOO) == 0
    settings = json.loads(Path("a/b/report.json").read_text(encoding="utf-8"))["settings"]
    assert (settings["epochs"], settings["learning_rate"], settings["batches"]) == (9, 0.06, 16)
    assert main(["flip-flop", "--epochs", "0"], ZOO) == 1
    assert "error: `epochs` is 0, expected a positive number" in capsys.readouterr().err
    assert main(["flip-flop", "--seed", "-1"], ZOO) == 1
    assert "error: `seed` is -1, expected a whole number from 0" in capsys.readouterr().err


def test_the_list_shows_what_is_trained_and_what_is_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name, description and parameters always; scores and time when there is a run."""
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["--list"], ZOO) == 0
    before = capsys.readouterr().out
    for text in ("flip-flop", "a small LSTM on an alternating series", "lstm 208 + 64", "not yet"):
        assert text in before
    assert main(["flip-flop"], ZOO) == 0
    scores = json.loads(Path("runs/flip-flop/report.json").read_text(encoding="utf-8"))["scores"]
    capsys.readouterr()
    assert main(["--list"], ZOO) == 0
    after = capsys.readouterr().out
    assert "not yet" not in after
    assert f"one-step: {scores[0]['model']:.3f} V" in after


def test_the_markdown_table_shows_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """A line of heads, a line of dashes, and a line for each model, in as many cells."""
    assert main(["flip-flop"], ZOO) == 0
    scores = json.loads(Path("runs/flip-flop/report.json").read_text(encoding="utf-8"))["scores"]
    capsys.readouterr()
    assert main(["--table"], ZOO) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    cells = [line.strip("| ").split(" | ") for line in lines]
    assert cells[1] == ["---"] * 6
    assert [cell for cell in cells[2][:4]] == [
        "`flip-flop`",
        "a small LSTM on an alternating series",
        "`X -> y`",
        "lstm 208 + 64, head 4 + 1",
    ]
    assert cells[2][4].startswith(f"one-step: {scores[0]['model']:.3f} V (")


def test_the_list_of_the_real_zoo_fits_in_a_hundred_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line is longer, and every name is whole."""
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    for name in REAL_ZOO:
        assert f" {name} " in out


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "models.train", *arguments]


def test_an_unknown_name_is_a_clear_error() -> None:
    """Of the real command: status 1, one line with the names, no traceback, no folder."""
    result = subprocess.run(
        command("sine-sell", "--out", str(Path("a").resolve())),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert result.stderr == (
        f"error: no model is called `sine-sell`; choose one of {', '.join(REAL_ZOO)}\n"
    )
    assert list(Path().iterdir()) == []


def test_no_name_is_an_error_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, as for any wrong call, with the names."""
    with pytest.raises(SystemExit, match="2"):
        main([], ZOO)
    assert "which model? one of flip-flop; or --list" in capsys.readouterr().err


def test_a_killed_training_leaves_no_folder_that_looks_complete() -> None:
    """kill -9 after the first weights were saved: no run, and nothing with a report."""
    out = str(Path("runs/killed").resolve())
    arguments = ("sine-lstm", "--out", out, "--batches", "1", "--epochs", "1000")
    with subprocess.Popen(command(*arguments), cwd=ROOT, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        seen = b""
        while not re.search(rb"best=\d", seen):
            piece = os.read(process.stderr.fileno(), 4096)
            assert piece, f"training ended before it was killed: {seen.decode()}"
            seen += piece
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not Path("runs/killed").exists()
    assert len(list(Path("runs").glob(".killed.partial-*/weights.safetensors"))) == 1
    assert list(Path("runs").rglob("report.json")) == []
