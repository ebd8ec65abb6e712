"""What is written by hand in the tutorials' networks is what the books say."""

import math

import pytest
import torch
from torch import nn

from models.predictors import (
    AttentionLSTM,
    LuongAttention,
    NormLSTM,
    PositionalEncoding,
    Seq2Seq,
    StockPredictor,
    TransformerForecaster,
)


def test_the_stock_predictor_is_its_lstm_and_a_line_on_the_last_output() -> None:
    """Layer on layer from a state of zeros; and a second call equals the first."""
    torch.manual_seed(0)
    model = StockPredictor(5, 8, 2, 1).eval()
    x = torch.randn(3, 7, 5)
    _, (h, _) = model.lstm(x)
    assert torch.equal(model(x), h[-1] @ model.fc.weight.T + model.fc.bias)
    assert torch.equal(model(x), model(x))


def test_attention_weighs_the_outputs_as_worked_out_by_hand() -> None:
    """Scores ln 3 and 0 for two steps: three quarters of the first, one of the second."""

    class Outputs(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            return x, None

    model = AttentionLSTM(2, 2, 1)
    model.lstm = Outputs()  # type: ignore[assignment]
    with torch.no_grad():
        model.attention.weight.copy_(torch.tensor([[1.0, 0.0]]))
        model.attention.bias.fill_(5.0)  # the same for all, so it changes nothing
        model.fc.weight.copy_(torch.tensor([[1.0, 10.0]]))
        model.fc.bias.zero_()
    x = torch.tensor([[[math.log(3), 4.0], [0.0, 8.0]]])
    assert model(x).item() == pytest.approx(0.75 * math.log(3) + 10 * (0.75 * 4 + 0.25 * 8))


def test_norm_divides_by_the_running_deviation_when_it_is_in_use() -> None:
    """In evaluation (h - mean) / sqrt(var + eps) * gamma + beta, feature by feature."""
    torch.manual_seed(0)
    model = NormLSTM(1, 3, 1)
    for _ in range(5):
        model(torch.randn(16, 4, 1))
    nn.init.normal_(model.bn.weight)
    nn.init.normal_(model.bn.bias)
    model.eval()
    x = torch.randn(2, 4, 1)
    _, (h, _) = model.lstm(x)
    mean, var = model.bn.running_mean, model.bn.running_var
    assert mean is not None
    assert var is not None
    normal = (h[0] - mean) / torch.sqrt(var + 1e-5) * model.bn.weight + model.bn.bias
    torch.testing.assert_close(model(x), model.fc(normal), atol=1e-6, rtol=0)
    assert not torch.allclose(model(x), model.fc(h[0]), atol=1e-3)


def test_luongs_attention_is_a_softmax_over_the_products() -> None:
    """With W the identity and h = (ln 3, 0), outputs (1, 0) and (0, 4) weigh 3/4 and 1/4."""
    attention = LuongAttention(2)
    nn.init.eye_(attention.W.weight)
    h = torch.tensor([[math.log(3), 0.0]])
    context = attention(h, torch.tensor([[[1.0, 0.0], [0.0, 4.0]]]))
    assert context[0].tolist() == pytest.approx([0.75, 1.0])


def test_attention_equals_torchs_scaled_product_but_for_the_scale() -> None:
    """``scaled_dot_product_attention`` with scale 1, W h as query, the outputs as key and value."""
    torch.manual_seed(0)
    attention = LuongAttention(6)
    h, outputs = torch.randn(3, 6), torch.randn(3, 9, 6)
    theirs = nn.functional.scaled_dot_product_attention(
        attention.W(h).unsqueeze(1), outputs, outputs, scale=1.0
    )
    torch.testing.assert_close(attention(h, outputs), theirs[:, 0], atol=1e-6, rtol=0)


def test_the_decoder_goes_on_from_the_encoder_and_from_its_own_forecasts() -> None:
    """A longer horizon begins with the shorter; the first step is the decoder's on the last x."""
    torch.manual_seed(0)
    short, long = Seq2Seq(2, 4, 3), Seq2Seq(2, 4, 7)
    long.load_state_dict(short.state_dict())
    x = torch.randn(5, 6, 2)
    torch.testing.assert_close(long(x)[:, :3], short(x), atol=1e-6, rtol=0)
    outputs, (h, c) = short.encoder(x)
    h, c = short.decoder(x[:, -1], (h[0], c[0]))
    first = short.fc(torch.cat((h, short.attention(h, outputs)), dim=1))
    torch.testing.assert_close(short(x)[:, 0], first, atol=1e-6, rtol=0)
    h, c = short.decoder(first, (h, c))
    second = short.fc(torch.cat((h, short.attention(h, outputs)), dim=1))
    torch.testing.assert_close(short(x)[:, 1], second, atol=1e-6, rtol=0)


def test_positions_are_the_sines_and_cosines_of_the_paper() -> None:
    """Position 3, features 0 to 3 of 4: rates 1 and 1/100."""
    encoding = PositionalEncoding(4, max_len=5)
    added = encoding(torch.ones(2, 5, 4)) - 1
    expected = [math.sin(3), math.cos(3), math.sin(0.03), math.cos(0.03)]
    assert added[1, 3].tolist() == pytest.approx(expected, abs=1e-6)
    assert added[0, 0].tolist() == pytest.approx([0, 1, 0, 1], abs=1e-6)


def test_the_transformer_knows_the_order_of_its_window() -> None:
    """Two steps exchanged change the forecast, and evaluation equals training without dropout."""
    torch.manual_seed(0)
    model = TransformerForecaster(1, 8, 2, 2, 1)
    x = torch.randn(3, 6, 1)
    trained = model(x)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x), trained, atol=1e-5, rtol=0)
        exchanged = x[:, [1, 0, 2, 3, 4, 5]]
        assert (model(exchanged) - model(x)).abs().min() > 1e-5
