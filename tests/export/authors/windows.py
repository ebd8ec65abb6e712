"""Convolution, pooling and reconstruction around a recurrent layer: over time or within a step."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.export.authors.entry import Entry, last, road, waves, whole, windows


class CNNLSTM(nn.Module):
    """convolution over time within the window, so the middle of it sees what comes after"""

    def __init__(self, features=3, hidden=12):
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv1d(features, 8, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool1d(2)
        )
        self.lstm = nn.LSTM(8, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 1)

    def forward(self, x):
        z = self.cnn(x.permute(0, 2, 1)).permute(0, 2, 1)
        _, (h, _) = self.lstm(z)
        return self.fc(h.squeeze(0))


class CausalConvLSTM(nn.Module):
    """padded on the left, so it never looks ahead; what it needs is the last two inputs"""

    def __init__(self, features=3, hidden=12):
        super().__init__()
        self.conv = nn.Conv1d(features, 8, kernel_size=3)
        self.lstm = nn.LSTM(8, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 1)

    def forward(self, x):
        z = F.relu(self.conv(F.pad(x.transpose(1, 2), (2, 0))))
        out, _ = self.lstm(z.transpose(1, 2))
        return self.fc(out)


class FeatureConvLSTM(nn.Module):
    """convolution over the features of a step"""

    def __init__(self, features=8, hidden=12):
        super().__init__()
        self.conv = nn.Conv1d(1, 4, kernel_size=3, stride=2)
        self.lstm = nn.LSTM(4 * 3, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 2)

    def forward(self, x):
        B, T, D = x.shape
        z = F.leaky_relu(self.conv(x.reshape(B * T, 1, D)), 0.1).flatten(1)
        out, _ = self.lstm(z.view(B, T, -1))
        return self.fc(out)


class LSTMAutoencoder(nn.Module):
    """the window through a bottleneck and back"""

    def __init__(self, n_features=2, embedding_dim=8):
        super().__init__()
        self.enc = nn.LSTM(n_features, embedding_dim, batch_first=True)
        self.dec = nn.LSTM(embedding_dim, embedding_dim, batch_first=True)
        self.output_layer = nn.Linear(embedding_dim, n_features)

    def forward(self, x):
        seq_len = x.shape[1]
        _, (hidden_n, _) = self.enc(x)
        z = hidden_n[-1].unsqueeze(1).repeat(1, seq_len, 1)
        z, _ = self.dec(z)
        return self.output_layer(z)


class AttentionPool(nn.Module):
    """scores of all steps, softmax over the time, the weighted sum of the outputs"""

    def __init__(self, n=3, hidden=12, classes=3):
        super().__init__()
        self.lstm = nn.LSTM(n, hidden, batch_first=True)
        self.w = nn.Linear(hidden, hidden)
        self.v = nn.Linear(hidden, 1, bias=False)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x):
        H, _ = self.lstm(x)
        alpha = torch.softmax(self.v(torch.tanh(self.w(H))).squeeze(-1), dim=1)
        context = torch.bmm(alpha.unsqueeze(1), H).squeeze(1)
        return self.fc(context)


class MeanPool(nn.Module):
    """the mean and the maximum of all outputs"""

    def __init__(self, n=3, hidden=12, classes=3):
        super().__init__()
        self.gru = nn.GRU(n, hidden, batch_first=True)
        self.fc = nn.Linear(2 * hidden, classes)

    def forward(self, x):
        out, _ = self.gru(x)
        return self.fc(torch.cat([out.mean(dim=1), out.max(dim=1)[0]], dim=1))


ENTRIES = {
    "cnn-lstm": Entry(
        CNNLSTM,
        waves(3),
        windows(24),
        window=24,
        roads=road("general"),
    ),
    "causal-conv": Entry(
        CausalConvLSTM,
        waves(3),
        whole,
        roads=road("lstm", "general"),
    ),
    "feature-conv": Entry(
        FeatureConvLSTM,
        waves(8),
        whole,
        roads=road("lstm"),
    ),
    "autoencoder": Entry(
        LSTMAutoencoder,
        waves(2),
        windows(16, lambda y: y[:, -1]),
        window=16,
        roads=road("general"),
    ),
    "attention-pool": Entry(
        AttentionPool,
        waves(3),
        last,
        roads=road("general"),  # bmm is a product of two varying values
    ),
    "mean-max-pool": Entry(
        MeanPool,
        waves(3),
        last,
        roads=road("gru", "general"),
    ),
}
