"""What the pipeline file declares: checked against module and example, and kept in the artifact."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from export import exporter, tolerances
from export.__main__ import main
from export.cases import HORIZON, STARTS
from export.errors import ParityError, SourceError
from export.exporter import Exported
from export.source import Source, load_source
from models.char_rnn import CharRNN
from service.artifact import Artifact, find_artifacts
from service.model import Model
from service.pipeline import Pipeline

LETTERS = "abcdef .\n"
TEXT = "a bad cab.\nfed a deaf cafe ad. " * 30


def text_module() -> CharRNN:
    torch.manual_seed(0)
    return CharRNN(len(LETTERS), 4, 8, 1).eval().requires_grad_(False)


class OneHot(nn.Module):
    """A network that takes its characters as one-hot rows."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(len(LETTERS), 8, batch_first=True)
        self.fc = nn.Linear(8, len(LETTERS))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.fc(self.lstm(x)[0]))


def ids() -> np.ndarray:
    return np.array([LETTERS.index(c) for c in TEXT])


def declare(**parts: object) -> Pipeline:
    return Pipeline.model_validate(parts)


WITH_TEXT = declare(vocabulary=[*LETTERS])


def source(
    module: nn.Module | None = None,
    example: np.ndarray | None = None,
    pipeline: Pipeline = WITH_TEXT,
) -> Source:
    module = (module or text_module()).eval().requires_grad_(False)
    example = ids() if example is None else example
    return Source("tests:text", module, "0" * 64, example, pipeline)


def export(source: Source, name: str, out: Path, **options: Any) -> Exported:
    """The real one, over fewer steps than it takes by itself."""
    return exporter.export(source, name, out, steps=2_000, **options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    out = tmp_path_factory.mktemp("out")
    return export(source(), "text", out, variants=("onnx-fp32", "onnx-int8-rowwise"))


def test_a_model_of_text_is_proven_on_what_it_writes(exported: Exported) -> None:
    """Each variant reads the reference's own greedy text, from many points of the example."""
    names = [(m.variant, m.case.name) for m in exported.measured]
    assert names == [
        (variant, case)
        for variant in ("onnx-fp32", "onnx-int8-rowwise")
        for case in ("teacher-forced", "shock", "silence", "generated")
    ]
    case = exported.measured[3].case
    assert case.x.shape == (STARTS, HORIZON)
    assert np.array_equal(case.x[:, 1:], case.y.argmax(axis=-1)[:, :-1])


def test_the_generated_text_is_the_modules_own(exported: Exported) -> None:
    """What the module writes when it has read the example up to there."""
    case, long = exported.measured[3].case, exported.measured[0].case.x[0]
    start = int(np.linspace(200, len(long) - 1, STARTS).astype(int)[3])
    assert case.x[3, 0] == long[start]
    module = text_module()
    read = torch.from_numpy(np.concatenate([long[:start], case.x[3]]))[None]
    y, _ = module(read, module.init_hidden(1))
    assert np.allclose(case.y[3], y[0, start:], atol=1e-5)


def test_the_served_model_continues_a_text(exported: Exported) -> None:
    """The vocabulary goes with the artifact."""
    model = Model.load(exported.artifact.path)
    assert model.row_shape.vocabulary is not None
    assert model.row_shape.vocabulary.ids_of("cab.").tolist() == [2, 0, 1, 7]
    assert model.reader.fields == ("y", "text")


def test_a_variant_that_drifts_on_generated_text_is_not_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The case counts like any other."""
    monkeypatch.setattr(tolerances, "INT8_SHARE", 1e-9)
    with pytest.raises(ParityError, match=r"fails on .*`generated`"):
        export(source(), "text", tmp_path, variants=("onnx-int8-rowwise",))


def test_one_hot_characters_are_text_too(tmp_path: Path) -> None:
    """The example is rows, the client's request may be text."""
    torch.manual_seed(0)
    one_hot = source(OneHot(), np.eye(len(LETTERS), dtype=np.float32)[ids()])
    done = export(one_hot, "one-hot", tmp_path, variants=("onnx-fp32",))
    case = done.measured[3].case
    assert case.name == "generated"
    assert case.x.shape == (STARTS, HORIZON, len(LETTERS))
    assert np.array_equal(case.x[:, 1:].argmax(axis=-1), case.y.argmax(axis=-1)[:, :-1])
    model = Model.load(done.artifact.path)
    assert np.array_equal(model.encode(np.array([2, 0])), np.eye(len(LETTERS))[[2, 0]])


def test_a_score_is_not_fed_back(tmp_path: Path) -> None:
    """It has the shape of x, and is none."""

    class Score(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(1, 4, batch_first=True)
            self.fc = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.fc(self.lstm(x)[0]))

    wave = np.sin(np.arange(300) * 0.1).astype(np.float32)[:, None]
    alarm = declare(alarm={"score": "y", "threshold": 0.5})
    done = export(source(Score(), wave, alarm), "score", tmp_path, variants=("onnx-fp32",))
    assert [m.case.name for m in done.measured] == ["teacher-forced", "shock", "silence"]
    assert Model.load(done.artifact.path).reader.fields == ("y", "alarm")


@pytest.mark.parametrize(
    ("pipeline", "example", "said"),
    [
        (declare(vocabulary=[*LETTERS, "z"]), ids(), "10 tokens, the module's x is int64 .* 9 ids"),
        (declare(vocabulary=[*LETTERS[:-1]]), ids() % 8, "8 tokens, the module's x is int64"),
        (declare(vocabulary=["a", "b"]), ids(), "ids from 0 to 8, .* 2 tokens: 0 to 1"),
        (declare(classes=["a", "b"]), ids(), "2 `classes`, the module's y has shape"),
        (declare(alarm={"score": "y", "threshold": 1}), ids(), "wants one score a step"),
    ],
)
def test_a_pipeline_that_does_not_fit_is_refused(
    tmp_path: Path, pipeline: Pipeline, example: np.ndarray, said: str
) -> None:
    """Both sizes, before anything is written."""
    with pytest.raises(SourceError, match=said):
        export(source(None, example, pipeline), "text", tmp_path, variants=("onnx-fp32",))
    assert find_artifacts(tmp_path) == []


# Text as the example ----------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    names = ("weights.safetensors", "example.txt", "pipeline.json")
    paths = {name: tmp_path / name for name in names}
    save_file(text_module().state_dict(), paths["weights.safetensors"])
    paths["example.txt"].write_bytes(TEXT.encode())
    paths["pipeline.json"].write_text(json.dumps({"vocabulary": [*LETTERS]}))
    return paths


ARGUMENTS = {"vocab_size": len(LETTERS), "embed_size": 4, "hidden_size": 8, "num_layers": 1}


def load(files: dict[str, Path], pipeline: bool = True) -> Source:
    return load_source(
        "models.char_rnn:CharRNN",
        files["weights.safetensors"],
        files["example.txt"],
        files["pipeline.json"] if pipeline else None,
        ARGUMENTS,
    )


def test_a_text_file_is_an_example_as_its_ids_are(files: dict[str, Path]) -> None:
    """Character by character, ends of lines as they stand."""
    loaded = load(files)
    assert np.array_equal(loaded.example, ids())
    assert loaded.example_sha256 == source().example_sha256


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a bad cat", 'holds "t" at position 8'),
        (b"a\r\n", r'holds "\\r" at position 1'),
        (b"a\xff", "cannot be read as UTF-8 text"),
        (b"", "is empty"),
    ],
)
def test_a_text_that_the_vocabulary_has_not_is_refused(
    files: dict[str, Path], content: bytes, said: str
) -> None:
    """With the place."""
    files["example.txt"].write_bytes(content)
    with pytest.raises(SourceError, match=rf"example .*example.txt.*{said}"):
        load(files)


