"""The variant `torch-export`: torch alone runs it, over chunks and batches not seen at export."""

import importlib
import itertools
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.draft import ports_of
from export.errors import LoweringError, UnavailableError
from export.exporter import ALL_VARIANTS
from export.finding import find_reference
from export.graphs.operators import lower_operators
from export.graphs.torch_export import write_torch_export
from export.lowering import lower_reference
from export.reference import Reference
from export.source import Source
from models.char_rnn import CharRNN
from service.artifact import Artifact
from service.errors import ArtifactError
from service.manifest import Ports
from service.model import Model
from service.pipeline import Pipeline
from service.runtime import Runtime
from tests.export import short
from tests.export.operator_cells import SRU, ExponentialGates

STEPS = 64


class Stacked(nn.Module):
    """Two layers and a head, the state a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 16, 2, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, state = self.lstm(x, state)
        return self.head(h), state


class Counting(nn.Module):
    """A state of integers: the index of the step, which every row has its own of."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(2, 8)

    def forward(self, x: Tensor, h: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.cell(x * (n % 3 == 0), h)
        return h.exp(), h, n + 1

    def init_state(self, batch: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch, 8), torch.zeros(batch, 1, dtype=torch.int64)


MODULES = {
    "lstm": (Stacked, None, 3),
    "ids": (lambda: CharRNN(12, 4, 16, 1), "X, (h, c)=None -> Y, (h, c)", None),
    "operators": (ExponentialGates, "x, (h, c, n, m) -> y, (h, c, n, m)", 1),
    "weights that share memory": (SRU, "X, c=None -> Y, c", 1),
    "integers": (Counting, "x, h, n -> y, h, n", 2),
}
BY_OPERATORS = {"operators", "weights that share memory"}


def made(name: str) -> tuple[Reference, Ports, nn.Module]:
    """The reference, its ports, and its step as torch.export is given it."""
    torch.manual_seed(0)
    module, call, features = MODULES[name]
    x = draw(features, 1, STEPS)
    reference = find_reference(module().eval().requires_grad_(False), x, call)
    ports = ports_of(reference, x.numpy())
    if name in BY_OPERATORS:
        return reference, ports, lower_operators(reference, x, "a test").torch_step(ports)
    return reference, ports, lower_reference(reference, x).torch_step(ports)


def draw(features: int | None, *shape: int) -> Tensor:
    return torch.randint(0, 12, shape) if features is None else torch.randn(*shape, features)


@pytest.mark.parametrize("name", MODULES)
def test_torch_alone_runs_the_file_over_any_batch_and_chunk(name: str, tmp_path: Path) -> None:
    """y and every state are the eager module's, in shape, dtype and value, also in chunks."""
    reference, ports, step = made(name)
    write_torch_export(step, ports, tmp_path / "model.pt2")
    module = torch.export.load(tmp_path / "model.pt2").module()
    for batch, steps in ((1, 1), (1, 7), (4, 1), (9, 13)):
        x = draw(MODULES[name][2], batch, steps)
        start = reference.initial(batch)
        with torch.no_grad():
            wanted, wanted_state = reference.run(x, start)
            y, *state = module(x, *start.values())
            first, *middle = module(x[:, : steps // 2 + 1], *start.values())
        torch.testing.assert_close(y, wanted, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(first, wanted[:, : steps // 2 + 1], atol=1e-6, rtol=1e-5)
        for value, right in zip(state, wanted_state.values(), strict=True):
            torch.testing.assert_close(value, right, atol=1e-6, rtol=1e-5)
        if steps > 1:
            with torch.no_grad():
                rest, *_ = module(x[:, steps // 2 + 1 :], *middle)
            torch.testing.assert_close(rest, wanted[:, steps // 2 + 1 :], atol=1e-6, rtol=1e-5)


def test_the_file_holds_the_weights_once_and_no_word_of_where_it_was_made(tmp_path: Path) -> None:
    """No stack, no path, no source; float32 weights and the graph."""
    _, ports, step = made("lstm")
    path = tmp_path / "model.pt2"
    write_torch_export(step, ports, path)
    raw = path.read_bytes()
    for word in (b"stack_trace", b".py", str(Path.cwd()).encode(), b"Stacked"):
        assert word not in raw
    with zipfile.ZipFile(path) as archive:
        sizes = [i.file_size for i in archive.infolist() if "/weight_" in i.filename]
    parameters = (
        sum(p.numel() for p in Stacked().parameters()) - 2 * 4 * 16
    )  # the two biases as one
    assert sum(sizes) == 4 * parameters


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    module = Stacked().eval().requires_grad_(False)
    example = np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32)
    source = Source("x:y", module, "0" * 64, example, Pipeline())
    out = tmp_path_factory.mktemp("out")
    return short.export(source, "small", out, variants=("onnx-fp32", "torch-export")).artifact


def test_it_is_proven_like_the_others_and_served(artifact: Artifact) -> None:
    """Through the same gate; the service replays the golden sequences with it."""
    entry = artifact.variant("torch-export")
    assert (entry.file, entry.step) == ("torch-export.pt2", None)
    assert [p.case for p in entry.parity] == [p.case for p in artifact.variant("onnx-fp32").parity]
    assert all(p.passed for p in entry.parity)
    assert entry.parity[0].steps == short.STEPS
    assert Model.load(artifact.path, "torch-export").initial_state


def test_any_chunks_and_lengths_give_the_same_bits(artifact: Artifact) -> None:
    """As the service runs it: rows of other lengths in one batch, and a sequence in pieces."""
    runtime = Runtime(artifact, "torch-export")
    x = artifact.golden().x[:1, :40]
    start = artifact.layout.zeros()
    whole, final = runtime.run(x, start)
    ys, state = [], start
    for begin, end in itertools.pairwise((0, 1, 8, 23, 40)):
        y, state = runtime.run(np.ascontiguousarray(x[:, begin:end]), state)
        ys.append(y)
    assert np.concatenate(ys, axis=1).tobytes() == whole.tobytes()
    both = {name: np.repeat(value, 2, axis=0) for name, value in start.items()}
    y, state_of_both = runtime.run(np.repeat(x, 2, axis=0), both, np.array([40, 8]))
    assert y[0].tobytes() == whole[0].tobytes()
    assert y[1, :8].tobytes() == whole[0, :8].tobytes()
    assert not y[1, 8:].any()
    assert all(state_of_both[name][0].tobytes() == final[name][0].tobytes() for name in final)


def test_it_is_written_only_when_it_is_named() -> None:
    """It is no part of a plain export."""
    assert "torch-export" not in ALL_VARIANTS


def test_a_file_that_torch_cannot_read_is_refused_with_the_way_out(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of torch.export may not be readable by another torch: the error says whose it is."""

    def load(path: str) -> None:
        raise RuntimeError("schema version 99\nand more")

    monkeypatch.setattr(torch.export, "load", load)
    written_by = artifact.manifest.producer["torch"]
    with pytest.raises(
        ArtifactError,
        match=re.escape(
            f"cannot load torch-export.pt2, which torch {written_by} wrote: schema version 99; "
            "install that torch or choose an ONNX variant"
        ),
    ):
        Runtime(artifact, "torch-export")


class Held(nn.Module):
    """y is the state, and the new state the old one: all in one memory."""

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, Tensor]:
        return states[0], states[0]


def test_a_step_that_gives_back_what_it_was_given_is_taken(tmp_path: Path) -> None:
    """torch's scan refuses results that share memory."""
    _, ports, _ = made("integers")
    state = ports.states[0].model_copy(update={"shape": ["B", 4]})
    ports = ports.model_copy(update={"states": [state]})
    write_torch_export(Held(), ports, tmp_path / "model.pt2")
    h = torch.randn(2, 4)
    y, new = torch.export.load(tmp_path / "model.pt2").module()(torch.randn(2, 3, 2), h)
    assert y.tolist() == [[row] * 3 for row in h.tolist()]
    assert new.tolist() == h.tolist()


class Refused(nn.Module):
    """A step that decides by a value."""

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, Tensor]:
        return (x if x.sum() > 0 else -x), states[0]


def test_a_step_that_torch_export_does_not_take_is_left_out_with_its_words(tmp_path: Path) -> None:
    """As a LoweringError, which leaves the variant out."""
    _, ports, _ = made("integers")
    ports = ports.model_copy(update={"states": ports.states[:1]})
    with pytest.raises(LoweringError, match=r"torch.export does not take the step"):
        write_torch_export(Refused(), ports, tmp_path / "model.pt2")


def test_a_torch_without_scan_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`scan` is a prototype of torch, and may move."""
    home = importlib.import_module("torch._higher_order_ops.scan")
    monkeypatch.delattr(home, "scan")
    _, ports, step = made("integers")
    with pytest.raises(UnavailableError, match="has no working scan"):
        write_torch_export(step, ports, tmp_path / "model.pt2")
