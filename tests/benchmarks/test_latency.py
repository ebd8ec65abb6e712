"""The latency script on small models: who takes part, what is reported, and that it can be read."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.latency.__main__ import main
from benchmarks.latency.contestants import (
    EAGER,
    FLOOR,
    OPENVINO,
    PEERS,
    READING,
    STOCK,
    STOCK_INT8,
    Contestants,
    module_of,
)
from benchmarks.latency.made import Size, make, network
from service.artifact import Artifact

HIDDEN = 12
INSTALLED = set(PEERS) - {OPENVINO}  # everywhere; it is optional
MADE = {f"lstm-{HIDDEN}", f"gru-{HIDDEN}", f"lstm-{HIDDEN}-x2"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


def test_a_run_reports_every_contestant_in_every_cell(
    demo_artifacts: dict[str, Artifact],
    cache: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Made models and the demos; the terminal, latency.json, pictures, and one page with all."""
    root = demo_artifacts["sine-cell"].path.parents[1]
    flags = f"--parts in-process --hidden {HIDDEN} --batch 1 4 --chunk 3 --rounds 2 --slice-ms 0.1"
    folders = ["--artifacts", str(root), "--cache", str(cache), "--out", str(tmp_path)]
    assert main([*flags.split(), "--variants", "onnx-fp32", *folders]) == 0
    report = json.loads((tmp_path / "latency.json").read_text())
    points = report["points"]
    cells: dict[tuple[str, int, int], set[str]] = {}
    for p in points:
        cells.setdefault((p["model"], p["rows"], p["steps"]), set()).add(p["contestant"])
    single = {(model, rows, 1) for model in {*MADE, *demo_artifacts} for rows in (1, 4)}
    chunks = {(f"lstm-{HIDDEN}", rows, 3) for rows in (1, 4)}
    assert set(cells) == single | chunks | {(model, 1, 3) for model in demo_artifacts}
    for (model, rows, steps), names in cells.items():
        variants = demo_artifacts[model].manifest.variants if model in demo_artifacts else {}
        floors = set() if model.endswith("-x2") or model == "series-lstm" else {FLOOR}
        floors |= {READING} if floors and rows == steps == 1 else set()
        assert names - {OPENVINO} == INSTALLED | {"onnx-fp32", *variants} | floors, (model, rows)
    assert all(0 < p["p50_us"] <= p["p90_us"] <= p["p99_us"] for p in points)
    assert all(p["cpu_us"] > 0 and p["calls"] >= 2 and p["steps_per_s"] > 0 for p in points)
    assert {p["baseline"] for p in points} == {STOCK}
    assert {p["ratio"] for p in points if p["contestant"] == STOCK} == {1.0}
    assert report["conditions"]["threads"] == 1 and report["conditions"]["onnxruntime"]
    topics = {one["topic"] for one in report["advice"]}
    assert topics == {"Layers", "Cell", "int8", "Chunks", "Batches"}
    assert len(report["targets"]) == 2  # no cell is as big as the third asks for
    out = capfd.readouterr().out
    assert "series-lstm" in out and f"GRU instead of LSTM, hidden {HIDDEN}" in out
    page = (tmp_path / "latency.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "<script" not in page
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    assert pictures == {f"chunks-lstm-{HIDDEN}"} | {
        f"latency-{model}" for model in (*demo_artifacts, f"lstm-{HIDDEN}")
    }
    assert page.count("<figure>") == len(pictures)


@pytest.mark.parametrize(
    "size", [Size("lstm", HIDDEN), Size("lstm", HIDDEN, 2), Size("gru", HIDDEN)]
)
@pytest.mark.parametrize("steps", [1, 3])
def test_all_that_take_part_compute_the_same(
    size: Size, steps: int, cache: Path, tmp_path: Path
) -> None:
    """The third call's y, each on its own state: a contestant that forgets it is found."""
    artifact = make(cache, size, ["onnx-fp32"])
    module = network(size.kind, size.hidden, size.layers)
    contestants = Contestants(artifact, size.model, module, ["onnx-fp32"], 1, tmp_path)
    calls = contestants.calls(5, steps)
    assert set(contestants.absent) <= {OPENVINO}
    peers = {name: call for name, call in calls.items() if not name.startswith("floor")}
    ours = peers.pop("onnx-fp32")
    ours()  # the peers have been called once, to see whether they can be
    y = {name: np.asarray([call() for _ in range(2)][-1]) for name, call in peers.items()}
    expected = np.asarray([ours() for _ in range(2)][-1])
    assert set(y) >= INSTALLED and expected.shape == (5, steps, 8)
    for name, found in y.items():
        tolerance = 0.03 if name == STOCK_INT8 else 1e-5
        assert np.abs(found - expected).max() < tolerance, name
    fresh = Contestants(artifact, size.model, module, [], 1, tmp_path).calls(5, steps)[EAGER]
    assert np.abs(np.asarray(fresh()) - y[EAGER]).max() < 1e-5  # the second call


def test_a_made_model_is_exported_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time it is read; when the code that writes artifacts has changed, it is not."""
    first = make(cache, Size("lstm", HIDDEN), ["onnx-fp32"])
    exported: list[str] = []

    def export(source: object, name: str, *rest: object, **options: object) -> None:
        exported.append(name)
        raise RuntimeError(name)

    monkeypatch.setattr("benchmarks.latency.made.export", export)
    assert make(cache, Size("lstm", HIDDEN), ["onnx-fp32"]).path == first.path
    assert exported == []
    monkeypatch.setattr("benchmarks.latency.made.digest", lambda: "another")
    with pytest.raises(RuntimeError):
        make(cache, Size("lstm", HIDDEN), ["onnx-fp32"])
    assert exported == [f"lstm-{HIDDEN}"]


def test_a_peer_that_fails_is_absent_and_the_others_are_not(cache: Path, tmp_path: Path) -> None:
    """Whatever goes wrong in another package is told, and the run goes on."""
    size = Size("lstm", HIDDEN)
    artifact = make(cache, size, ["onnx-fp32"])
    other = network("lstm", HIDDEN + 1, 1)  # does not take the artifact's states
    contestants = Contestants(artifact, size.model, other, ["onnx-fp32"], 1, tmp_path)
    calls = contestants.calls(2, 1)
    assert set(calls) == {"onnx-fp32", f"{FLOOR} (numpy)", f"{FLOOR} (torch)"}
    assert set(contestants.absent) == set(PEERS)
    assert str(HIDDEN + 1) in contestants.absent[EAGER]


def test_a_module_that_cannot_be_built_here_is_said(cache: Path) -> None:
    """The made models' factory needs arguments: as a user's artifact its module cannot be built."""
    artifact = make(cache, Size("lstm", HIDDEN), ["onnx-fp32"])
    with pytest.raises(
        LookupError, match=r"`benchmarks.latency.made:network` cannot be built here"
    ):
        module_of(artifact)
    called = artifact.manifest.provenance.model_copy(update={"call": "x, h -> h"})
    manifest = artifact.manifest.model_copy(update={"provenance": called})
    with pytest.raises(LookupError, match=r"is called `x, h -> h`, expected X, "):
        module_of(Artifact(artifact.path, manifest))


def test_nothing_to_measure_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 1 and what to do."""
    folders = ["--artifacts", str(tmp_path), "--out", str(tmp_path / "report")]
    assert main(["--parts", "in-process", "--hidden", *folders]) == 1
    assert "holds no artifact, and no --hidden; run `make demos`" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
