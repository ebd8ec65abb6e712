"""The two forecasters are one function, and time can be cut anywhere."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.cells import LSTMCell
from models.networks import CellForecaster, GRUForecaster, LSTMForecaster, StackForecaster


def copy_weights(source: CellForecaster, target: LSTMForecaster) -> None:
    """Give a one-layer ``nn.LSTM`` the weights of a hand-written cell, and its head."""
    cell, hidden = source.cell, source.cell.hidden_size
    weights = torch.cat((cell.W_i, cell.W_f, cell.W_C, cell.W_o))
    biases = torch.cat((cell.b_i, cell.b_f, cell.b_C, cell.b_o))
    target.lstm.load_state_dict(
        {
            "weight_hh_l0": weights[:, :hidden],
            "weight_ih_l0": weights[:, hidden:],
            "bias_ih_l0": biases,
            "bias_hh_l0": torch.zeros_like(biases),
        }
    )
    target.head.load_state_dict(source.head.state_dict())


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_twins_with_the_same_weights_agree(dtype: torch.dtype, atol: float) -> None:
    """y and the final state agree, from zeros and from a state that is carried on."""
    torch.manual_seed(0)
    cell_model = CellForecaster(3, 8, 2).to(dtype)
    lstm_model = LSTMForecaster(3, 8, 2).to(dtype)
    copy_weights(cell_model, lstm_model)
    cell_state = lstm_state = None
    for x in torch.randn(2, 4, 100, 3, dtype=dtype):
        cell_y, cell_state = cell_model(x, cell_state)
        lstm_y, lstm_state = lstm_model(x, lstm_state)
        torch.testing.assert_close(cell_y, lstm_y, atol=atol, rtol=0)
        for mine, theirs in zip(cell_state, lstm_state, strict=True):
            torch.testing.assert_close(mine, theirs[0], atol=atol, rtol=0)  # theirs: (L = 1, B, H)


def models() -> list[nn.Module]:
    torch.manual_seed(1)
    return [
        CellForecaster(2, 8, 2),
        LSTMForecaster(2, 8, 2, num_layers=2, dropout=0.5).eval(),
        GRUForecaster(2, 8, 2),
        StackForecaster(2, 8, 2, num_layers=3),
    ]


def flat(state: Any) -> list[Tensor]:
    """The tensors of a state, however it is nested."""
    return [state] if isinstance(state, Tensor) else [t for part in state for t in flat(part)]


def zeros_like(state: Any) -> Any:
    """A state of the same form, all zeros."""
    if isinstance(state, Tensor):
        return torch.zeros_like(state)
    return type(state)(zeros_like(part) for part in state)


MODELS = pytest.mark.parametrize("model", models(), ids=["cell", "lstm", "gru", "stack"])


@MODELS
@pytest.mark.parametrize("cuts", [[1, 59], [30, 30], [1] * 60, [7, 1, 22, 30]], ids=str)
def test_any_cut_into_chunks_gives_the_same_forecasts(model: nn.Module, cuts: list[int]) -> None:
    """Chunks with the state carried equal the whole sequence, within 1e-6."""
    x = torch.randn(3, 60, 2, generator=torch.Generator().manual_seed(2))
    whole_y, whole_state = model(x)
    state = None
    chunks: list[Tensor] = []
    for chunk in torch.split(x, cuts, dim=1):
        y, state = model(chunk, state)
        chunks.append(y)
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole_y, atol=1e-6, rtol=0)
    for part, whole in zip(flat(state), flat(whole_state), strict=True):
        torch.testing.assert_close(part, whole, atol=1e-6, rtol=0)


@MODELS
def test_the_state_starts_as_zeros_and_is_not_kept(model: nn.Module) -> None:
    """No state equals a state of zeros, and a second call from none equals the first."""
    x = torch.randn(3, 5, 2)
    first, state = model(x)
    kept = [part.clone() for part in flat(state)]
    assert torch.equal(model(x)[0], first)
    assert torch.equal(model(x, zeros_like(state))[0], first)
    assert not torch.equal(model(x, state)[0], first)
    assert all(map(torch.equal, kept, flat(state)))


def test_dropout_acts_between_layers_and_in_training_only() -> None:
    """Two runs differ in training and agree in evaluation."""
    model = LSTMForecaster(1, 8, 1, num_layers=2, dropout=0.5)
    x = torch.randn(1, 10, 1)
    assert not torch.equal(model(x)[0], model(x)[0])
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


def test_every_layer_starts_with_a_forget_bias_of_one_in_all() -> None:
    """nn.LSTM adds two biases: together they are 1 for f (the second quarter), 0 for the rest."""
    biases = LSTMForecaster(1, 4, 1, num_layers=2).lstm.state_dict()
    expected = torch.tensor([0.0] * 4 + [1.0] * 4 + [0.0] * 8)
    for layer in (0, 1):
        total = biases[f"bias_ih_l{layer}"] + biases[f"bias_hh_l{layer}"]
        assert torch.equal(total, expected)


def test_a_stack_of_cells_equals_torchs_stack() -> None:
    """Three layers with the same weights: the same forecasts and the same state in each layer."""
    torch.manual_seed(0)
    stack = StackForecaster(2, 8, 1, num_layers=3).double()
    twin = LSTMForecaster(2, 8, 1, num_layers=3).double()
    weights = {}
    for layer, cell in enumerate(stack.cells):
        assert isinstance(cell, LSTMCell)
        for bias in (cell.b_f, cell.b_i, cell.b_C, cell.b_o):
            nn.init.normal_(bias)
        gates = torch.cat((cell.W_i, cell.W_f, cell.W_C, cell.W_o))
        biases = torch.cat((cell.b_i, cell.b_f, cell.b_C, cell.b_o))
        weights[f"weight_hh_l{layer}"] = gates[:, :8]
        weights[f"weight_ih_l{layer}"] = gates[:, 8:]
        weights[f"bias_ih_l{layer}"] = biases
        weights[f"bias_hh_l{layer}"] = torch.zeros_like(biases)
    twin.lstm.load_state_dict(weights)
    twin.head.load_state_dict(stack.head.state_dict())
    x = torch.randn(4, 50, 2, dtype=torch.float64)
    (y, states), (twin_y, (twin_h, twin_c)) = stack(x), twin(x)
    torch.testing.assert_close(y, twin_y, atol=1e-12, rtol=0)
    for layer, (h, c) in enumerate(states):
        torch.testing.assert_close(h, twin_h[layer], atol=1e-12, rtol=0)
        torch.testing.assert_close(c, twin_c[layer], atol=1e-12, rtol=0)
