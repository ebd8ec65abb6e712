"""`python -m service.check`: the self-test by hand, where there is neither torch nor BentoML."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service import check
from service.manifest import MANIFEST, describe_file
from tests.service.build_artifact import Spec, build_artifact, reseal

ROOT = Path(__file__).parents[2]
ABSENT = (
    *("torch", "bentoml", "starlette", "uvicorn", "pydantic_settings", "orjson", "msgspec"),
    *("onnx", "matplotlib", "rich"),
)
EDGE_DEVICE = f"""
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
runpy.run_module("service.check", run_name="__main__")
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "TIMING_S", 0.0)  # then MIN_CALLS are made


def add_variant(path: Path, name: str, file: str, content: bytes) -> Path:
    """Another variant of what the artifact has, in a file of these bytes."""
    (path / file).write_bytes(content)
    variants = json.loads((path / MANIFEST).read_text())["variants"]
    described = describe_file(path / file).model_dump()
    variants[name] = variants["onnx-fp32"] | described | {"isolated": False}
    return reseal(path, variants=variants)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return build_artifact(tmp_path, Spec("sine-cell", seed=1))


def test_it_runs_where_only_onnx_runtime_is(path: Path) -> None:
    """TorchScript is skipped, and that is no failure."""
    both = add_variant(path, "torchscript-fp32", "torchscript-fp32.pt", b"no archive")
    done = subprocess.run(
        [sys.executable, "-c", EDGE_DEVICE, str(both)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"sine-cell:{both.name}  {both}"
    assert any(line.startswith("CPU       ") for line in lines)
    assert any("onnx-fp32 (default)  pass" in line and line.endswith("yes") for line in lines)
    assert any("torchscript-fp32     skipped: needs torch" in line for line in lines)
    timed = [line.split() for line in lines if line.startswith("onnx-fp32  ")]
    assert [row[1] for row in timed] == ["1", "16"]
    assert lines[-1] == "1 passed, 1 skipped: this machine computes what was exported"


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = check.main([*arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_json_has_every_figure(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The errors of each way, and the times of each batch."""
    status, report = run_json(capsys, str(path), "--batch", "1", "5", "--threads", "2")
    assert status == 0
    assert (report["name"], report["version"], report["threads"]) == ("sine-cell", path.name, 2)
    assert {"machine", "model", "features"} == set(report["cpu"])
    (found,) = report["variants"]
    assert (found["variant"], found["result"], found["isolated"]) == ("onnx-fp32", "pass", True)
    assert found["size_bytes"] == (path / "onnx-fp32.onnx").stat().st_size
    assert found["tolerance"] == {"atol": 1e-5, "rtol": 0.0}
    ways = {entry["way"]: entry["max_error"] for entry in found["golden"]}
    assert set(ways) == {"each alone", "in one batch", "step by step"}
    assert max(ways.values()) < 1e-6
    one, five = found["latency"]
    assert (one["batch"], five["batch"]) == (1, 5)
    assert 0 < one["p50_us"] <= one["p90_us"] <= one["p99_us"] < 1e6
    assert five["steps_per_s"] > one["steps_per_s"]


def test_the_newest_version_of_a_name_is_checked(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A NAME/ directory means its newest version, as it does for the service."""
    newer = build_artifact(path.parents[1], Spec("sine-cell", seed=2))
    status, report = run_json(capsys, str(path.parent))
    assert (status, report["version"]) == (0, newer.name)


def test_a_variant_that_is_off_fails_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1, the reason, and no time of what is wrong."""
    path = build_artifact(tmp_path, Spec("sine-cell", seed=1, golden_error=1e-3))
    assert check.main([str(path)]) == 1
    text = capsys.readouterr().out
    assert "onnx-fp32 (default)  FAIL" in text
    assert "1.0e-03" in text
    assert "FAIL: onnx-fp32 of" in text and "this machine computes something else" in text
    assert "1 of 1 variants failed" in text
    assert "p50" not in text


def test_one_broken_variant_does_not_hide_the_others(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is tried; `--variant` picks."""
    both = add_variant(path, "onnx-int8", "onnx-int8.onnx", b"no graph")
    status, report = run_json(capsys, str(both))
    results = {entry["variant"]: entry["result"] for entry in report["variants"]}
    assert (status, results) == (1, {"onnx-fp32": "pass", "onnx-int8": "fail"})
    assert "ONNX Runtime cannot load" in report["variants"][1]["reason"]
    assert run_json(capsys, str(both), "--variant", "onnx-fp32")[0] == 0


def test_what_is_not_isolated_is_said_to_run_apart(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the manifest's word, though the bits agree: its rows never meet."""
    graph = (path / "onnx-fp32.onnx").read_bytes()
    both = add_variant(path, "onnx-int8", "onnx-int8.onnx", graph)
    assert check.main([str(both)]) == 0
    text = capsys.readouterr().out
    assert [line.split()[-1] for line in text.splitlines() if "pass " in line] == ["yes", "no"]
    assert "what is not isolated runs one row and one step at a time" in text


def test_a_changed_file_fails_the_check(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is run."""
    graph = path / "onnx-fp32.onnx"
    graph.write_bytes(graph.read_bytes() + b"x")
    assert check.main([str(path)]) == 1
    assert "check: manifest says sha256" in capsys.readouterr().err


def test_what_is_not_there_is_a_usage_error(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2: a directory that is no artifact, a variant that was not exported, a batch of 0."""
    assert check.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere holds no manifest.json; expected an artifact" in capsys.readouterr().err
    assert check.main([str(path), "--variant", "onnx-int8"]) == 2
    assert "has no variant `onnx-int8`, expected one of" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        check.main([str(path), "--batch", "0"])


def test_where_nothing_can_run_nothing_is_proven(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All skipped is no pass."""
    both = add_variant(path, "torchscript-fp32", "torchscript-fp32.pt", b"no archive")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert check.main([str(both), "--variant", "torchscript-fp32"]) == 1
    assert "nothing could run here, so nothing is proven" in capsys.readouterr().out
