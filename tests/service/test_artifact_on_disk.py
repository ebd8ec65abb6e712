"""A broken or tampered artifact is never served; a sound one is proven on this machine."""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from service.artifact import Artifact, find_artifacts
from service.catalog import Catalog
from service.cpu import read_cpu
from service.errors import (
    ArtifactError,
    NotFiniteError,
    NotIsolatedError,
    RequestError,
    SelfTestError,
    SettingsError,
    ShapeError,
    StateTooLargeError,
    UnknownModelError,
)
from service.layout import State
from service.manifest import MANIFEST, describe_file
from service.model import Model
from service.onnx_backend import OnnxBackend
from service.runtime import Runtime
from tests.service.build_artifact import (
    Spec,
    build_artifact,
    oracle,
    reseal,
    scaling,
)

Array = np.ndarray
SPEC = Spec("sine-cell", seed=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return build_artifact(tmp_path, SPEC)


def flip_byte(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def edit_manifest(path: Path, **changes: object) -> None:
    manifest = json.loads((path / MANIFEST).read_text()) | changes
    (path / MANIFEST).write_text(json.dumps(manifest))


TAMPERINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte in the model": (
        lambda path: flip_byte(path / "onnx-fp32.onnx"),
        r"manifest says sha256 [0-9a-f]{12}\.\.\. for onnx-fp32 .*; export the model again",
    ),
    "a flipped byte in the golden sequences": (
        lambda path: flip_byte(path / "golden.safetensors"),
        r"manifest says sha256 .* for golden \(golden.safetensors\), the file has",
    ),
    "a missing model": (
        lambda path: (path / "onnx-fp32.onnx").unlink(),
        r"manifest names onnx-fp32.onnx for onnx-fp32, .* has no such file",
    ),
    "a missing manifest": (
        lambda path: (path / MANIFEST).unlink(),
        r"manifest.json cannot be read \(No such file or directory\); expected an artifact dir",
    ),
    "a manifest that is not JSON": (
        lambda path: (path / MANIFEST).write_text("{"),
        "manifest.json is not JSON",
    ),
    "another schema": (
        lambda path: edit_manifest(path, schema_version=2),
        "has schema_version 2, this Carousel reads 1; export the model again with this version",
    ),
    "an unknown key": (
        lambda path: edit_manifest(path, extra=1),
        "`extra`: Extra inputs are not permitted",
    ),
    "another name": (
        lambda path: edit_manifest(path, name="other"),
        r"says version [0-9a-f]{16}, its content makes .*; it was changed after export",
    ),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_a_tampered_artifact_is_refused_with_what_is_wrong(path: Path, tampering: str) -> None:
    """The message says which file, and what to do."""
    tamper, message = TAMPERINGS[tampering]
    tamper(path)
    with pytest.raises(ArtifactError, match=message):
        Artifact.load(path)


def test_the_version_is_what_the_spec_derives_from_the_file(path: Path) -> None:
    """As DESIGN.md words it, from manifest.json alone: keys that are not there do not count."""
    manifest = json.loads((path / MANIFEST).read_text())
    kept = ("schema_version", "name", "mode", "ports", "pipeline", "golden", "provenance")
    content = {key: manifest[key] for key in kept}
    content["files"] = {
        name: [variant["sha256"], variant.get("step", {}).get("sha256")]
        for name, variant in manifest["variants"].items()
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert manifest["version"] == hashlib.sha256(canonical.encode()).hexdigest()[:16]


def test_artifacts_are_found_by_their_manifest(tmp_path: Path) -> None:
    """NAME/VERSION/manifest.json, and nothing else."""
    one = build_artifact(tmp_path, SPEC)
    two = build_artifact(tmp_path, Spec("other", seed=2))
    (tmp_path / "not" / "one").mkdir(parents=True)
    assert find_artifacts(tmp_path) == sorted([one, two])


def test_a_model_computes_what_plain_numpy_computes(path: Path) -> None:
    """In raw units, over 500 steps."""
    for spec in (SPEC, Spec("wide", input_size=8, output_size=2, seed=5, scaling=scaling(8, 2))):
        built = path if spec is SPEC else build_artifact(path.parent.parent, spec)
        model = Model.load(built)
        x = 20 + 3 * np.random.default_rng(0).normal(size=(500, spec.input_size))
        x = x if spec.scaling.x else (x - 20) / 3
        (y,), _, finite = model.run([model.encode(x)], [model.initial_state])
        assert finite == [True]
        assert np.abs(model.decode(y) - oracle(spec, x)).max() < 1e-5


def test_a_session_begins_with_the_initial_state_that_is_stored(tmp_path: Path) -> None:
    """A learned start, not zeros: y is what plain numpy gives from there, and not from zeros."""
    spec = Spec("learned-start", seed=1, start=0.5)
    model = Model.load(build_artifact(tmp_path, spec))
    x = np.random.default_rng(5).normal(size=(20, 1))
    (y,), _, _ = model.run([model.encode(x)], [model.initial_state])
    np.testing.assert_allclose(y, oracle(spec, x), atol=1e-5, rtol=0)
    assert np.abs(y - oracle(SPEC, x)).max() > 0.01


def test_a_tampered_initial_state_is_refused(tmp_path: Path) -> None:
    """It carries its sha256 as every file does, and counts in the version."""
    path = build_artifact(tmp_path, Spec("learned-start", seed=1, start=0.5))
    flip_byte(path / "initial.safetensors")
    with pytest.raises(ArtifactError, match=r"for initial \(initial\.safetensors\)"):
        Artifact.load(path)
    edit_manifest(path, initial=None)
    with pytest.raises(ArtifactError, match="its content makes"):
        Artifact.load(path)


def test_rows_of_a_batch_give_what_they_give_alone(path: Path) -> None:
    """Whatever the lengths beside them, bit for bit."""
    model = Model.load(path)
    rng = np.random.default_rng(1)
    chunks = [model.encode(rng.normal(size=(steps, 1))) for steps in (1, 7, 3, 64)]
    alone = [model.run([chunk], [model.initial_state]) for chunk in chunks]
    ys, states, _ = model.run(chunks, [model.initial_state] * 4)
    for b, ((y,), (state,), _) in enumerate(alone):
        assert np.array_equal(ys[b], y)
        assert states[b] == state


def test_a_model_says_at_load_what_its_self_test_found(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line: model, version, variant, error and tolerance, isolation, engine and CPU."""
    with caplog.at_level(logging.INFO, "carousel.model"):
        Model.load(path)
    (line,) = caplog.messages
    found = re.fullmatch(
        rf"sine-cell:{path.name} onnx-fp32: golden sequences within (\S+) of the reference, "
        r"1\.0e-05 allowed; isolated; onnxruntime (\S+) on (.*)",
        line,
    )
    assert found is not None, line
    assert 0 < float(found[1]) < 1e-6
    assert found[2] == onnxruntime.__version__
    assert found[3] == str(read_cpu())


def test_a_golden_sequence_that_this_machine_does_not_reproduce_is_refused(tmp_path: Path) -> None:
    """Sealed anew, so that only the replay can find it."""
    path = build_artifact(tmp_path, Spec("sine-cell", seed=1, golden_error=1e-3))
    Artifact.load(path)
    with pytest.raises(SelfTestError, match="this machine computes something else") as caught:
        Model.load(path)
    assert "onnx-fp32" in caught.value.message
    assert "is off by 0.001 at step " in caught.value.message
    assert "of golden sequence " in caught.value.message
    assert "(atol 1e-05, rtol 0)" in caught.value.message
    assert caught.value.data == {"artifact": str(path), "variant": "onnx-fp32"}


def test_a_model_whose_state_is_too_large_is_refused(path: Path) -> None:
    """With what it takes: exactly that is enough."""
    size = len(Model.load(path).initial_state)
    assert len(Model.load(path, max_state_bytes=size).initial_state) == size
    with pytest.raises(StateTooLargeError, match=f"has a state of {size} bytes") as caught:
        Model.load(path, max_state_bytes=size - 1)
    assert caught.value.data == {"artifact": str(path), "got": size, "expected": size - 1}


def test_a_machine_whose_kernels_mix_rows_runs_them_apart(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Bits that depend on the batch, within the tolerance: isolation holds, at a price."""
    real = OnnxBackend.run

    def uneven(self: OnnxBackend, x: Array, state: State, lengths: Array) -> tuple[Array, State]:
        y, new = real(self, x, state, lengths)
        return y + np.float32(1e-6 * (len(x) - 1)), new

    assert Model.load(path).runtime.isolated
    monkeypatch.setattr(OnnxBackend, "run", uneven)
    model = Model.load(path)
    assert not model.runtime.isolated
    assert "gives other bits in a batch" in caplog.text
    golden = model.artifact.golden()
    chunks, states = list(golden.x), [model.initial_state] * len(golden.x)
    together, _, _ = model.run(chunks, states)
    for chunk, y in zip(chunks, together, strict=True):
        (alone,), _, _ = model.run([chunk], [model.initial_state])
        assert alone.tobytes() == y.tobytes()


def test_a_variant_that_mixes_rows_is_refused_where_batches_are_asked_for(path: Path) -> None:
    """Not with a batch of one, nor where nothing was asked for: then it runs rows apart."""
    variants = json.loads((path / MANIFEST).read_text())["variants"]
    variants["onnx-int8"] = variants["onnx-fp32"] | {"isolated": False}
    mixed = reseal(path, variants=variants, default_variant="onnx-int8")
    with pytest.raises(
        NotIsolatedError, match=r"=64 asks for batches; .* \['onnx-fp32'\]"
    ) as caught:
        Model.load(mixed, batch=64)
    assert caught.value.data == {"artifact": str(mixed), "variant": "onnx-int8"}
    assert list(Catalog.load([mixed], batch=2).broken) == [f"sine-cell:{mixed.name}"]
    assert not Model.load(mixed, batch=1).runtime.isolated
    assert not Model.load(mixed).runtime.isolated
    assert Model.load(mixed, "onnx-fp32", batch=64).runtime.isolated


def test_a_resealed_model_of_other_weights_is_refused(tmp_path: Path) -> None:
    """Its hashes are right; what it computes is not."""
    path = build_artifact(tmp_path, SPEC)
    other = build_artifact(tmp_path / "x", Spec("sine-cell", seed=2))
    shutil.copy(other / "onnx-fp32.onnx", path / "onnx-fp32.onnx")
    manifest = json.loads((path / MANIFEST).read_text())
    variant = manifest["variants"]["onnx-fp32"]
    variant |= describe_file(path / "onnx-fp32.onnx").model_dump()
    with pytest.raises(SelfTestError, match="run each alone"):
        Model.load(reseal(path, variants=manifest["variants"]))


def test_a_graph_that_does_not_load_is_an_artifact_error(path: Path) -> None:
    """ONNX Runtime's own words, under ours."""
    (path / "onnx-fp32.onnx").write_bytes(b"no graph")
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["variants"]["onnx-fp32"] |= describe_file(path / "onnx-fp32.onnx").model_dump()
    with pytest.raises(ArtifactError, match="ONNX Runtime cannot load"):
        Model.load(reseal(path, variants=manifest["variants"]))


def test_an_unknown_variant_is_refused_with_the_choices(path: Path) -> None:
    """As when CAROUSEL_VARIANT names one that was not exported."""
    with pytest.raises(
        ArtifactError, match=r"no variant `onnx-int8`, expected one of \['onnx-fp32"
    ):
        Model.load(path, "onnx-int8")


# The model's own checks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x", [np.zeros((2, 3)), np.zeros(2), np.zeros((0, 8)), np.zeros((1, 2, 8))]
)
def test_rows_of_another_shape_are_refused(series: Model, x: np.ndarray) -> None:
    """Whatever protocol they came by."""
    with pytest.raises(ShapeError, match=r"`x` has shape .*, expected \(time, 8\) from manifest"):
        series.encode(x)


def test_rows_that_overflow_the_ports_dtype_are_refused(sine: Model) -> None:
    """1e39 is finite for the client and infinite for float32."""
    with pytest.raises(NotFiniteError, match=r"row 1 of `x` is not finite in float32: 1e\+39 is"):
        sine.encode(np.array([[1.0], [1e39]]))


@pytest.mark.parametrize(
    ("x", "state", "lengths", "message"),
    [
        (
            np.zeros((1, 1), np.float32),
            None,
            None,
            r"`x` has shape \(1, 1\), expected \(batch, time",
        ),
        (np.zeros((1, 1, 1)), None, None, "`x` is float64, expected float32"),
        (np.zeros((1, 1, 1), np.float32), {}, None, r"`state` has \[\], expected \['h', 'c'\]"),
        (
            np.zeros((2, 1, 1), np.float32),
            None,
            None,
            r"state `h` is float32 \(1, 1, 8\), expected float32 \(2, 1, 8\)",
        ),
        (np.zeros((1, 2, 1), np.float32), None, np.array([3]), r"`lengths` is \[3\], expected 1"),
        (
            np.zeros((1, 2, 1), np.float32),
            None,
            np.array([0]),
            "expected 1 lengths of 1 to 2 steps",
        ),
    ],
)
def test_a_runtime_refuses_arrays_that_the_manifest_does_not_name(
    sine: Model,
    x: np.ndarray,
    state: dict[str, np.ndarray] | None,
    lengths: np.ndarray | None,
    message: str,
) -> None:
    """Before they reach a graph."""
    runtime = Runtime(sine.artifact, "onnx-fp32")
    zeros = sine.artifact.layout.zeros()
    with pytest.raises(ShapeError, match=message):
        runtime.run(x, zeros if state is None else state, lengths)


def test_the_cost_of_a_step_is_measured_at_load(sine: Model) -> None:
    """A line through one row and many: what decides between inline and thread."""
    assert 0 < sine.cost.estimate_s(1, 1) < 0.1
    assert sine.cost.estimate_s(64, 2) == 2 * sine.cost.estimate_s(64, 1)


# The catalog ------------------------------------------------------------------------------------


def test_a_broken_artifact_disturbs_no_other(path: Path, artifacts: dict[str, Path]) -> None:
    """It is refused with its reason, and never stands aside for another."""
    flip_byte(path / "onnx-fp32.onnx")
    catalog = Catalog.load([path, artifacts["series-lstm"]])
    assert [model.name for model in catalog.models] == ["series-lstm"]
    assert catalog.names == ["series-lstm", "sine-cell"]
    assert catalog.get("series-lstm").name == "series-lstm"
    with pytest.raises(ArtifactError, match="manifest says sha256") as caught:
        catalog.get("sine-cell")
    assert caught.value.data["artifact"] == str(path)
    with pytest.raises(RequestError, match=r"several models .* \['series-lstm', 'sine-cell'\]"):
        catalog.for_new(None)


def test_an_unknown_model_is_refused_with_those_that_are_served(catalog: Catalog) -> None:
    """By name, or by name and version."""
    for reference in ("nobody", "sine-cell:0000", ""):
        with pytest.raises(UnknownModelError, match=f"model `{reference}` is not served") as caught:
            catalog.get(reference)
        assert caught.value.data["models"] == catalog.served


def test_the_default_model_is_for_requests_that_name_none(sine: Model, series: Model) -> None:
    """It must be one of those served."""
    assert Catalog([sine, series], default="series-lstm").for_new(None) is series
    assert Catalog([sine, series], default=sine.reference).for_new(None) is sine
    assert Catalog([sine]).for_new(None) is sine
    with pytest.raises(SettingsError, match="CAROUSEL_DEFAULT_MODEL=nobody is not served"):
        Catalog([sine], default="nobody")
