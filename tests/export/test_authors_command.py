"""`python -m export` on a file in its author's own folder, as its author would type it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from export.__main__ import main
from service.artifact import Artifact
from service.runtime import Runtime
from tests.export import short
from tests.export.authors import standalone
from tests.export.authors.entry import tokens, waves, windows

ROOT = Path(__file__).parents[2]
STEPS = 200  # of the example; the gate goes over it again and again


class Folder:
    """The author's folder, where the author stands: a file of code, weights and an example."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self._capsys = capsys
        (path / "net.py").write_text(Path(standalone.__file__).read_text())

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The real one: it imports torch, which takes longer than the export."""
        return subprocess.run(
            [sys.executable, "-m", "export", *arguments, "--no-store"],
            cwd=self.path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    def export(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What it does, in this process, and with a short proof."""
        with short.proof():
            status = main([*arguments, "--no-store"])
        return subprocess.CompletedProcess(arguments, status, *self._capsys.readouterr())

    def artifact(self, done: subprocess.CompletedProcess[str]) -> Artifact:
        assert done.returncode == 0, done.stderr
        written = [line for line in done.stdout.splitlines() if line.startswith("wrote ")]
        return Artifact.load(self.path / written[0].removeprefix("wrote "))


@pytest.fixture
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Folder:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # export puts the file's folder there
    monkeypatch.delitem(sys.modules, "net", raising=False)  # of the test before
    return Folder(tmp_path, capsys)