def test_a_text_needs_a_vocabulary(files: dict[str, Path]) -> None:
    """Or it means nothing."""
    with pytest.raises(SourceError, match="must declare its `vocabulary`"):
        load(files, pipeline=False)
    files["example.txt"].unlink()
    with pytest.raises(SourceError, match="cannot be read as UTF-8 text"):
        load(files)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"vocabulary": ["a", "a"]}', '`vocabulary`: expected each once, got "a" again'),
        ('{"choose": {"method": "sample"}}', "`file`: `choose` has nothing to choose from"),
        ('{"alarm": {"threshold": 1}}', "`alarm.score`: Field required"),
        ('{"clases": []}', "`clases`: Extra inputs"),
    ],
)
def test_a_wrong_part_is_refused_with_the_form_of_all(
    files: dict[str, Path], text: str, said: str
) -> None:
    """The place of the fault, then what may stand in the file."""
    files["pipeline.json"].write_text(text)
    with pytest.raises(SourceError, match=rf"{said}.*\"classes\": \[\"calm\", ..\].*\"top_k\": 40"):
        load(files)


def test_the_command_takes_text(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a .txt file to an artifact that reads and writes text."""
    command = ["models.char_rnn:CharRNN", "--init", json.dumps(ARGUMENTS), "--name", "text"]
    for flag, name in (("weights", "weights.safetensors"), ("example", "example.txt")):
        command += [f"--{flag}", str(files[name])]
    command += ["--pipeline", str(files["pipeline.json"]), "--out", str(tmp_path / "out")]
    assert main([*command, "--variants", "onnx-fp32", "--no-store"]) == 0
    assert "generated" in capsys.readouterr().out
    (path,) = find_artifacts(tmp_path / "out")
    manifest = Artifact.load(path).manifest
    assert (manifest.pipeline, manifest.ports.x.ids) == (WITH_TEXT, len(LETTERS))
