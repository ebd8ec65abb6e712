"""All of the artifact, or nothing."""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import Tensor, nn

from export import exporter, tolerances
from export.__main__ import main
from export.errors import CallError, CausalityError, LoweringError, ParityError, SourceError
from export.exporter import ALL_VARIANTS, Exported
from export.graphs.graph_builder import all_nodes
from export.graphs.stock import QUANTIZED_OPS
from export.isolation import Isolation
from export.parity import Gate
from export.source import Source
from models.classifier import BidirectionalClassifier
from models.predictors import NormLSTM
from models.zoo import sine_cell
from service.artifact import Artifact, find_artifacts
from service.errors import ArtifactError, ShapeError
from service.layout import State
from service.manifest import Tolerance, VariantName
from service.model import Model
from service.pipeline import Pipeline, Scaling
from service.runtime import Runtime
from tests.export import gru_spellings, lstm_spellings, short

STEPS = 300
PROVEN_STEPS = 700  # a climate is measured from 550 steps on
SCALING = Scaling(mean=[5.0], std=[2.0])


def example(steps: int = STEPS) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(steps) * 0.1
    return np.asarray((5 + 2 * (np.sin(np.arange(steps) * 0.1) + noise))[:, None], np.float32)


def export(source: Source, name: str, out: Path, **options: Any) -> Exported:
    """The real one, over fewer steps than it takes by itself."""
    return exporter.export(source, name, out, steps=PROVEN_STEPS, **options)


def zeros(artifact: Artifact, batch: int) -> State:
    return {n: np.repeat(v, batch, axis=0) for n, v in artifact.initial.items()}


class Last(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)[0]
        return out[:, -1]


