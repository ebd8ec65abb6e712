"""Other people's modules go through export, and the artifact answers as its author's code does.

Each entry of the corpus is judged without export's own gate: the artifact's runtime, in random
chunks from the artifact's initial state, against the author's module run as its author runs it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export import exporter
from export.errors import ExportError
from export.source import Source
from service.artifact import Artifact
from service.layout import State
from service.pipeline import Pipeline
from service.runtime import Runtime
from tests.export import short
from tests.export.authors.corpus import CORPUS
from tests.export.authors.entry import Entry

Array = np.ndarray
STEPS = 300
# torch's own, of oneDNN, once a process
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
EXAMPLE_SEED, FRESH_SEED = 1, 2
ATOL = RTOL = 1e-5  # of float32, as the gate's
FULL_GATE = ("gate-by-gate", "layer-norm", "text")  # measured over the gate's own length
# Random weights lose more by rounding than trained ones: a wrong function would lose all.
FLOAT = ("onnx-fp32", "torchscript-fp32")
INT8 = ("onnx-int8", "onnx-int8-rowwise", "torchscript-int8")
INT8_SHARE = 0.5  # of the standard deviation of y
HOSTILE = 1e3  # how much greater a neighbour's input may be

GOOD = [name for name, entry in CORPUS.items() if entry.refused is None]
REFUSED = [name for name, entry in CORPUS.items() if entry.refused is not None]


def known(names: Iterable[str], *, of_road: bool = False) -> list[object]:
    """Names as parameters; what is known to fail must fail, or the list is out of date."""
    found: list[object] = []
    for name in names:
        reason = CORPUS[name].fails or (CORPUS[name].off_road if of_road else None)
        marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
        found.append(pytest.param(name, marks=marks, id=name))
    return found


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> "Artifacts":
    return Artifacts(tmp_path_factory.mktemp("authors"))


class Artifacts:
    """Each entry's artifact, or why it has none; exported once."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._found: dict[str, Artifact | Exception] = {}

    def __getitem__(self, name: str) -> Artifact:
        if name not in self._found:
            try:
                self._found[name] = self._export(name, CORPUS[name])
            except Exception as error:
                self._found[name] = error
        found = self._found[name]
        if isinstance(found, Exception):
            raise found
        return found

    def _export(self, name: str, entry: Entry) -> Artifact:
        source = Source(
            f"authors:{name}",
            entry.trained(),
            "0" * 64,
            entry.signal(STEPS, EXAMPLE_SEED)[None],
            Pipeline(),
        )
        options: dict[str, Any] = {"notation": entry.call}
        if entry.window is not None:
            options["window"] = entry.window
        spread = float(np.nanstd(truth(entry, source.example)))
        if not entry.int8:
            options["variants"] = FLOAT
        options["tolerances"] = {variant: INT8_SHARE * spread for variant in INT8}
        export = exporter.export if name in FULL_GATE else short.export
        return export(source, name, self._out, **options).artifact


def signals(entry: Entry) -> Array:
    """The example and a sequence that export has not seen: (2, T, ...)."""
    return np.stack([entry.signal(STEPS, seed) for seed in (EXAMPLE_SEED, FRESH_SEED)])


def truth(entry: Entry, x: Array) -> Array:
    """What the author's own code answers: (B, T, n)."""
    with torch.no_grad():
        y = entry.truth(entry.trained(), torch.from_numpy(x)).numpy()
    return y.reshape(*x.shape[:2], -1)


def start(artifact: Artifact, batch: int) -> State:
    return {name: np.repeat(v, batch, axis=0) for name, v in artifact.initial.items()}


def in_chunks(artifact: Artifact, variant: str, x: Array) -> Array:
    """y (B, T, n) of `variant` in random chunks, its state carried."""
    runtime = Runtime(artifact, variant)
    state = start(artifact, len(x))
    rng = np.random.default_rng(0)
    ys, at = [], 0
    while at < x.shape[1]:
        stop = at + int(rng.integers(1, 40))
        y, state = runtime.run(np.ascontiguousarray(x[:, at:stop]), state)
        ys.append(y)
        at = stop
    return np.concatenate(ys, axis=1).reshape(*x.shape[:2], -1)


