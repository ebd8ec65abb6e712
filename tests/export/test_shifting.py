"""What is taken of earlier steps by a shift is kept in a register of the steps that it reaches."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.errors import CausalityError
from export.finding import find_reference
from export.reference import Reference
from export.source import Source
from service.pipeline import Pipeline
from tests.export.shift_spellings import INPUT, QRNN, SPELLINGS, FromAToken, Spelling, TCNThenLSTM
from tests.export.short import export

X = torch.randn(3, 30, INPUT, generator=torch.Generator().manual_seed(0))
CUTS = (0, 1, 2, 7, 9, 18, 30)


def _build(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return kind().eval().requires_grad_(False)


def _in_chunks(reference: Reference, x: Tensor) -> Tensor:
    state, ys = reference.initial(len(x)), []
    with torch.no_grad():
        for start, stop in itertools.pairwise(CUTS):
            y, state = reference.run(x[:, start:stop], state)
            ys.append(y)
    return torch.cat(ys, 1)


def _by_itself(module: nn.Module, x: Tensor, time_first: bool = False) -> Tensor:
    with torch.no_grad():
        if time_first:
            return module(x.transpose(0, 1)).transpose(0, 1)  # type: ignore[no-any-return]
        y: Tensor = module(x)
        if y.ndim == 3:
            return y
        return torch.stack([module(x[:, : t + 1]) for t in range(x.shape[1])], 1)


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda s: s.module.__name__)
def test_a_shift_in_chunks_gives_what_the_module_gives_by_itself(spelling: Spelling) -> None:
    """The register holds the steps that are reached, and begins as the module pads."""
    module = _build(spelling.module)
    reference = find_reference(module, X)
    assert {s.name: s.shape for s in reference.states} == {
        name: (size,) for name, size in spelling.states.items()
    }
    whole = _by_itself(module, X, spelling.time_first)
    torch.testing.assert_close(_in_chunks(reference, X), whole, atol=1e-5, rtol=1e-5)


def test_a_learned_step_before_the_first_is_the_initial_state() -> None:
    """A register begins with what the operations take beside their input, if that is what fits."""
    module = _build(FromAToken)
    initial = find_reference(module, X).initial(2)
    assert torch.equal(initial["past"], module.bos.expand(2, -1))  # type: ignore[operator]


def test_shifted_ids_are_kept_as_numbers() -> None:
    """A shift before the embedding: the register of ids begins with the id that is put before."""

    class Previous(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 4)
            self.gru = nn.GRU(8, 5, batch_first=True)

        def forward(self, ids: Tensor) -> Tensor:
            bos = torch.full((ids.size(0), 1), 7, dtype=torch.long)
            before = torch.cat([bos, ids[:, :-1]], 1)
            both = torch.cat([self.embed(ids), self.embed(before)], -1)
            y: Tensor = self.gru(both)[0]
            return y

    ids = torch.randint(0, 9, (3, 30), generator=torch.Generator().manual_seed(0))
    module = _build(Previous)
    reference = find_reference(module, ids)
    assert float(reference.initial(1)["past"]) == 7
    whole = _by_itself(module, ids)
    torch.testing.assert_close(_in_chunks(reference, ids), whole, atol=1e-5, rtol=1e-5)


class Same(nn.Module):
    """A convolution that is padded on both sides and not cut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(INPUT, 4, 3, padding="same")
        self.gru = nn.GRU(4, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gru(self.conv(x.transpose(1, 2)).transpose(1, 2))[0]
        return y


class Ahead(nn.Module):
    """A shift in the other direction."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(INPUT, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gru(x + F.pad(x, (0, 0, -1, 1)))[0]
        return y


@pytest.mark.parametrize(
    ("kind", "what"), [(Same, r"the convolution in `conv` takes step 0 after"), (Ahead, "step")]
)
def test_a_shift_that_looks_ahead_is_refused(kind: type[nn.Module], what: str) -> None:
    """The rolling window is offered."""
    with pytest.raises(CausalityError, match=f"{what}.*--mode windowed"):
        find_reference(_build(kind), X)


@pytest.mark.parametrize(
    ("kind", "roads"),
    [
        (QRNN, {"state h", "state past"}),
        (TCNThenLSTM, {"lstm_0", "state past", "state past2", "state past3", "state past4"}),
    ],
)
def test_it_is_exported_with_its_int8_variants(
    kind: type[nn.Module], roads: set[str], tmp_path: Path
) -> None:
    """The gate and the parity pass; a recurrent layer behind the shifts is still recognised."""
    x = torch.randn(300, INPUT, generator=torch.Generator().manual_seed(3)).numpy()
    exported = export(Source("x:y", _build(kind), "0" * 64, x, Pipeline()), "small", tmp_path)
    manifest = exported.artifact.manifest
    assert roads <= {one.layer for one in manifest.lowering}
    wanted = {"onnx-fp32", "onnx-int8", "torchscript-fp32", "torchscript-int8"}
    assert wanted <= manifest.variants.keys()
