"""Cells are recognised by their mathematics, whatever their spelling."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.algebra.cells import Cell, GruCell, LstmCell
from export.algebra.form import Root, read_form
from export.algebra.network import Network
from export.algebra.recognise import lower
from export.algebra.trace import trace_step
from export.calling.call import parse_call
from export.calling.module import CalledModule
from export.calling.shapes import Outside
from export.errors import ExportError
from export.finding import find_reference
from export.graphs.cell_graph import fits_nodes
from export.reference import Reference, StateSpec
from models.networks import CellForecaster, LSTMForecaster
from tests.export import gru_spellings, lstm_spellings, spellings

X = torch.randn(1, 30, spellings.INPUT, generator=torch.Generator().manual_seed(0))


def lowered(module: nn.Module, notation: str | None = None) -> tuple[Reference, Network]:
    reference = find_reference(module.eval(), X, notation)
    trace = trace_step(reference, X)
    return reference, lower(read_form(trace), trace)


def assert_same(reference: Reference, network: Network) -> None:
    """The module's own answers over 30 steps, and its final states, to 1e-6."""
    with torch.no_grad():
        wanted, state = reference.run(X, reference.initial(1))
    ours = {name: np.zeros((1, size)) for name, size in network.states.items()}
    for t in range(X.shape[1]):
        y, ours = network.step(X[:, t].double().numpy(), ours)
        np.testing.assert_allclose(y, wanted[:, t], atol=1e-6)
    for name, value in ours.items():
        np.testing.assert_allclose(value, state[name].reshape(1, -1), atol=1e-6)


@pytest.mark.parametrize("spelling", spellings.ALL)
def test_every_spelling_is_one_lstm_cell(spelling: type[nn.Module]) -> None:
    """One cell, no other node, and the module's own answers over 30 steps to 1e-6."""
    torch.manual_seed(0)
    reference, network = lowered(spelling())
    (cell,) = network.nodes
    assert isinstance(cell, LstmCell)
    assert cell.hidden_size == spellings.HIDDEN
    assert_same(reference, network)


def test_the_matrices_are_read_off_exactly() -> None:
    """nn.LSTM's own weights come back, gates i, f, g, o, the two biases added."""
    torch.manual_seed(0)
    module = nn.LSTM(spellings.INPUT, 5, batch_first=True)
    _, network = lowered(module)
    (cell,) = network.cells
    weights = [p.detach().double().numpy() for p in module.all_weights[0]]
    np.testing.assert_allclose(cell.input.blocks["x"], weights[0], atol=1e-12)
    np.testing.assert_allclose(cell.recurrent, weights[1], atol=1e-12)
    np.testing.assert_allclose(cell.input.bias, weights[2] + weights[3], atol=1e-12)


@pytest.mark.parametrize(
    "module",
    [CellForecaster(3, 8, 2), LSTMForecaster(3, 8, 2, num_layers=3, dropout=0.5)],
    ids=["cell", "three layers"],
)
def test_layers_and_head_stand_in_order(module: nn.Module) -> None:
    """One cell a layer, each fed by the one below; y from the last."""
    _, network = lowered(module)
    sources = [list(cell.input.blocks) for cell in network.cells]
    assert sources == [["x"], ["lstm_0.h"], ["lstm_1.h"]][: len(sources)]
    assert list(network.y.blocks) == [f"lstm_{len(sources) - 1}.h"]


