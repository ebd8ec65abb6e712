"""States of loops written by hand inside forward are lifted out, without a change to the module."""

import copy

import pytest
import torch
from torch import Tensor, nn

from export.errors import CallError, CausalityError
from export.finding import find_reference
from export.lowering import LoweredNetwork, lower_reference
from export.reference import Reference
from export.streaming.hidden_loop import CutModule
from tests.export.hidden_spellings import (
    IDS,
    SPELLINGS,
    Embedded,
    H,
    InlineChunk,
    OwnCell,
    Precomputed,
    Spelling,
)

X = torch.randn(3, 30, 3, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, IDS, (3, 30), generator=torch.Generator().manual_seed(0))
CHUNKS = (1, 1, 5, 2, 9, 12)


def _build(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return kind().eval()


def _input(kind: type[nn.Module]) -> Tensor:
    return TOKENS if kind is Embedded else X


def _in_chunks(reference: Reference, x: Tensor) -> Tensor:
    state, ys, start = reference.initial(len(x)), [], 0
    with torch.no_grad():
        for length in CHUNKS:
            y, state = reference.run(x[:, start : start + length], state)
            ys.append(y)
            start += length
    return torch.cat(ys, 1)


def _by_itself(module: nn.Module, x: Tensor, call: str, time_first: bool = False) -> Tensor:
    with torch.no_grad():
        if call == "X -> y":
            return torch.stack([module(x[:, : t + 1]) for t in range(x.shape[1])], 1)
        if time_first:
            return module(x.transpose(0, 1)).transpose(0, 1)  # type: ignore[no-any-return]
        return module(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda s: s.module.__name__)
def test_a_loop_in_chunks_gives_what_the_module_gives_by_itself(spelling: Spelling) -> None:
    """The states are found, named and shaped, and carry all that goes from step to step."""
    module, x = _build(spelling.module), _input(spelling.module)
    before = copy.deepcopy(module.state_dict())
    reference = find_reference(module, x)
    assert isinstance(reference, CutModule)
    assert {s.name: s.shape for s in reference.states} == spelling.states
    assert reference.describe().startswith(spelling.call)
    time_first = spelling.module.__name__ == "TimeFirst"
    whole = _by_itself(module, x, spelling.call, time_first)
    torch.testing.assert_close(_in_chunks(reference, x), whole, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    given = find_reference(module, x, spelling.call)
    assert [s.name for s in given.states] == [s.name for s in reference.states]


def test_a_learned_start_is_the_initial_state() -> None:
    """What stands in the state's place at the first step is what sessions begin with."""
    module = _build(Precomputed)
    initial = find_reference(module, X).initial(2)
    assert torch.equal(initial["h"], module.h0.detach().expand(2, -1))  # type: ignore[operator]
    assert torch.equal(initial["c"], module.c0.detach().expand(2, -1))  # type: ignore[operator]


def test_the_cut_does_not_hold_the_start_of_the_module() -> None:
    """A session that goes on from another state gives another y: the start became an input."""
    reference = find_reference(_build(OwnCell), X)
    zero = reference.initial(3)
    with torch.no_grad():
        moved = {name: value + 1 for name, value in zero.items()}
        for name in zero:
            one, _ = reference.run(X[:, :1], zero | {name: moved[name]})
            assert not torch.allclose(one, reference.run(X[:, :1], zero)[0])


@pytest.mark.parametrize("kind", [OwnCell, InlineChunk, Precomputed])
def test_a_hidden_lstm_is_lowered_to_an_lstm(kind: type[nn.Module]) -> None:
    """The cut leaves nothing in the step that hides the cell from recognition."""
    lowered = lower_reference(find_reference(_build(kind), X), X)
    assert isinstance(lowered, LoweredNetwork)
    assert [(cell.hidden_size, cell.h.port) for cell in lowered.network.cells] == [(H, "h")]
    assert not lowered.network.free


class _Loop(nn.Module):
    """A GRU cell looped over time; `order` says how."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.GRUCell(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.size(0), 5)
        out: list[Tensor] = []
        for t in reversed(range(x.size(1))):
            h = self.back(x[:, t], h)
            out.insert(0, h)
        return torch.stack(out, 1)


class _Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, padding=1)
        self.lstm = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lstm(self.conv(x.transpose(1, 2)).transpose(1, 2))[0]
        return y


class _MeanTakenOff(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.gru(x)[0]
        y: Tensor = out - out.mean(1, keepdim=True)
        return y


class _Positions(nn.Module):
    """A sine of the step's index is added to each input."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        position = torch.sin(torch.arange(x.size(1), dtype=torch.float32)).unsqueeze(1)
        y: Tensor = self.gru(x + position)[0]
        return y


@pytest.mark.parametrize(
    ("module", "what"),
    [
        (_Positions, r"the add takes a constant that is another at each step"),
        (_Loop, r"at `back` takes step 1 after step 3 has come"),
        (_Convolved, r"the convolution in `conv` takes step 0 after step 2"),
        (_MeanTakenOff, r"the mean at `gru` is over time, .* it looks ahead"),
    ],
)
def test_what_looks_ahead_is_named(module: type[nn.Module], what: str) -> None:
    """The operation, the submodule, and the way out."""
    with pytest.raises(CausalityError, match=f"{what}.*--mode windowed"):
        find_reference(_build(module), X)


class _RandomStart(InlineChunk):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.randn(x.size(0), H)
        out = []
        for t in range(x.size(1)):
            h = torch.tanh(self.i2h(x[:, t]) + self.h2h(h))[:, :H]
            out.append(h)
        return torch.stack(out, 1)


class _BatchMean(OwnCell):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


@pytest.mark.parametrize(
    ("module", "what"),
    [
        (_RandomStart, "randn draws random numbers"),
        (_BatchMean, "rows of the batch meet at the mean"),
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh()), "it has no state"),
    ],
)
def test_what_has_no_state_of_a_fixed_start_is_refused(module: type[nn.Module], what: str) -> None:
    """The message says which rule the module breaks."""
    with pytest.raises(CallError, match=what):
        find_reference(_build(module), X, "X -> Y")


def test_packed_sequences_that_are_not_full_are_refused() -> None:
    """A module that shortens its rows has no steps in common to cut between."""

    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            lengths = torch.full((x.size(0),), x.size(1) - 1)
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            y: Tensor = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], True)[0]
            return y.mean(1)

    with pytest.raises(
        (CallError, CausalityError), match="packs sequences that are shorter than X"
    ):
        find_reference(Short().eval(), X, "X -> y")