def source(module: nn.Module | None = None) -> Source:
    torch.manual_seed(0)
    chosen = (module or sine_cell()).eval().requires_grad_(False)
    return Source(
        "models.zoo:sine_cell", chosen, "0" * 64, example(), Pipeline(x=SCALING, y=SCALING)
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A small untrained cell, all five variants."""
    return export(source(), "small", tmp_path_factory.mktemp("out"))


def test_the_artifact_holds_what_its_manifest_says(exported: Exported) -> None:
    """NAME/VERSION, five variants with sha256 and size, and no file besides those named."""
    artifact = exported.artifact
    assert artifact.path.parts[-2:] == ("small", artifact.manifest.version)
    assert tuple(artifact.manifest.variants) == ALL_VARIANTS
    named = {"manifest.json", "parity.json", "parity.html", "parity.md"}
    named.add(artifact.manifest.golden.file)
    for variant in artifact.manifest.variants.values():
        named |= {variant.file} | ({variant.step.file} if variant.step else set())
        assert (artifact.path / variant.file).stat().st_size == variant.size
        assert [(p.case, p.passed) for p in variant.parity] == [
            ("teacher-forced", True),
            ("shock", True),
            ("silence", True),
            ("closed-loop", True),
        ]
        assert {p.steps for p in variant.parity} == {PROVEN_STEPS}
    assert {file.name for file in artifact.path.iterdir()} == named


def test_batch_is_axis_0_of_every_port(exported: Exported) -> None:
    """The ONNX files declare the manifest's ports, by name, dtype and shape."""
    artifact = exported.artifact
    ports = artifact.manifest.ports
    for name in ("onnx-fp32", "onnx-int8", "onnx-int8-rowwise"):
        graph = onnx.load(artifact.path / artifact.variant(name).file).graph
        shapes = {
            v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in (*graph.input, *graph.output)
        }
        wanted = {"x": ports.x.shape, "y": ports.y.shape, "lengths": ["B"]}
        for state in ports.states:
            wanted |= {state.input: state.shape, state.output: state.shape}
        assert shapes == wanted


def test_the_golden_vectors_are_the_references_own(exported: Exported) -> None:
    """x in the model's units, y and the final states as the eager module gives them."""
    tensors = load_file(exported.artifact.path / "golden.safetensors")
    module = source().module
    y, (h, c) = module(torch.from_numpy(tensors["x"]))
    np.testing.assert_array_equal(tensors["y"], y)
    np.testing.assert_array_equal(tensors["h_n"], h)
    np.testing.assert_array_equal(tensors["c_n"], c)
    scaled = (example()[:, 0] - 5) / 2
    np.testing.assert_allclose(tensors["x"][0, :, 0], scaled[:64], atol=1e-6)


def test_the_same_input_gives_the_same_version_and_bytes(
    exported: Exported, tmp_path: Path
) -> None:
    """Same module, same example, same bytes; another weight, another version."""
    again = export(source(), "small", tmp_path)
    for file in exported.artifact.path.iterdir():
        again_file = again.artifact.path / file.name
        if file.suffix in (".json", ".html"):
            assert again_file.read_text() == file.read_text()
        assert again_file.read_bytes() == file.read_bytes(), file.name
    changed = source()
    with torch.no_grad():
        changed.module.get_parameter("head.bias").add_(0.25)
    other = export(changed, "small", tmp_path, variants=("onnx-fp32",))
    assert other.artifact.manifest.version != again.artifact.manifest.version
    assert len(find_artifacts(tmp_path)) == 2


def test_a_second_export_leaves_the_first_as_it_is(tmp_path: Path) -> None:
    """The same version is already there: its files are not touched."""
    first = short.export(source(), "small", tmp_path, variants=("onnx-fp32",)).artifact
    stamp = (first.path / "manifest.json").stat().st_mtime_ns
    second = short.export(source(), "small", tmp_path, variants=("onnx-fp32",)).artifact
    assert second.path == first.path
    assert (first.path / "manifest.json").stat().st_mtime_ns == stamp
    assert [p.name for p in first.path.parent.iterdir()] == [first.path.name]


def test_a_short_example_is_cycled_and_the_report_says_so(exported: Exported) -> None:
    """300 steps are cycled to as many as were asked for."""
    report = json.loads((exported.artifact.path / "parity.json").read_text())
    first = report["measured"][0]
    assert first["example_cycled"]
    assert first["steps"] == len(first["error_by_step"]) == PROVEN_STEPS
    assert max(first["error_by_step"]) == pytest.approx(first["max_error"], rel=1e-3)
    assert "was cycled" in (exported.artifact.path / "parity.html").read_text()


def test_stock_int8_is_not_isolated_even_if_no_trial_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One scale for the whole batch is there, whatever the trials happened to try."""
    monkeypatch.setattr("export.exporter.measure_isolation", lambda *given: Isolation(()))
    assert Isolation(()).isolated
    manifest = short.export(source(), "small", tmp_path).artifact.manifest
    isolated = {name: variant.isolated for name, variant in manifest.variants.items()}
    assert isolated == {name: "int8" not in name or "rowwise" in name for name in ALL_VARIANTS}


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")  # torch's, of oneDNN
@pytest.mark.parametrize(
    "module",
    [
        nn.LSTM(1, 24, proj_size=16, batch_first=True),
    ],
    ids=["projected"],
)
def test_another_recurrence_has_all_five_variants_too(module: nn.Module, tmp_path: Path) -> None:
    """Each proven; rowwise int8 holds int8 products, and is isolated."""
    torch.manual_seed(0)
    plain = Source("x:y", module.eval(), "0" * 64, example(), Pipeline(x=SCALING))
    artifact = short.export(plain, "small", tmp_path).artifact
    manifest = artifact.manifest
    assert tuple(manifest.variants) == ALL_VARIANTS
    assert all(p.passed for v in manifest.variants.values() for p in v.parity)
    assert {entry.road for entry in manifest.lowering} == {"general"}
    rowwise_variant = artifact.variant("onnx-int8-rowwise")
    assert rowwise_variant.isolated
    assert rowwise_variant.step is not None
    graph = onnx.load(artifact.path / rowwise_variant.step.file).graph
    assert "MatMulIntegerToFloat" in {node.op_type for node in graph.node}


CELLS = [
    (lambda: nn.GRU(3, 24, 2, batch_first=True), gru_spellings.AFTER, "GRU", "Scan"),
    (gru_spellings.CatReset, gru_spellings.BEFORE, "GRU", "Scan"),
    (lambda: nn.RNN(3, 24, batch_first=True), "rnn (tanh)", "GRU", "Scan"),
    (
        lstm_spellings.CoupledPeephole,
        "lstm (peepholes; coupled i = 1 - f)",
        "LSTM",
        "DynamicQuantizeLSTM",
    ),
    (
        lambda: lstm_spellings.Activated("keras"),
        "lstm (f hard sigmoid, g tanh, h tanh)",
        "LSTM",
        "DynamicQuantizeLSTM",
    ),
]


@pytest.mark.parametrize(
    ("cell", "road", "node", "stock"), CELLS, ids=["gru", "cat gru", "rnn", "peepholes", "hard"]
)
def test_every_kind_of_cell_has_its_node_and_all_five_variants(
    cell: Callable[[], nn.Module], road: str, node: str, stock: str, tmp_path: Path
) -> None:
    """Isolated as float and as rowwise int8; no int8 variant is a float one in disguise."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        for spelling in (lstm_spellings, gru_spellings):
            patch.setattr(spelling, "HIDDEN", 24)
        module = cell().eval().requires_grad_(False)
    x = np.random.default_rng(0).standard_normal((STEPS, 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tolerances, "LEAST_SPREAD", 0.5)  # untrained: a shock is far from all it saw
        plain = Source("x:y", module, "0" * 64, x, Pipeline())
        artifact = short.export(plain, "small", tmp_path).artifact
    manifest = artifact.manifest
    assert tuple(manifest.variants) == ALL_VARIANTS
    assert {entry.road for entry in manifest.lowering} == {road}
    h = next(port for port in manifest.ports.states if port.name == "h")
    assert h.bound == 1.0
    operators = {
        name: {n.op_type for n in all_nodes(onnx.load(artifact.path / variant.file).graph)}
        for name, variant in manifest.variants.items()
        if name.startswith("onnx")
    }
    assert node in operators["onnx-fp32"]
    assert not operators["onnx-fp32"] & {"Scan", "RNN"}
    assert stock in operators["onnx-int8"]
    assert operators["onnx-int8"] & {*QUANTIZED_OPS}
    assert not operators["onnx-int8"] & {"LSTM", "GRU", "MatMul"}
    assert "MatMulIntegerToFloat" in operators["onnx-int8-rowwise"]
    assert artifact.variant("onnx-fp32").isolated
    assert artifact.variant("onnx-int8-rowwise").isolated
    with zipfile.ZipFile(artifact.path / artifact.variant("torchscript-int8").file) as archive:
        code = "".join(archive.read(n).decode() for n in archive.namelist() if n.endswith(".py"))
    assert "quantized" in code
    assert "torch.gru(" not in code
    assert "torch.linear(" not in code


class Tokens(nn.Module):
    """An embedding, a recurrent layer, logits."""

    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.layer = layer(8, 24, batch_first=True)
        self.head = nn.Linear(24, 20)

    def forward(self, x: Tensor, state: object = None) -> object:
        out, state = self.layer(self.embedding(x), state)
        return self.head(out), state


@pytest.mark.parametrize(("layer", "road"), [(nn.LSTM, "lstm"), (nn.GRU, gru_spellings.AFTER)])
def test_token_ids_go_through_an_embedding(
    layer: type[nn.LSTM] | type[nn.GRU], road: str, tmp_path: Path
) -> None:
    """x is (B, T) int64, its port says how many ids there are, all variants are proven."""
    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(0, 20, 300)
    plain = Source("x:y", Tokens(layer).eval(), "0" * 64, ids, Pipeline())
    artifact = short.export(plain, "small", tmp_path).artifact
    port = artifact.manifest.ports.x
    assert (port.dtype, port.shape, port.ids) == ("int64", ["B", "T"], 20)
    assert tuple(artifact.manifest.variants) == ALL_VARIANTS
    assert {entry.road for entry in artifact.manifest.lowering} == {road}
    assert artifact.variant("onnx-int8-rowwise").isolated
    np.testing.assert_array_equal(artifact.golden().x[0], ids[:64])
    model = Model.load(artifact.path)
    for wrong in (20, -1):
        with pytest.raises(ShapeError, match=rf"holds the id {wrong}, expected 0 to 19"):
            model.encode(np.array([0, wrong]))


def test_an_embedding_of_other_numbers_than_x_is_refused(tmp_path: Path) -> None:
    """A shifted id is no table look-up of x."""

    class Shifted(Tokens):
        def forward(self, x: Tensor, state: object = None) -> object:
            return super().forward((x + 1) % 20, state)

    ids = np.random.default_rng(0).integers(0, 20, 300)
    plain = Source("x:y", Shifted(nn.LSTM).eval(), "0" * 64, ids, Pipeline())
    with pytest.raises(LoweringError, match=r"something else than x|not one that lowering knows"):
        short.export(plain, "small", tmp_path)


def test_an_int8_variant_without_int8_is_not_written(tmp_path: Path) -> None:
    """A narrow relu RNN, without a bounded value: no rowwise file, and the manifest says why."""
    torch.manual_seed(0)
    module = nn.RNN(1, 12, nonlinearity="relu", batch_first=True).eval()
    plain = Source("x:y", module, "0" * 64, example(), Pipeline(x=SCALING))
    manifest = short.export(plain, "small", tmp_path).artifact.manifest
    assert "onnx-int8-rowwise" not in manifest.variants
    assert "onnx-int8" in manifest.variants
    (entry,) = [e for e in manifest.lowering if e.road == "not written"]
    assert entry.layer == "onnx-int8-rowwise"
    assert "bounded by its mathematics" in entry.why


DRIFT = r"onnx-int8-rowwise drifts to \d\.\de[-+]\d+ at step \d+ of 300 .*teacher-forced"


def test_a_variant_that_was_asked_for_and_drifts_is_refused_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    """int8 held to what float rounds to: the message says which, where, by how much."""
    wanted: list[VariantName] = ["onnx-fp32", "onnx-int8-rowwise"]
    with pytest.raises(ParityError, match=f"{DRIFT}.*not written"):
        short.export(source(), "small", tmp_path / "out", variants=wanted, max_drift=1e-6)
    assert not list((tmp_path / "out").rglob("*"))


def test_an_int8_variant_that_drifts_is_left_out_unless_it_was_asked_for(tmp_path: Path) -> None:
    """The others are written; the manifest says what drifted, and no file of it remains."""
    artifact = short.export(source(), "small", tmp_path / "out", max_drift=1e-6).artifact
    int8 = {name for name in ALL_VARIANTS if "int8" in name}
    assert {*ALL_VARIANTS} - {*artifact.manifest.variants} == int8
    gone = {e.layer: e.why for e in artifact.manifest.lowering if e.road == "not written"}
    assert gone.keys() == int8
    assert re.match(DRIFT, gone["onnx-int8-rowwise"])
    assert gone["onnx-int8-rowwise"].endswith("no layer can be quantized at this limit")
    assert not list(artifact.path.glob("*int8*"))


def test_a_float_variant_that_drifts_stops_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for or not: it would be another model."""
    monkeypatch.setattr(tolerances, "FLOAT", Tolerance(atol=1e-12))
    monkeypatch.setattr(tolerances, "OWN_ROUNDING", 0)  # nor what rounding does to the module
    monkeypatch.setattr(Gate, "check_causal", lambda self: None)
    with pytest.raises(ParityError, match=r"onnx-fp32 drifts to .*not written"):
        short.export(source(), "small", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*"))


def test_a_tolerance_of_the_users_own_decides(tmp_path: Path) -> None:
    """A stricter one refuses what the default lets pass."""
    with pytest.raises(ParityError, match=r"onnx-int8 drifts to .*atol 1e-06"):
        short.export(source(), "small", tmp_path, tolerances={"onnx-int8": 1e-6})
    assert not list(tmp_path.rglob("*"))


class Attention(nn.Module):
    """Softmax attention over all time steps."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 8, batch_first=True)
        self.score = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lstm(x)[0]
        weights = torch.softmax(self.score(out), dim=1)
        return (weights * out).sum(1, dtype=torch.float32)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.LSTM(1, 8, batch_first=True, bidirectional=True), "`the module` is bidirectional"),
        (BidirectionalClassifier(1, 8, 3), "`lstm` is bidirectional: it looks ahead"),
    ],
    ids=["bare", "classifier"],
)
def test_a_module_that_looks_ahead_is_refused(module: nn.Module, said: str, tmp_path: Path) -> None:
    """It answers otherwise in chunks than whole; the layer is named where it is known."""
    torch.manual_seed(0)
    plain = Source("x:y", module.eval(), "0" * 64, example(), Pipeline())
    with pytest.raises(CausalityError, match=rf"another y in chunks.*worst at step \d+.*{said}"):
        short.export(plain, "small", tmp_path)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("module", "roads"),
    [
        (lambda: NormLSTM(1, 24, 1), {"lstm"}),
        (
            lambda: nn.Sequential(Last(nn.GRU(1, 24, batch_first=True)), nn.Softmax(1)),
            {"gru (reset after the product)"},
        ),
        (Attention, {"lstm", "general"}),
    ],
    ids=["batch norm", "gru with softmax", "attention"],
)
def test_a_module_that_hides_its_state_is_exported(
    module: Callable[[], nn.Module], roads: set[str], tmp_path: Path
) -> None:
    """`forward(x) -> y` of the last step: its states become ports, and all variants are proven."""
    torch.manual_seed(0)
    trained = module().eval()
    plain = Source("x:y", trained, "0" * 64, example(), Pipeline(x=SCALING))
    artifact = short.export(plain, "small", tmp_path).artifact
    manifest = artifact.manifest
    gone = {entry.layer: entry.why for entry in manifest.lowering if entry.road == "not written"}
    assert {*manifest.variants, *gone} == {*ALL_VARIANTS}
    assert all("int8" in variant and "drifts to" in why for variant, why in gone.items())
    assert len(gone) <= 1
    assert {entry.road for entry in manifest.lowering} - {"not written"} == roads
    assert manifest.provenance.call.startswith("X -> y, with its state h")
    x = artifact.golden().x
    y, _ = Runtime(artifact, "onnx-fp32").run(x, zeros(artifact, len(x)))
    for t in (1, 20, 64):
        with torch.no_grad():
            wanted = trained(torch.from_numpy(x[:, :t]))
        np.testing.assert_allclose(y[:, t - 1], wanted, atol=1e-5)


