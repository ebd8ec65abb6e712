"""Networks as the tutorials have them: a window in, a forecast out, the state kept inside.

They stand here as people write them, for an exporter that takes them as they are: no state in the
arguments, zeros made in ``forward``, nothing that a tutorial would not have.

Shape letters: B batch, T time, I input, O output, H hidden, L layers.
"""

import math

import torch
from torch import Tensor, nn


class StockPredictor(nn.Module):
    """Stacked ``nn.LSTM``, and a linear layer on its last output.

    Args:
        input_size: I, features of a bar: open, high, low, close, volume.
        hidden_size: H.
        num_layers: L.
        output_size: O.
        dropout: between layers, in training only.
    """

    def __init__(
        self,
        input_size: int = 5,
        hidden_size: int = 64,
        num_layers: int = 2,
        output_size: int = 1,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.lstm = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True, dropout=dropout)
        self.fc = nn.Linear(hidden_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, I) to y (B, O), both standardised (unitless): the forecast after the last."""
        h0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size, device=x.device)
        c0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size, device=x.device)
        out, _ = self.lstm(x, (h0, c0))  # (B, T, H)
        y: Tensor = self.fc(out[:, -1])
        return y


class AttentionLSTM(nn.Module):
    """``nn.LSTM``, then a softmax over time that says how much each output counts.

    The additive pooling of Yang et al., "Hierarchical Attention Networks" (2016), in the short form
    of most tutorials: one score per step, from one linear layer.

    Args:
        input_size: I.
        hidden_size: H.
        output_size: O.
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.attention = nn.Linear(hidden_size, 1)
        self.fc = nn.Linear(hidden_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, I) to y (B, O), both standardised (unitless)."""
        out, _ = self.lstm(x)  # (B, T, H)
        weights = torch.softmax(self.attention(out), dim=1)  # (B, T, 1)
        context = torch.sum(weights * out, dim=1)  # (B, H)
        y: Tensor = self.fc(context)
        return y


class NormLSTM(nn.Module):
    """``nn.LSTM``, batch normalisation of its last output (Ioffe & Szegedy, 2015), linear layer.

    Args:
        input_size: I.
        hidden_size: H.
        output_size: O.
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.bn = nn.BatchNorm1d(hidden_size)
        self.fc = nn.Linear(hidden_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, I) to y (B, O), both standardised (unitless): the forecast after the last."""
        out, _ = self.lstm(x)  # (B, T, H)
        last = self.bn(out[:, -1, :])  # (B, H)
        y: Tensor = self.fc(last)
        return y


class LuongAttention(nn.Module):
    """Which of the encoder's outputs matter to the decoder now; the "general" score.

    Luong, Pham & Manning, "Effective Approaches to Attention-based NMT" (2015).

    Args:
        hidden_size: H, of encoder and decoder.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.W = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, h: Tensor, encoder_outputs: Tensor) -> Tensor:
        """h (B, H) and encoder_outputs (B, T, H) to the context, (B, H)."""
        scores = torch.bmm(encoder_outputs, self.W(h).unsqueeze(2))  # (B, T, 1)
        weights = torch.softmax(scores, dim=1)
        return torch.bmm(weights.transpose(1, 2), encoder_outputs).squeeze(1)


class Seq2Seq(nn.Module):
    """Encoder ``nn.LSTM``, decoder ``nn.LSTMCell`` with attention; forecasts a horizon.

    The decoder begins with the encoder's state and the last value, and goes on from its own
    forecasts.

    Args:
        input_size: I; the forecast has the same features.
        hidden_size: H.
        horizon: steps to forecast.
    """

    def __init__(self, input_size: int, hidden_size: int, horizon: int) -> None:
        super().__init__()
        self.horizon = horizon
        self.encoder = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.decoder = nn.LSTMCell(input_size, hidden_size)
        self.attention = LuongAttention(hidden_size)
        self.fc = nn.Linear(2 * hidden_size, input_size)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, I) to y (B, horizon, I), both standardised (unitless)."""
        encoder_outputs, (h, c) = self.encoder(x)
        h, c = h.squeeze(0), c.squeeze(0)
        step = x[:, -1]
        outputs = []
        for _ in range(self.horizon):
            h, c = self.decoder(step, (h, c))
            context = self.attention(h, encoder_outputs)
            step = self.fc(torch.cat((h, context), dim=1))
            outputs.append(step)
        return torch.stack(outputs, dim=1)


class PositionalEncoding(nn.Module):
    """Adds sines and cosines that tell the steps apart (Vaswani et al., 2017, section 3.5).

    Args:
        d_model: features of a step, even.
        max_len: the longest window.
    """

    pe: Tensor

    def __init__(self, d_model: int, max_len: int = 500) -> None:
        super().__init__()
        position = torch.arange(max_len).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
        pe = torch.zeros(1, max_len, d_model)
        pe[0, :, 0::2] = torch.sin(position * div_term)
        pe[0, :, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, d_model) to the same shape."""
        return x + self.pe[:, : x.size(1)]


class TransformerForecaster(nn.Module):
    """Transformer encoder over a window, and a linear layer on its last step.

    Args:
        input_size: I.
        d_model: features of a step inside.
        nhead: attention heads.
        num_layers: L, encoder layers.
        output_size: O.
    """

    def __init__(
        self, input_size: int, d_model: int, nhead: int, num_layers: int, output_size: int
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(input_size, d_model)
        self.positions = PositionalEncoding(d_model)
        layer = nn.TransformerEncoderLayer(
            d_model, nhead, dim_feedforward=2 * d_model, dropout=0.0, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers)
        self.fc = nn.Linear(d_model, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, I) to y (B, O), both standardised (unitless): the forecast after the last."""
        out = self.encoder(self.positions(self.embed(x)))  # (B, T, d_model)
        y: Tensor = self.fc(out[:, -1])
        return y
