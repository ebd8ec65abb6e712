"""Windowed models as artifacts: every variant keeps the laws, and is served as a stream."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.exporter import ALL_VARIANTS, Exported
from export.source import Source
from models.autoencoder import AnomalyDetector
from models.classifier import BidirectionalClassifier
from models.predictors import TransformerForecaster
from service.layout import State
from service.manifest import VariantName
from service.model import Model
from service.pipeline import Alarm, Pipeline, Scaling
from service.runtime import Runtime
from tests.bits import same_bits
from tests.export.short import export

N = 7
SCALING = Scaling(mean=[5.0, 1.0], std=[2.0, 0.5])
Array = np.ndarray


class Words(nn.Module):
    """Token ids, both ways, time first."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 8)
        self.gru = nn.GRU(8, 16, bidirectional=True)
        self.head = nn.Linear(32, 12)

    def forward(self, ids: Tensor) -> Tensor:
        out, _ = self.gru(self.table(ids))
        y: Tensor = self.head(out)
        return y


MODULES: dict[str, Callable[[], nn.Module]] = {
    "both-ways": lambda: BidirectionalClassifier(2, 16, 3),
    "transformer": lambda: TransformerForecaster(2, 16, 2, 1, 2),
    "words": Words,
    "detector": lambda: AnomalyDetector(2, 16),
}
PIPELINES = {
    "words": Pipeline(),
    "detector": Pipeline(x=SCALING, y=SCALING, alarm=Alarm(score="mse", threshold=0.6)),
}


LEAST_SPREAD = 0.5  # untrained, one step of shock fills their narrow windows
LEFT_OUT: dict[str, set[str]] = {
    # A layer over a window is one node to ONNX, and the heads are narrow.
    "both-ways": {"onnx-int8-rowwise"},
    "transformer": set(),
    "words": {"onnx-int8-rowwise"},
    "detector": {"onnx-int8-rowwise"},
}


def example(name: str) -> Array:
    rng = np.random.default_rng(0)
    if name == "words":
        return rng.integers(0, 12, 400)
    noise = rng.standard_normal((400, 2)) * 0.3
    waves = np.sin(np.arange(400)[:, None] * [0.1, 0.23])
    return np.asarray([5, 1] + (waves + noise) * [2, 0.5], np.float32)


