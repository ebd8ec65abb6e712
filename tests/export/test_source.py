"""What the user brings is checked before anything runs."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from export.errors import SourceError
from export.source import Source, load_source
from models.zoo import sine_cell

SPEC = "models.zoo:sine_cell"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Good weights and a good example."""
    torch.manual_seed(0)
    weights, example = tmp_path / "weights.safetensors", tmp_path / "example.npy"
    save_file(sine_cell().state_dict(), weights)
    np.save(example, np.sin(np.arange(100, dtype=np.float32))[:, None])
    return {"weights": weights, "example": example}


def load(files: dict[str, Path], spec: str = SPEC, **changed: Path | None) -> Source:
    given: dict[str, Path | None] = {**files, **changed}
    example = given["example"]
    assert example is not None
    return load_source(spec, given["weights"], example, given.get("pipeline"))


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
def test_checkpoints_as_training_scripts_save_them(
    files: dict[str, Path], tmp_path: Path, suffix: str, key: str | None
) -> None:
    """A bare state_dict, or one inside a checkpoint, gives the same module."""
    state = {name: value + 1 for name, value in sine_cell().state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    torch.save({key: state, "epoch": 3} if key else state, path)
    module = load(files, weights=path).module
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name])
    assert not module.training


def test_a_module_in_a_file_of_its_own(files: dict[str, Path], tmp_path: Path) -> None:
    """MODULE may be a path, and FACTORY may take arguments."""
    code = "from models.networks import CellForecaster\n\ndef build(hidden_size):\n"
    code += "    return CellForecaster(1, hidden_size, 1)\n"
    (tmp_path / "mynet.py").write_text(code)
    spec = f"{tmp_path / 'mynet.py'}:build"
    arguments = {"hidden_size": 32}
    loaded = load_source(spec, files["weights"], files["example"], arguments=arguments)
    assert loaded.module.state_dict()["cell.W_f"].shape == (32, 33)
    with pytest.raises(SourceError, match=r"could not be called with \{\}.*--init"):
        load(files, spec)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("models.zoo", "expected MODULE:FACTORY"),
        ("nowhere:build", "cannot import `nowhere`"),
        ("models.zoo:nothing", "has no `nothing`"),
        ("models.zoo:__doc__", "is a str, expected a class or function"),
        ("builtins:dict", "returned dict, expected a torch nn.Module"),
    ],
)
def test_a_wrong_module_is_refused(files: dict[str, Path], spec: str, said: str) -> None:
    """The message quotes what came and says what to name instead."""
    with pytest.raises(SourceError, match=said):
        load(files, spec)


def test_missing_weights(files: dict[str, Path], tmp_path: Path) -> None:
    """A path that is not there is said so."""
    with pytest.raises(SourceError, match=r"none\.pt does not exist; train first"):
        load(files, weights=tmp_path / "none.pt")


def test_weights_that_do_not_fit_name_each_tensor(files: dict[str, Path], tmp_path: Path) -> None:
    """Missing, unknown and misshapen tensors are listed with both shapes."""
    state = sine_cell().state_dict()
    state["cell.W_f"] = torch.zeros(16, 17)
    state["extra"] = state.pop("head.bias")
    save_file(state, tmp_path / "other.safetensors")
    said = r"head\.bias is missing; extra is unknown.*W_f has shape \(16, 17\).*\(32, 33\).*--init"
    with pytest.raises(SourceError, match=said):
        load(files, weights=tmp_path / "other.safetensors")


def test_weights_with_nan_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    """A diverged training is not exported."""
    state = sine_cell().state_dict()
    state["cell.W_f"] = state["cell.W_f"] * torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(SourceError, match=r"NaN or infinity in cell\.W_f; train again"):
        load(files, weights=tmp_path / "nan.safetensors")


