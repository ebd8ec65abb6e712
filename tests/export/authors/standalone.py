"""Models as they lie in their author's folder: nothing but torch, and no package around them."""

import torch
import torch.nn as nn
from torch import Tensor


class Forecaster(nn.Module):
    """dropout, two layers, the last step; trained under DataParallel"""

    def __init__(self, input_size: int = 4, hidden_size: int = 12, num_layers: int = 2) -> None:
        super(Forecaster, self).__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True, dropout=0.2)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        y: Tensor = self.fc(self.dropout(out[:, -1]))
        return y


class LSTMCell(nn.Module):
    """four matrices over cat(h, x)"""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.Wf, self.Wi, self.Wc, self.Wo = (
            nn.Linear(hidden_size + input_size, hidden_size) for _ in range(4)
        )

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        hx = torch.cat((h, x), dim=1)
        f, i, o = (torch.sigmoid(w(hx)) for w in (self.Wf, self.Wi, self.Wo))
        c = f * c + i * torch.tanh(self.Wc(hx))
        return o * torch.tanh(c), c


class CharRNN(nn.Module):
    def __init__(self, n_tokens: int = 11, n_hidden: int = 10) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, 6)
        self.rnn = nn.GRU(6, n_hidden, batch_first=True)
        self.fc = nn.Linear(n_hidden, n_tokens)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out, hidden = self.rnn(self.embedding(x), hidden)
        return self.fc(out), hidden


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 6, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.lstm(x)[0])
        return y


class TwoHeads(nn.Module):
    """a dict out, of which either entry may be what is wanted"""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 8)
        self.mean, self.spread = nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        out, state = self.lstm(x, state)
        return {"mean": self.mean(out), "spread": self.spread(out).exp(), "state": state}
