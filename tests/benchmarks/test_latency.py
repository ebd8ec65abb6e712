"""The latency script on small models: who takes part, what is reported, and that it can be read."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

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
from export.exporter import export
from export.source import load_source
from models.zoo import sine_cell
from service.artifact import Artifact
from service.manifest import VariantName

HIDDEN = 12
INSTALLED = set(PEERS) - {OPENVINO}  # everywhere; it is optional
MADE = LSTM, GRU, STACK = f"lstm-{HIDDEN}", f"gru-{HIDDEN}", f"lstm-{HIDDEN}-x2"
OWN = "pump"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A user's model: the hand-written cell in a loop, not trained, with a variant row by row."""
    folder = tmp_path_factory.mktemp("own")
    example = np.sin(np.arange(300, dtype=np.float32) / 5)[:, np.newaxis]
    np.save(folder / "example.npy", example)
    save_file(sine_cell().state_dict(), folder / "weights.safetensors")
    paths = folder / "weights.safetensors", folder / "example.npy"
    source = load_source("models.zoo:sine_cell", *paths)
    variants: list[VariantName] = ["onnx-fp32", "onnx-int8"]
    few = {"onnx-int8": 0.5}  # what it drifts is no matter here
    return export(
        source, OWN, folder / "artifacts", variants=variants, tolerances=few, steps=200
    ).artifact


def test_a_run_reports_every_contestant_in_every_cell(
    own: Artifact, cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Made models and the user's; the terminal, latency.json, pictures, and one page with all."""
    flags = f"--parts in-process --hidden {HIDDEN} --batch 1 4 --chunk 3 --rounds 2 --slice-ms 0.1"
    folders = ["--artifacts", str(own.path.parents[1]), "--cache", str(cache)]
    variants = ["--variants", "onnx-fp32"]
    assert main([*flags.split(), *variants, *folders, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "latency.json").read_text())
    points = report["points"]
    cells: dict[tuple[str, int, int], set[str]] = {}
    for p in points:
        cells.setdefault((p["model"], p["rows"], p["steps"]), set()).add(p["contestant"])
    single = {(model, rows, 1) for model in (*MADE, OWN) for rows in (1, 4)}
    assert set(cells) == single | {(LSTM, 1, 3), (LSTM, 4, 3), (OWN, 1, 3)}
    for (model, rows, steps), names in cells.items():
        floors = {FLOOR, READING} if rows == steps == 1 else {FLOOR}
        expected = INSTALLED | {"onnx-fp32"} | (set() if model == STACK else floors)
        assert names - {OPENVINO, "onnx-int8"} == expected, (model, rows, steps)
        assert ("onnx-int8" in names) == (model == OWN)
    assert all(0 < p["p50_us"] <= p["p90_us"] <= p["p99_us"] for p in points)
    assert all(p["cpu_us"] > 0 and p["calls"] >= 2 and p["steps_per_s"] > 0 for p in points)
    assert {p["baseline"] for p in points} == {STOCK}
    assert {p["ratio"] for p in points if p["contestant"] == STOCK} == {1.0}
    assert report["conditions"]["threads"] == 1 and report["conditions"]["onnxruntime"]
    assert {one["topic"] for one in report["advice"]} == {"Layers", "Cell", "Chunks", "Batches"}
    assert report["targets"][0]["of"] == 6  # two models and the user's
    out = capfd.readouterr().out
    assert OWN in out and f"GRU instead of LSTM, hidden {HIDDEN}" in out
    page = (tmp_path / "latency.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", page) and "<script" not in page
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    assert pictures == {f"chunks-{LSTM}", f"latency-{LSTM}", f"latency-{OWN}"}
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
    first = np.asarray(ours())  # the peers have been called once, to see whether they can be
    y = {name: np.asarray([call() for _ in range(2)][-1]) for name, call in peers.items()}
    expected = np.asarray([ours() for _ in range(2)][-1])
    assert set(y) >= INSTALLED and expected.shape == (5, steps, 8)
    assert np.abs(expected - first).max() > 0.005
    for name, found in y.items():
        tolerance = 0.03 if name == STOCK_INT8 else 1e-5
        assert np.abs(found - expected).max() < tolerance, name


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
