"""The LSTM autoencoder of the tutorials.

Shape letters: B batch, T time, I input, H hidden.
"""

from torch import Tensor, nn


class AnomalyDetector(nn.Module):
    """Reads a window into one hidden state, and writes the window again from that alone.

    After Malhotra et al., "LSTM-based Encoder-Decoder for Multi-sensor Anomaly Detection" (2016),
    in the form of most tutorials: the decoder sees the state at each step, and not its own output.

    Args:
        input_size: I.
        hidden_size: H: the narrow place.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.encoder = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.decoder = nn.LSTM(hidden_size, hidden_size, batch_first=True)
        self.fc = nn.Linear(hidden_size, input_size)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, I), standardised (unitless), to its reconstruction, the same shape."""
        _, (h, _) = self.encoder(x)
        repeated = h[-1].unsqueeze(1).repeat(1, x.size(1), 1)  # (B, T, H)
        out, _ = self.decoder(repeated)
        reconstruction: Tensor = self.fc(out)
        return reconstruction