def trained(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODULES[name]().eval().requires_grad_(False)


@pytest.fixture(scope="module", params=MODULES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A small model of a window of 7, with each variant that there is."""
    name = str(request.param)
    pipeline = PIPELINES.get(name, Pipeline(x=SCALING))
    source = Source("x:y", trained(name), "0" * 64, example(name), pipeline)
    return export(source, name, tmp_path_factory.mktemp("out"), window=N)


def input_of(exported: Exported) -> Array:
    """(1, T, ...) in the model's units."""
    manifest = exported.artifact.manifest
    raw = example(manifest.name)
    return manifest.pipeline.encode(raw)[None].astype(manifest.ports.x.dtype)


def answers(name: str, x: Array) -> Array:
    """The module's own y of each of x (T, ...), on the last N rows, zeros before the first."""
    module = trained(name)
    padded = torch.from_numpy(np.concatenate([np.zeros((N - 1, *x.shape[1:]), x.dtype), x]))
    windows = torch.stack([padded[t : t + N] for t in range(len(x))])
    with torch.no_grad():
        y: Tensor = module(windows.T)[-1] if name == "words" else module(windows)
    if name == "detector":
        return np.asarray(((y - windows).numpy() ** 2).mean((1, 2))[:, None])
    return y.numpy()


def test_the_manifest_says_windowed(exported: Exported) -> None:
    """The mode, and the window as a state whose first axis is its length."""
    manifest = exported.artifact.manifest
    (state,) = manifest.ports.states
    assert manifest.mode == "windowed"
    assert (state.name, state.shape[:2]) == ("window", ["B", N])
    assert state.dtype == manifest.ports.x.dtype
    assert manifest.ports.x.ids == (12 if manifest.name == "words" else None)
    assert exported.artifact.golden().x.shape[1] > N


def test_the_variants_of_each_are_written_or_said_to_be_left_out(exported: Exported) -> None:
    """All five, but where a kind of int8 finds nothing to quantize."""
    manifest = exported.artifact.manifest
    left_out = {entry.layer for entry in manifest.lowering if entry.road == "not written"}
    assert left_out == LEFT_OUT[manifest.name]
    assert set(manifest.variants) == set(ALL_VARIANTS) - left_out
    assert all(p.passed for v in manifest.variants.values() for p in v.parity)


def test_every_variant_gives_the_modules_answer_on_the_last_n_rows(exported: Exported) -> None:
    """From the first step on, to the tolerance that its parity states."""
    artifact = exported.artifact
    x = input_of(exported)[:, :60]
    wanted = answers(artifact.manifest.name, x[0])
    for variant, entry in artifact.manifest.variants.items():
        y, _ = Runtime(artifact, variant).run(x, artifact.initial)
        allowed = entry.parity[0].tolerance
        np.testing.assert_allclose(y[0], wanted, atol=allowed.atol, rtol=allowed.rtol)
        assert ("int8" in variant) == (np.abs(y[0] - wanted).max() > 1e-4), variant


def test_any_cut_into_chunks_gives_the_same_bits(exported: Exported) -> None:
    """Whole, one by one, and at random: the same y, and the same window at the end."""
    artifact = exported.artifact
    x = input_of(exported)[:, :40]
    rng = np.random.default_rng(0)
    for variant in artifact.manifest.variants:
        runtime = Runtime(artifact, variant)
        whole, final = runtime.run(x, artifact.initial)
        np.testing.assert_array_equal(final["window"], x[:, -N:])
        cuts = [list(range(41)), [0, *sorted(rng.choice(39, 6, replace=False) + 1), 40]]
        for cut in cuts:
            state, ys = artifact.initial, []
            for start, stop in itertools.pairwise(cut):
                y, state = runtime.run(np.ascontiguousarray(x[:, start:stop]), state)
                ys.append(y)
            assert same_bits(np.concatenate(ys, axis=1), whole), variant
            assert same_bits(state["window"], final["window"]), variant


def test_a_row_in_a_batch_gives_what_it_gives_alone(exported: Exported) -> None:
    """Rows of any length side by side, each bit for bit as alone; padding is 0."""
    artifact = exported.artifact
    all_x = input_of(exported)[0]
    rng = np.random.default_rng(1)
    for variant in artifact.manifest.variants:
        runtime = Runtime(artifact, variant)
        starts = rng.integers(N, 380, 9)
        x = np.stack([all_x[s : s + 6] for s in starts])
        state: State = {"window": np.stack([all_x[s - N : s] for s in starts])}
        if x.dtype.kind == "f":
            x[4] *= 1e3
        lengths = rng.integers(1, 7, len(x))
        y, new = runtime.run(x, state, lengths)
        for b, length in enumerate(lengths):
            row = {"window": state["window"][b : b + 1]}
            alone, alone_state = runtime.run(x[b : b + 1, :length], row)
            assert same_bits(y[b : b + 1, :length], alone), variant
            assert not y[b, length:].any()
            assert same_bits(new["window"][b : b + 1], alone_state["window"]), variant


def test_a_served_session_is_answered_from_its_last_n_rows(exported: Exported) -> None:
    """Raw units in, the state as bytes between the chunks, two sessions in one call."""
    artifact = exported.artifact
    name = artifact.manifest.name
    raw = example(name)
    model = Model.load(artifact.path)
    assert model.runtime.variant == "onnx-fp32"
    streams = [raw[:30], raw[100:130]]
    states = [model.initial_state] * 2
    found: list[list[Array]] = [[], []]
    for start, stop in ((0, 3), (3, 4), (4, 21), (21, 30)):
        chunks = [model.encode(stream[start:stop]) for stream in streams]
        ys, states, finite = model.run(chunks, states)
        assert finite == [True, True]
        for k, y in enumerate(ys):
            found[k].append(model.decode(y))
    for stream, ys in zip(streams, found, strict=True):
        x = artifact.manifest.pipeline.encode(stream).astype(artifact.manifest.ports.x.dtype)
        np.testing.assert_allclose(np.concatenate(ys), answers(name, x), atol=1e-5, rtol=1e-5)


def test_a_reconstructions_score_is_a_port_of_its_own(tmp_path: Path) -> None:
    """One number a step, compared with the threshold as it is; never fed back as the next x."""
    module = AnomalyDetector(1, 16).eval().requires_grad_(False)
    one = Scaling(mean=[5.0], std=[2.0])
    pipeline = Pipeline(x=one, y=one, alarm=Alarm(score="max", threshold=0.6))
    source = Source("x:y", module, "0" * 64, example("detector")[:, :1], pipeline)
    variants: tuple[VariantName, ...] = ("onnx-fp32", "onnx-int8")
    artifact = export(source, "small", tmp_path, window=N, variants=variants).artifact
    assert artifact.manifest.ports.y.shape == ["B", "T", 1]
    assert [p.case for p in artifact.variant("onnx-fp32").parity] == [
        "teacher-forced",
        "shock",
        "silence",
    ]
    spread = float(artifact.golden().y.std())
    parity = artifact.variant("onnx-int8").parity[0]
    assert parity.tolerance.atol == pytest.approx(max(0.06, 0.1 * spread), rel=0.3)
    model = Model.load(artifact.path)
    raw = example("detector")[:20, :1]
    (y,), _, _ = model.run([model.encode(raw)], [model.initial_state])
    x = torch.from_numpy(((raw - 5) / 2).astype(np.float32))[None]
    with torch.no_grad():
        wanted = (module(x[:, 13:20]) - x[:, 13:20]).abs().max()
    assert model.decode(y)[19, 0] == pytest.approx(float(wanted), abs=1e-5)


def test_a_windowed_export_is_repeated_byte_for_byte(tmp_path: Path) -> None:
    """Same module, same example, same window: the same version."""
    source = Source("x:y", trained("both-ways"), "0" * 64, example("both-ways"), Pipeline())
    first, second = (
        export(source, "small", tmp_path, window=N, variants=("onnx-int8",)).artifact.manifest
        for _ in range(2)
    )
    assert first.version == second.version
