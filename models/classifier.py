"""The bidirectional classifier of the tutorials.

Shape letters: B batch, T time, I input, H hidden, K classes.
"""

import torch
from torch import Tensor, nn


class BidirectionalClassifier(nn.Module):
    """Reads a window forwards and backwards, and decides on both last states.

    After Schuster & Paliwal, "Bidirectional Recurrent Neural Networks" (1997).

    Args:
        input_size: I.
        hidden_size: H, of each direction.
        num_classes: K.
    """

    def __init__(self, input_size: int, hidden_size: int, num_classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, I), standardised (unitless), to logits (B, K)."""
        _, (h, _) = self.lstm(x)  # (2, B, H): forwards, backwards
        logits: Tensor = self.fc(torch.cat((h[-2], h[-1]), dim=1))
        return logits
