"""The CharRNN of the tutorials.

Shape letters: B batch, T time, V vocabulary, H hidden, L layers.
"""

import torch
from torch import Tensor, nn


class CharRNN(nn.Module):
    """Embedding, stacked ``nn.LSTM`` and a linear layer: logits of the next character.

    After Karpathy, "The Unreasonable Effectiveness of Recurrent Neural Networks" (2015).

    Args:
        vocab_size: V.
        embed_size: features of an embedded character.
        hidden_size: H.
        num_layers: L.
    """

    def __init__(
        self, vocab_size: int, embed_size: int, hidden_size: int, num_layers: int = 2
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.embedding = nn.Embedding(vocab_size, embed_size)
        self.lstm = nn.LSTM(embed_size, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, vocab_size)

    def forward(
        self, x: Tensor, hidden: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B, T) int64, token ids, to logits (B, T, V); hidden is (h, c), each (L, B, H)."""
        out, hidden = self.lstm(self.embedding(x), hidden)
        return self.fc(out), hidden

    def init_hidden(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """(h, c), zeros, each (L, B, H)."""
        weight = next(self.parameters())
        zeros = weight.new_zeros(self.num_layers, batch_size, self.hidden_size)
        return zeros, torch.zeros_like(zeros)