def test_a_module_that_counts_its_calls_is_refused(tmp_path: Path) -> None:
    """One number for all rows is nobody's state: what it is called is said, and its shape."""

    class Hiding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = sine_cell()
            self.seen = torch.zeros(())

        def forward(self, x: Tensor, state: object = None) -> object:
            self.seen = self.seen + 1
            y, state = self.inner(x, state)
            return y + self.seen, state

    with pytest.raises(CallError, match=r"`seen` .* it is one value for all rows"):
        short.export(source(Hiding()), "small", tmp_path)


def test_the_pipeline_must_fit_the_example_and_the_module(tmp_path: Path) -> None:
    """A scaling of two features for a module of one."""
    two = Scaling(mean=[0, 0], std=[1, 1])
    wrong = Source("x:y", source().module, "0" * 64, example(), Pipeline(x=two))
    with pytest.raises(SourceError, match="example has 1 features, the pipeline's `x` has 2"):
        short.export(wrong, "small", tmp_path)
    wrong = Source("x:y", source().module, "0" * 64, example(), Pipeline(y=two))
    with pytest.raises(SourceError, match="pipeline's `y` has 2 features"):
        short.export(wrong, "small", tmp_path)


def test_working_folders_of_killed_exports_are_swept(tmp_path: Path) -> None:
    """A folder whose process is gone is removed, and never counts as an artifact."""
    dead = tmp_path / "small" / ".export-999999999-x"
    dead.mkdir(parents=True)
    (dead / "manifest.json").write_text("{}")
    assert find_artifacts(tmp_path) == []
    short.export(source(), "small", tmp_path, variants=("onnx-fp32",))
    assert not dead.exists()