def test_a_pickle_with_code_is_refused_with_the_way_out(
    files: dict[str, Path], tmp_path: Path
) -> None:
    """A whole pickled module is not run; the message says how to save weights instead."""
    torch.save(sine_cell(), tmp_path / "whole.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Path("x"), protocol=2))
    with pytest.raises(SourceError, match=r"needs code to load.*state_dict"):
        load(files, weights=tmp_path / "whole.pt")
    with pytest.raises(SourceError, match=r"needs code to load|not a weights file"):
        load(files, weights=tmp_path / "plain.pt")


@pytest.mark.parametrize("name", ["broken.pt", "broken.safetensors"])
def test_a_broken_file_is_refused(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Bytes that are no weights file at all."""
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(SourceError, match=r"not a weights file|needs code"):
        load(files, weights=tmp_path / name)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.array([["a"]]), "does not hold numbers"),
        (np.zeros((0, 1)), r"shape \(0, 1\)"),
        (np.array([[np.nan]]), "NaN or infinity"),
        (np.array([[object()]]), "not a .npy file of numbers"),
    ],
)
def test_a_wrong_example_is_refused(
    files: dict[str, Path], tmp_path: Path, value: np.ndarray, said: str
) -> None:
    """Only finite numbers, and never a pickle."""
    np.save(tmp_path / "example.npy", value, allow_pickle=True)
    with pytest.raises(SourceError, match=said):
        load(files, example=tmp_path / "example.npy")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Invalid JSON"),
        ('{"z": {}}', "z"),
        ('{"x": {"mean": [0], "std": [0]}}', "std.*positive"),
        ('{"x": {"mean": [0, 1], "std": [1]}}', "2 features"),
        ('{"x": {"mean": [], "std": []}}', "non-empty"),
    ],
)
def test_a_wrong_pipeline_is_refused(
    files: dict[str, Path], tmp_path: Path, text: str, said: str
) -> None:
    """The place of the fault, and the form that is expected."""
    path = tmp_path / "pipeline.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=rf"{said}.*expected"):
        load(files, pipeline=path)


PLAIN = """
import torch
from torch import nn

class Cell(nn.Module):
    def __init__(self, seed=None):
        super().__init__()
        if seed is not None:
            torch.manual_seed(seed)
        self.W = torch.randn(4, 5)
        self.scale = torch.tensor(2.0)
        self.bias = nn.Parameter(torch.randn(4))
        self.both = [self.bias[:2], self.bias[2:]]
    def forward(self, x, h):
        return torch.tanh(torch.cat([x, h], -1) @ self.W.t() + self.bias) * self.scale

def seeded():
    return Cell(7)

trained = Cell(3)
"""


@pytest.fixture
def plain(tmp_path: Path) -> str:
    """A cell that holds a weight as a plain attribute; views of a parameter are no own tensors."""
    (tmp_path / "plain_cell.py").write_text(PLAIN)
    return f"{tmp_path / 'plain_cell.py'}:"


def test_a_plain_tensor_is_loaded_where_the_file_has_it(
    files: dict[str, Path], tmp_path: Path, plain: str
) -> None:
    """state_dict() leaves `W` out; the file may hold it under its name all the same."""
    state = {"W": torch.ones(4, 5), "bias": torch.arange(4.0)}
    save_file(state, tmp_path / "w.safetensors")
    module = load(files, plain + "Cell", weights=tmp_path / "w.safetensors").module
    assert torch.equal(module.W, state["W"])  # type: ignore[arg-type]
    assert torch.equal(module.bias, state["bias"])  # type: ignore[arg-type]


def test_a_random_plain_tensor_that_no_file_gives_is_refused(
    files: dict[str, Path], tmp_path: Path, plain: str
) -> None:
    """It would be another model at each export; the message names it and the ways out."""
    save_file({"bias": torch.zeros(4)}, tmp_path / "w.safetensors")
    said = r"^`W`: a tensor that is a plain attribute.*random at each build.*nn\.Parameter"
    with pytest.raises(SourceError, match=said):
        load(files, plain + "Cell", weights=tmp_path / "w.safetensors")
    assert load(files, plain + "seeded", weights=tmp_path / "w.safetensors")


def test_without_weights_the_factory_gives_the_trained_module(
    files: dict[str, Path], plain: str
) -> None:
    """A module, or a factory that gives the same each time; a class with random weights not."""
    assert load(files, plain + "trained", weights=None).module.W.shape == (4, 5)
    assert load(files, plain + "seeded", weights=None).module
    with pytest.raises(SourceError, match=r"other weights at each call \(`.*--weights"):
        load(files, plain + "Cell", weights=None)


def test_the_hash_covers_what_the_file_does_not(
    files: dict[str, Path], tmp_path: Path, plain: str
) -> None:
    """Two modules that differ in a plain tensor alone have two hashes."""
    save_file({"bias": torch.zeros(4)}, tmp_path / "w.safetensors")
    path = tmp_path / "plain_cell.py"
    first = load(files, plain + "seeded", weights=tmp_path / "w.safetensors").weights_sha256
    path.write_text(PLAIN.replace("Cell(7)", "Cell(8)"))
    second = load(files, plain + "seeded", weights=tmp_path / "w.safetensors").weights_sha256
    assert first != second
    assert len({first, second, load(files, plain + "trained", weights=None).weights_sha256}) == 3


@pytest.mark.parametrize("prefix", ["module.", "model.", "net.", "_orig_mod.", "model._orig_mod."])
def test_prefixes_of_wrappers_are_left_out(
    files: dict[str, Path], tmp_path: Path, prefix: str
) -> None:
    """DataParallel, Lightning and torch.compile put something before each name; a note says so."""
    state = {name: value + 1 for name, value in sine_cell().state_dict().items()}
    torch.save({"state_dict": {prefix + k: v for k, v in state.items()}}, tmp_path / "w.ckpt")
    source = load(files, weights=tmp_path / "w.ckpt")
    for name, value in source.module.state_dict().items():
        assert torch.equal(value, state[name])
    assert any(prefix in note for note in source.notes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_cast_with_a_note(
    files: dict[str, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    """The module computes in float32 whatever the file is in."""
    state = {name: value.to(dtype) for name, value in sine_cell().state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    source = load(files, weights=tmp_path / "w.pt")
    for name, value in source.module.state_dict().items():
        assert value.dtype is torch.float32
        assert torch.equal(value, state[name].float())
    assert any(str(dtype) in note for note in source.notes)