def test_what_stands_around_a_cell_is_kept() -> None:
    """A projection before is folded in; a relu head after stays, with its two affine maps."""

    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Linear(3, 4)
            self.cell = nn.LSTMCell(4, 5)
            self.head = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))

        def forward(
            self, x: Tensor, state: tuple[Tensor, Tensor]
        ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            h, c = self.cell(self.before(x), state)
            return self.head(h), (h, c)

    torch.manual_seed(0)
    _, network = lowered(Headed())
    assert [getattr(node, "fn", "cell") for node in network.nodes] == ["cell", "relu"]
    assert network.cells[0].input.blocks["x"].shape == (20, 3)


KINDS = [*lstm_spellings.LSTMS, *gru_spellings.GRUS, *gru_spellings.RNNS]


@pytest.mark.parametrize(("spelling", "road"), KINDS, ids=[f"{k}" for k in range(len(KINDS))])
def test_every_kind_of_cell_is_known_by_its_mathematics(
    spelling: Callable[[], nn.Module], road: str
) -> None:
    """One cell of the stated kind, no other node, and the module's own answers to 1e-6."""
    torch.manual_seed(0)
    reference, network = lowered(spelling())
    (cell,) = network.nodes
    assert isinstance(cell, Cell)
    assert cell.road == road
    assert cell.hidden_size == spellings.HIDDEN
    assert fits_nodes(network)
    assert_same(reference, network)


NEAR = [*lstm_spellings.NEAR_LSTMS, *gru_spellings.NEAR_GRUS]


@pytest.mark.parametrize(("spelling", "why"), NEAR, ids=[why for _, why in NEAR])
def test_another_function_goes_the_general_road_and_why_is_said(
    spelling: Callable[[], nn.Module], why: str
) -> None:
    """What only looks like a cell is taken for none: its own operators carry it, exactly."""
    torch.manual_seed(0)
    reference, network = lowered(spelling())
    assert not network.cells
    assert set(network.free) == {spec.name for spec in reference.states}
    assert why in network.why_free["h"]
    assert_same(reference, network)


def test_the_matrices_of_a_gru_are_read_off_exactly() -> None:
    """nn.GRU's own weights come back, gates z, r, n; of the biases n's two stay apart."""
    torch.manual_seed(0)
    module = nn.GRU(spellings.INPUT, 5, batch_first=True)
    _, network = lowered(module)
    (cell,) = network.cells
    assert isinstance(cell, GruCell)
    w, r, b, inner = (p.detach().double().numpy() for p in module.all_weights[0])
    order = [*range(5, 10), *range(5), *range(10, 15)]
    np.testing.assert_allclose(cell.input.blocks["x"], w[order], atol=1e-12)
    np.testing.assert_allclose(cell.recurrent, r[order], atol=1e-12)
    inner[:10], b[:10] = 0, b[:10] + inner[:10]
    np.testing.assert_allclose(cell.input.bias, b[order], atol=1e-12)
    assert cell.reset_bias is not None
    np.testing.assert_allclose(cell.reset_bias, inner[10:], atol=1e-12)


def test_peepholes_are_read_off_exactly() -> None:
    """In the order i, f, o; those that are not there are zeros."""
    torch.manual_seed(0)
    module = lstm_spellings.Peepholes()
    (cell,) = lowered(module)[1].cells
    assert isinstance(cell, LstmCell)
    wanted = module.p.detach().double().numpy()[[1, 0, 2]]
    assert cell.peepholes is not None
    np.testing.assert_allclose(cell.peepholes, wanted, atol=1e-12)
    partial = lstm_spellings.PartialPeephole()
    (cell,) = lowered(partial)[1].cells
    assert isinstance(cell, LstmCell)
    wanted = np.stack([np.zeros(6), np.zeros(6), partial.p[0].detach().double().numpy()])
    assert cell.peepholes is not None
    np.testing.assert_allclose(cell.peepholes, wanted, atol=1e-12)


class Mixed(nn.Module):
    """A peephole LSTM, a GRU of either kind and an RNN, one above the other, in one packed state.

    y looks at all of them: at h, at c, and at how far the GRU moved.
    """

    def __init__(self) -> None:
        super().__init__()
        size = spellings.HIDDEN
        self.lstm = lstm_spellings.Peepholes()
        self.before, self.after = gru_spellings.Lerped(), gru_spellings.ChunkedAfter()
        self.rnn = gru_spellings.CatRNN()
        self.down = nn.ModuleList(nn.Linear(size, spellings.INPUT) for _ in range(3))
        self.head = nn.Linear(4 * size, 2)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, c, s, t, u = state.chunk(5, dim=1)
        h, c = self.lstm(x, (h, c))
        moved = self.before(self.down[0](h), s)
        t = self.after(self.down[1](moved), t)
        u = self.rnn(self.down[2](t), u)
        y: Tensor = self.head(torch.cat([u, moved - s, c, h], dim=1))
        return y, torch.cat([h, c, moved, t, u], dim=1)


def test_all_kinds_stand_together_in_one_port() -> None:
    """Four cells, each fed by the one below, in pieces of one state; the answers are the same."""
    torch.manual_seed(0)
    module = Mixed().eval()
    specs = (Outside(StateSpec("s", (5 * spellings.HIDDEN,)), 0),)
    reference = CalledModule(module, parse_call("x, s -> y, s"), 1, specs)
    trace = trace_step(reference, X)
    network = lower(read_form(trace), trace)
    assert [cell.road for cell in network.cells] == [
        "lstm (peepholes)",
        gru_spellings.BEFORE,
        gru_spellings.AFTER,
        "rnn (tanh)",
    ]
    assert [list(cell.input.blocks) for cell in network.cells] == [
        ["x"],
        ["lstm_0.h"],
        ["gru_0.h"],
        ["gru_1.h"],
    ]
    assert set(network.y.blocks) == {"rnn_0.h", "gru_0.h", "s", "lstm_0.c", "lstm_0.h"}
    assert len(network.nodes) == 4
    assert_same(reference, network)


def test_a_cell_beside_another_recurrence_is_still_a_cell() -> None:
    """An nn.LSTM layer on its own ports is a cell even above a minimal gated unit."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTMCell(6, 5)
            self.unit = gru_spellings.MinimalGated()

        def forward(self, x: Tensor, h: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, ...]:
            s = self.unit(x, s)
            h, c = self.lstm(s, (h, c))
            return h, h, c, s

    torch.manual_seed(0)
    module = Both().eval()
    shapes = {"h": 5, "c": 5, "s": 6}
    specs = tuple(Outside(StateSpec(name, (size,)), 0) for name, size in shapes.items())
    reference = CalledModule(module, parse_call("x, h, c, s -> y, h, c, s"), 1, specs)
    trace = trace_step(reference, X)
    network = lower(read_form(trace), trace)
    assert [cell.h.port for cell in network.cells] == ["h"]
    assert set(network.free) == {"s"}
    assert "minimal gated unit" in network.why_free["s"]
    assert not fits_nodes(network)
    assert_same(reference, network)


def test_rows_that_meet_are_refused() -> None:
    """A module that mixes the rows of a batch cannot be served to separate sessions."""

    class Meeting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(3, 5)

        def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            h, c = self.cell(x - x.mean(0), state)
            return h, c

    with pytest.raises(ExportError, match="other rows"):
        lowered(Meeting())


def test_a_step_that_overflows_is_compared_too() -> None:
    """exp of 1e4 is inf in the module and in the network; it is not taken for a difference."""

    class Exponential(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.z = nn.Linear(3 + 6, 6)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            e = torch.exp(self.z(torch.cat([x, h], dim=1)))
            return 1 / (1 + e) + e / (1 + e.abs())

    torch.manual_seed(0)
    reference, network = lowered(Exponential())
    assert [getattr(node, "fn", "cell") for node in network.nodes] == [
        "exp",
        "reciprocal",
        "abs",
        "div",
    ]
    assert_same(reference, network)


def test_a_gate_that_looks_at_another_old_state_is_no_cells() -> None:
    """A node sees its own h and this step's input; the state of a layer above comes a step late."""

    class Feedback(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.above = nn.GRUCell(3 + 4, 5), nn.GRUCell(5, 4)

        def forward(self, x: Tensor, h: Tensor, s: Tensor) -> tuple[Tensor, ...]:
            h = self.below(torch.cat([x, s], dim=1), h)
            s = self.above(h, s)
            return s, h, s

    torch.manual_seed(0)
    specs = tuple(Outside(StateSpec(name, (size,)), 0) for name, size in (("h", 5), ("s", 4)))
    reference = CalledModule(Feedback().eval(), parse_call("x, h, s -> y, h, s"), 1, specs)
    trace = trace_step(reference, X)
    network = lower(read_form(trace), trace)
    assert set(network.free) == {"h"}
    assert "a gate looks at the old `s`" in network.why_free["h"]
    assert [cell.h.port for cell in network.cells] == ["s"]
    assert_same(reference, network)


def test_what_looks_at_a_part_of_a_cell_is_not_said_by_the_whole() -> None:
    """A head on i * g alone keeps that product: c' - f * c would cancel where c is large."""

    class Inside(lstm_spellings.Activated):
        def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> object:  # type: ignore[override]
            h, c = state
            i, f, g, o = self.z(torch.cat([h, x], dim=1)).chunk(4, 1)
            kept = torch.sigmoid(f) * c
            new = torch.sigmoid(i) * torch.tanh(g)
            c = kept + new
            return new, (torch.sigmoid(o) * torch.tanh(c), c)

    torch.manual_seed(0)
    reference, network = lowered(Inside())
    assert [cell.road for cell in network.cells] == ["lstm"]
    (source,) = network.y.blocks
    assert source in {node.name for node in network.nodes if isinstance(node, Root)}
    assert_same(reference, network)