@pytest.mark.parametrize("name", CORPUS)
def test_the_authors_module_lives(name: str) -> None:
    """It answers every step, finitely, alike in each run, and remembers what was four steps ago."""
    entry = CORPUS[name]
    x = signals(entry)
    y = truth(entry, x)
    filled = ~np.isnan(y)
    np.testing.assert_array_equal(y[filled], truth(entry, x)[filled])
    assert filled[:, 100:].all()
    assert np.isfinite(y[filled]).all()
    assert (np.nanstd(y, axis=1).max(axis=1) > 0.005).all()
    changed = x.copy()
    changed[:, 150].reshape(len(x), -1)[:, 0] += 1  # beside it may stand flags and constants
    if x.dtype.kind == "i":
        changed[:, 150] %= 20
    assert np.abs(truth(entry, changed)[:, 154] - y[:, 154]).max() > 1e-4


@pytest.mark.parametrize("name", known(GOOD))
def test_every_variant_answers_as_the_author_does(name: str, artifacts: Artifacts) -> None:
    """Floats to 1e-5 on seen and unseen input; int8 on the example, to the stated tolerance."""
    entry, artifact = CORPUS[name], artifacts[name]
    manifest = artifact.manifest
    assert manifest.mode == ("causal" if entry.window is None else "windowed")
    x = signals(entry)
    wanted = truth(entry, x)
    compared = ~np.isnan(wanted)
    assert "onnx-fp32" in manifest.variants
    for variant, described in manifest.variants.items():
        rows, atol, rtol = slice(None), ATOL, RTOL
        if "int8" in variant:
            rows, rtol = slice(1), 0.0
            atol = described.parity[0].tolerance.atol
        got = in_chunks(artifact, variant, x[rows])
        asked = compared[rows]
        np.testing.assert_allclose(
            got[asked], wanted[rows][asked], atol=atol, rtol=rtol, err_msg=variant
        )


@pytest.mark.parametrize("name", known(GOOD))
def test_a_row_among_hostile_neighbours_is_the_row_alone(name: str, artifacts: Artifacts) -> None:
    """onnx-fp32: y and every state, bit for bit."""
    entry, artifact = CORPUS[name], artifacts[name]
    x = np.stack([entry.signal(40, seed) for seed in range(5)])
    if x.dtype.kind == "f":
        x[[1, 3]] *= HOSTILE
    runtime = Runtime(artifact, "onnx-fp32")
    y, state = runtime.run(x, start(artifact, len(x)))
    for row in (0, 2, 4):
        alone, alone_state = runtime.run(x[row : row + 1], start(artifact, 1))
        np.testing.assert_array_equal(y[row], alone[0])
        for port, value in alone_state.items():
            np.testing.assert_array_equal(state[port][row], value[0], err_msg=port)


@pytest.mark.parametrize("name", known(GOOD, of_road=True))
def test_the_road_is_the_shortest(name: str, artifacts: Artifacts) -> None:
    """Cells that ONNX has an operator for are lowered to it, and only the rest is general."""
    lowering = artifacts[name].manifest.lowering
    kinds = {entry.road.partition(" (")[0] for entry in lowering}  # "gru (reset after ...)"
    assert kinds - {"not written"} == CORPUS[name].roads


@pytest.mark.parametrize("name", known(REFUSED))
def test_what_cannot_be_a_stream_is_refused(name: str, artifacts: Artifacts) -> None:
    """An ExportError that names what stands in the way."""
    with pytest.raises(ExportError, match=CORPUS[name].refused):
        artifacts[name]


def test_a_scripted_class_can_be_scripted_again_after_an_export(artifacts: Artifacts) -> None:
    """Export clears torch's registry of scripted classes, and nothing is left that points there."""
    artifacts["scripted"]
    entry = CORPUS["scripted"]
    assert truth(entry, signals(entry)).shape == (2, STEPS, 12)