def trained(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def served(artifact: Artifact, x: np.ndarray) -> np.ndarray:
    """y (B, T, n) of the default variant, in chunks of 7 steps."""
    runtime = Runtime(artifact, artifact.manifest.default_variant)
    state = {name: np.repeat(v, len(x), axis=0) for name, v in artifact.initial.items()}
    ys = []
    for t in range(0, x.shape[1], 7):
        y, state = runtime.run(np.ascontiguousarray(x[:, t : t + 7]), state)
        ys.append(y)
    return np.concatenate(ys, axis=1)


def close(got: np.ndarray, wanted: Sequence[torch.Tensor] | torch.Tensor) -> None:
    stacked = wanted if isinstance(wanted, torch.Tensor) else torch.stack([*wanted], dim=1)
    np.testing.assert_allclose(got, stacked.detach().numpy(), atol=1e-5, rtol=1e-5)


def test_a_checkpoint_of_a_training_script_and_an_example_in_float64(folder: Folder) -> None:
    """model_state_dict under DataParallel's prefix; three sequences (N, T, features)."""
    net = trained(standalone.Forecaster())
    weights = {f"module.{k}": v for k, v in net.state_dict().items()}
    checkpoint = {"epoch": 7, "model_state_dict": weights, "loss": 0.1}
    torch.save(checkpoint, folder.path / "last.pt")
    x = np.stack([waves(4)(STEPS, seed) for seed in range(3)])
    np.save(folder.path / "x.npy", x.astype(np.float64))
    arguments = ["net.py:Forecaster", "--weights", "last.pt", "--example", "x.npy"]
    artifact = folder.artifact(folder.command(*arguments, "--name", "forecaster"))
    assert {"onnx-fp32", "onnx-int8", "torchscript-fp32"} <= set(artifact.manifest.variants)
    X = torch.from_numpy(x)[:, :40]
    close(served(artifact, x[:, :40]), [net(X[:, : t + 1]) for t in range(40)])


def test_a_cell_with_keywords_for_its_factory(folder: Folder) -> None:
    """`--init`; weights in safetensors; one step a call, found out by trying."""
    net = trained(standalone.LSTMCell(3, 9))
    save_file(net.state_dict(), folder.path / "cell.safetensors")
    x = waves(3)(STEPS, 0)
    np.save(folder.path / "x.npy", x)
    done = folder.export(
        *("net.py:LSTMCell", "--init", '{"input_size": 3, "hidden_size": 9}'),
        *("--weights", "cell.safetensors", "--example", "x.npy", "--name", "cell"),
        *("--variants", "onnx-fp32,onnx-int8-rowwise"),
    )
    artifact = folder.artifact(done)
    assert [entry.road for entry in artifact.manifest.lowering] == ["lstm"]
    h, c, hs = torch.zeros(1, 9), torch.zeros(1, 9), []
    for x_t in torch.from_numpy(x):
        h, c = net(x_t[None], (h, c))
        hs.append(h)
    close(served(artifact, x[None]), hs)


def test_token_ids(folder: Folder) -> None:
    """An example of int64 (T,), and a state_dict as such."""
    net = trained(standalone.CharRNN())
    torch.save(net.state_dict(), folder.path / "char.pth")
    ids = tokens(11)(STEPS, 0)
    np.save(folder.path / "ids.npy", ids)
    done = folder.export(
        *("net.py:CharRNN", "--weights", "char.pth", "--example", "ids.npy", "--name", "char"),
        *("--variants", "onnx-fp32"),
    )
    artifact = folder.artifact(done)
    assert artifact.manifest.ports.x.ids == 11
    close(served(artifact, ids[None]), net(torch.from_numpy(ids)[None])[0])


def test_what_looks_ahead_is_refused_and_then_served_on_windows(folder: Folder) -> None:
    """The error names the layer and the flags; with these, the same command writes an artifact."""
    net = trained(standalone.Tagger())
    torch.save({"state_dict": net.state_dict()}, folder.path / "tagger.pt")
    x = waves(3)(STEPS, 0)
    np.save(folder.path / "x.npy", x)
    command = ["net.py:Tagger", "--weights", "tagger.pt", "--example", "x.npy", "--name", "tagger"]
    refused = folder.export(*command)
    assert refused.returncode == 1
    assert "`lstm` is bidirectional" in refused.stderr
    assert "--mode windowed --window N" in refused.stderr
    assert not list(folder.path.glob("artifacts/tagger/*"))
    served_on_windows = ("--mode", "windowed", "--window", "9")
    done = folder.export(*command, *served_on_windows, "--variants", "onnx-fp32")
    artifact = folder.artifact(done)
    wanted = windows(9, lambda y: y[:, -1])(net, torch.from_numpy(x)[None])
    got = served(artifact, x[None])
    close(got[:, 8:], wanted[:, 8:])


def test_ambiguity_lists_what_may_be_said_and_that_is_taken(folder: Folder) -> None:
    """Each candidate in the error can be given as it stands there."""
    net = trained(standalone.TwoHeads())
    torch.save(net.state_dict(), folder.path / "heads.pt")
    x = waves(3)(STEPS, 0)
    np.save(folder.path / "x.npy", x)
    command = ["net.py:TwoHeads", "--weights", "heads.pt", "--example", "x.npy", "--name", "heads"]
    refused = folder.export(*command)
    assert refused.returncode == 1
    lines = [line.strip() for line in refused.stderr.splitlines()]
    calls = [line.removeprefix('--call "')[:-1] for line in lines if line.startswith("--call")]
    (spread,) = (call for call in calls if "spread: Y" in call)
    done = folder.export(*command, "--call", spread, "--variants", "onnx-fp32")
    artifact = folder.artifact(done)
    close(served(artifact, x[None]), net(torch.from_numpy(x)[:, None])["spread"].transpose(0, 1))


def test_a_pickled_module_is_refused_with_the_way_out(folder: Folder) -> None:
    """torch.save(model): loading it would run code, so its state_dict is asked for."""
    torch.save(trained(standalone.CharRNN()), folder.path / "whole.pt")
    np.save(folder.path / "ids.npy", tokens(11)(STEPS, 0))
    refused = folder.command(
        "net.py:CharRNN", "--weights", "whole.pt", "--example", "ids.npy", "--name", "char"
    )
    assert refused.returncode == 1
    assert "state_dict" in refused.stderr
    assert "Traceback" not in refused.stderr
