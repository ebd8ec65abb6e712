"""The two forecasters are one function, and time can be cut anywhere."""

import pytest
import torch
from torch import Tensor, nn

from models.networks import CellForecaster, LSTMForecaster


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
    return [CellForecaster(2, 8, 2), LSTMForecaster(2, 8, 2, num_layers=2, dropout=0.5).eval()]


@pytest.mark.parametrize("model", models(), ids=["cell", "lstm"])
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
    for part, whole in zip(state or (), whole_state, strict=True):
        torch.testing.assert_close(part, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("model", models(), ids=["cell", "lstm"])
def test_the_state_starts_as_zeros_and_is_not_kept(model: nn.Module) -> None:
    """No state equals a state of zeros, and a second call from none equals the first."""
    x = torch.randn(3, 5, 2)
    first, (h, c) = model(x)
    assert torch.equal(model(x)[0], first)
    assert torch.equal(model(x, (torch.zeros_like(h), torch.zeros_like(c)))[0], first)
    assert not torch.equal(model(x, (h, c))[0], first)


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
