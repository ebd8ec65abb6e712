"""A torch without TorchScript, or without its quantization: what an export of it still gives."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export import exporter
from export.errors import LoweringError, UnavailableError
from export.graphs import torch_int8
from export.graphs.torch_part import torch_part
from export.source import Source
from service.artifact import Artifact, find_artifacts
from service.manifest import Manifest
from service.pipeline import Pipeline
from tests.export.short import export

ROOT = Path(__file__).resolve().parents[2]
STEPS = 400
# Before export is seen, all that is public in torch.jit is broken, and torch.ao.quantization goes.
# Torch's own modules still decorate by `export`, ask `is_scripting`, and look for two classes.
WITHOUT = """
import sys, torch, torch.ao.quantization
def broken():
    def raises(*args, **keywords):
        raise NotImplementedError("gone")
    return raises
for name in {*torch.jit.__all__} - {"is_scripting", "export", "ScriptFunction"}:
    setattr(torch.jit, name, broken())
torch.jit.ScriptModule = type("ScriptModule", (), {})
del torch.ao.quantization, torch.quantization
for name in list(sys.modules):
    if name.startswith(("torch.ao.quantization", "torch.quantization")):
        sys.modules[name] = None
from export.__main__ import main
from tests.export.short import proof
with proof():
    sys.exit(main() or main([*sys.argv[1:], "--variants", "torch-export"]))
"""


def wave() -> np.ndarray:
    return np.asarray(np.sin(np.arange(STEPS) * 0.1)[:, None], np.float32)


class Net(nn.Module):
    """A small LSTM."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(1, 16, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, state = self.lstm(x, state)
        return self.head(h), state


def source() -> Source:
    return Source("x:y", Net().eval().requires_grad_(False), "0" * 64, wave(), Pipeline())


def not_written(manifest: Manifest) -> dict[str, str]:
    return {e.layer: e.why for e in manifest.lowering if e.road == "not written"}


def test_a_torch_without_them_costs_their_variants_and_not_the_product(tmp_path: Path) -> None:
    """A process of its own: the three ONNX variants and torch-export are written and proven."""
    np.save(tmp_path / "example.npy", wave())
    files = ("--example", str(tmp_path / "example.npy"), "--out", str(tmp_path / "out"))
    arguments = ("tests.export.test_torch_part:Net", *files, "--name", "small", "--no-store")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    manifests = [
        artifact.manifest for artifact in map(Artifact.load, find_artifacts(tmp_path / "out"))
    ]
    found = {tuple(manifest.variants): not_written(manifest) for manifest in manifests}
    why = f"torch {torch.__version__} has no working "
    gone = found[("onnx-fp32", "onnx-int8", "onnx-int8-rowwise")]
    assert gone.keys() == {"torchscript-fp32", "torchscript-int8"}
    assert gone["torchscript-fp32"].startswith(f"{why}torch.jit (gone)")
    assert gone["torchscript-int8"].startswith(f"{why}torch.ao.quantization (")
    assert all(
        f"{variant}: not written; {reason}" in done.stdout for variant, reason in gone.items()
    )
    assert found[("torch-export",)] == {}
    assert len(found) == 2


def test_a_torch_without_quantization_costs_one_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchscript-fp32 needs none."""
    variants = ("torchscript-fp32", "torchscript-int8")
    monkeypatch.setattr(exporter, "ALL_VARIANTS", variants)
    monkeypatch.delattr(torch.ao.quantization, "quantize_dynamic")
    manifest = export(source(), "small", tmp_path).artifact.manifest
    assert {*manifest.variants} == {"torchscript-fp32"}
    assert "no attribute 'quantize_dynamic'" in not_written(manifest)["torchscript-int8"]


def test_nothing_is_written_where_one_that_was_asked_for_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the variant, what torch lacks, and what to do."""
    monkeypatch.delattr(torch.jit, "trace")
    with pytest.raises(
        UnavailableError, match=r"torchscript-fp32 cannot be written: .*'trace'.*--variants"
    ):
        export(source(), "small", tmp_path, variants=("onnx-fp32", "torchscript-fp32"))
    assert not [*tmp_path.rglob("*.*")]


@pytest.mark.parametrize("error", [ImportError("gone"), NotImplementedError("gone")])
def test_what_torch_says_of_a_missing_part_becomes_a_reason(error: Exception) -> None:
    """Named: the part, this torch, and its own words."""
    with (
        pytest.raises(UnavailableError, match=r"torch 2.* has no working torch.jit \(gone\)"),
        torch_part("torch.jit"),
    ):
        raise error


def test_a_name_that_torch_has_not_is_a_missing_part() -> None:
    """As `torch.jit.script` of a torch without it."""
    with pytest.raises(UnavailableError, match="no attribute 'jyt'"), torch_part("torch.jyt"):
        torch.jyt.script  # type: ignore[attr-defined] # noqa: B018


def test_a_mistake_is_no_missing_part() -> None:
    """An attribute that something else lacks is not torch's doing, and is not hidden."""
    with pytest.raises(AttributeError, match="no attribute 'weights'"), torch_part("torch.jit"):
        nn.Linear(1, 1).weights  # noqa: B018


def test_a_quantizer_that_leaves_a_layer_in_float_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An int8 variant that is a float one in disguise ends the variant, not silently."""
    monkeypatch.setattr(torch.ao.quantization, "quantize_dynamic", lambda module, *_, **__: module)
    with pytest.raises(LoweringError, match=r"left .* in float"):
        torch_int8.quantize(nn.Sequential(nn.Linear(2, 2)))