@pytest.mark.parametrize("file", ["onnx-int8.onnx", "golden.safetensors"])
def test_a_changed_file_is_found_when_the_artifact_is_loaded(
    exported: Exported, tmp_path: Path, file: str
) -> None:
    """One flipped byte, and the message says which file and both hashes."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in exported.artifact.path.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content = bytearray((copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"says sha256 \w+\.\.\. for .*{file}.*export the mod"):
        Artifact.load(copy)


def test_the_command_line_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0, the table and the path; then exit 1 and one line for weights that do not fit."""
    torch.manual_seed(0)
    save_file(sine_cell().state_dict(), tmp_path / "w.safetensors")
    np.save(tmp_path / "x.npy", example())
    (tmp_path / "p.json").write_text(Pipeline(x=SCALING, y=SCALING).model_dump_json())
    common = ["--weights", str(tmp_path / "w.safetensors"), "--example", str(tmp_path / "x.npy")]
    common += ["--pipeline", str(tmp_path / "p.json"), "--name", "cli", "--no-store"]
    common += ["--out", str(tmp_path / "out"), "--variants", "onnx-fp32,onnx-int8-rowwise"]
    common += ["--steps", str(PROVEN_STEPS)]
    assert main(["models.zoo:sine_cell", *common]) == 0
    (path,) = find_artifacts(tmp_path / "out")
    out = capsys.readouterr().out
    assert f"wrote {path}" in out.replace("\n", "")
    assert out.count("pass") == 8
    assert Artifact.load(path).manifest.default_variant == "onnx-fp32"
    assert main(["models.zoo:series_lstm", *common]) == 1
    error = capsys.readouterr().err
    assert "does not fit the module" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--variants", "onnx-fp16"], "`onnx-fp16` is none of"),
        (["--tolerance", "onnx-int8"], "expected VARIANT=ATOL"),
        (["--tolerance", "onnx-int8=-1"], "expected VARIANT=ATOL"),
        (["--steps", "99"], "`99`, expected a number of steps, 100 to 1000000"),
        (["--steps", "1e4"], "`1e4`, expected a number of steps"),
        (["--worsening", "-1"], "`-1`, expected a percentage as in 5"),
    ],
)
def test_a_wrong_flag_is_a_usage_error(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, as every command line tool."""
    with pytest.raises(SystemExit, match="2"):
        main(["m:f", "--weights", "w", "--example", "e", "--name", "n", *flags])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--name", "Bad Name"], "got the name `Bad Name`"),
        (["--init", "{"], "--init `{` is not JSON"),
        (["--init", "[]"], "not an object of keywords"),
    ],
)
def test_a_wrong_name_or_init_is_refused(
    tmp_path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that quotes what came."""
    save_file(sine_cell().state_dict(), tmp_path / "w.safetensors")
    np.save(tmp_path / "x.npy", example())
    common = ["--weights", str(tmp_path / "w.safetensors"), "--example", str(tmp_path / "x.npy")]
    common += ["--name", "good", "--out", str(tmp_path / "out")]
    assert main(["models.zoo:sine_cell", *common, *flags]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
