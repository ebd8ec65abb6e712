"""Cells are recognised by their mathematics, whatever their spelling."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.call import parse_call
from export.called import CalledModule, Outside
from export.errors import LoweringError
from export.finding import find_reference
from export.form import read_form
from export.network import LstmCell, Network
from export.recognise import lower
from export.reference import Reference, StateSpec
from export.trace import trace_step
from models.networks import CellForecaster, LSTMForecaster
from tests.export import spellings

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


@pytest.mark.parametrize("spelling", spellings.OTHERS)
def test_another_function_goes_the_general_road(spelling: type[nn.Module]) -> None:
    """What is no LSTM is taken for none: its state is carried by its own operators, exactly."""
    torch.manual_seed(0)
    reference, network = lowered(spelling())
    assert not network.cells
    assert set(network.free) == {spec.name for spec in reference.states}
    assert_same(reference, network)


def test_layers_of_two_kinds_share_no_road() -> None:
    """An nn.LSTM layer on its own ports is a cell even beside a GRU."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTMCell(3, 5)
            self.gru = nn.GRUCell(5, 4)

        def forward(self, x: Tensor, h: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, ...]:
            h, c = self.lstm(x, (h, c))
            s = self.gru(h, s)
            return s, h, c, s

    torch.manual_seed(0)
    module = Both().eval()
    shapes = {"h": 5, "c": 5, "s": 4}
    specs = tuple(Outside(StateSpec(name, (size,)), 0) for name, size in shapes.items())
    reference = CalledModule(module, parse_call("x, h, c, s -> y, h, c, s"), 1, specs)
    trace = trace_step(reference, X)
    network = lower(read_form(trace), trace)
    assert [cell.h.port for cell in network.cells] == ["h"]
    assert set(network.free) == {"s"}
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

    with pytest.raises(LoweringError):
        lowered(Meeting())
