"""Networks that hide their state, and what authors leave lying about in them."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from tests.export.authors.entry import Entry, last, road, tokens, waves, whole, windows


class ProjectedLSTM(nn.Module):
    """time first, proj_size, three layers, no bias"""

    def __init__(self, n_in=4, n=10, proj=5):
        super().__init__()
        self.rnn = nn.LSTM(n_in, n, 3, bias=False, dropout=0.1, proj_size=proj)
        self.fc = nn.Linear(proj, 2)

    def forward(self, x):
        return self.fc(self.rnn(x)[0])


class EncoderDecoder(nn.Module):
    """an encoder and a decoder over the same steps; the decoder sees what the encoder has seen"""

    def __init__(self, n=3, hidden=8):
        super().__init__()
        self.encoder = nn.GRU(n, hidden, batch_first=True)
        self.decoder = nn.LSTM(hidden + n, hidden, batch_first=True)
        self.out = nn.Linear(hidden, n)

    def forward(self, x):
        memory, _ = self.encoder(x)
        out, _ = self.decoder(torch.cat([memory, x], dim=2))
        return self.out(out)


class BiClassifier(nn.Module):
    """both directions, and the last step of both: served on windows"""

    def __init__(self, n=3, hidden=8, classes=3):
        super().__init__()
        self.bilstm = nn.LSTM(n, hidden, 2, batch_first=True, bidirectional=True, dropout=0.2)
        self.fc = nn.Linear(2 * hidden, classes)

    def forward(self, x):
        h0 = torch.zeros(4, x.size(0), 8)
        c0 = torch.zeros(4, x.size(0), 8)
        out, _ = self.bilstm(x, (h0, c0))
        return self.fc(out[:, -1, :])


class CharModel(nn.Module):
    """the names of the tutorial: embedding, two layers, decoder; hidden as a tuple or None"""

    def __init__(self, vocab=20, emb=6, hidden=10):
        super().__init__()
        self.embed = nn.Embedding(vocab, emb)
        self.gru = nn.GRU(emb, hidden, 2, batch_first=True, dropout=0.1)
        self.decoder = nn.Linear(hidden, vocab)

    def forward(self, ids, hidden=None):
        out, hidden = self.gru(self.embed(ids), hidden)
        return self.decoder(out), hidden


class NormedLayers(nn.Module):
    """BatchNorm1d, which wants channels before time, then LayerNorm, between three kinds of RNN"""

    def __init__(self, n=3, hidden=8):
        super().__init__()
        self.lstm = nn.LSTM(n, hidden, batch_first=True)
        self.bn = nn.BatchNorm1d(hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.ln = nn.LayerNorm(hidden)
        self.rnn = nn.RNN(hidden, hidden, nonlinearity="relu", batch_first=True)
        self.fc = nn.Linear(hidden, 1)

    def forward(self, x):
        x = self.lstm(x)[0]
        x = self.bn(x.transpose(1, 2)).transpose(1, 2)
        x = self.ln(self.gru(x)[0])
        return self.fc(0.3 * self.rnn(x)[0])


class LoopedCells(nn.Module):
    """the tutorial of sine waves: two cells, a loop over columns, a list of outputs, cat"""

    def __init__(self, hidden=9):
        super().__init__()
        self.lstm1, self.lstm2 = nn.LSTMCell(1, hidden), nn.LSTMCell(hidden, hidden)
        self.linear, self.hidden = nn.Linear(hidden, 1), hidden

    def forward(self, input, future=0):
        outputs = []
        h_t, c_t, h_t2, c_t2 = (
            torch.zeros(input.size(0), self.hidden, dtype=input.dtype) for _ in range(4)
        )
        for input_t in input.split(1, dim=1):
            h_t, c_t = self.lstm1(input_t.squeeze(1), (h_t, c_t))
            h_t2, c_t2 = self.lstm2(h_t, (h_t2, c_t2))
            output = self.linear(h_t2)
            outputs += [output]
        for _ in range(future):
            h_t, c_t = self.lstm1(output, (h_t, c_t))
            h_t2, c_t2 = self.lstm2(h_t, (h_t2, c_t2))
            output = self.linear(h_t2)
            outputs += [output]
        return torch.stack(outputs, dim=1)


class SmallestLSTM(nn.Module):
    """one feature, one unit; answers a number a row"""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(1, 1, batch_first=True)

    def forward(self, x):
        out, (h, c) = self.lstm(x)
        return h[-1]


class ManyOutputs(nn.Module):
    """as many outputs as a probe has steps, and as many units as it has rows"""

    def __init__(self, n=2, hidden=3, outputs=5):
        super().__init__()
        self.cell = nn.LSTM(n, hidden)
        self.fc = nn.Linear(hidden, outputs)

    def forward(self, seq, state=None):
        out, state = self.cell(seq, state)
        return self.fc(out), state


class PackedList(nn.Module):
    """packs a list of sequences, as a collate function would"""

    def __init__(self, n=3, hidden=8):
        super().__init__()
        self.gru = nn.GRU(n, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 1)

    def forward(self, x):
        packed = pack_sequence(list(x))
        out, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return self.fc(out)


class HandLoopGRU(nn.Module):
    """z multiplies the old state, reset before the product, weights as F.linear takes them"""

    def __init__(self, n=3, hidden=8):
        super().__init__()
        self.Wz, self.Wr, self.Wn = (nn.Parameter(torch.randn(hidden, n) * 0.4) for _ in range(3))
        self.Uz, self.Ur, self.Un = (
            nn.Parameter(torch.randn(hidden, hidden) * 0.4) for _ in range(3)
        )
        self.bz, self.br, self.bn = (nn.Parameter(torch.zeros(hidden)) for _ in range(3))
        self.hidden = hidden

    def forward(self, x):
        h = torch.zeros(x.shape[0], self.hidden, device=x.device, dtype=x.dtype)
        for t in range(x.shape[1]):
            z = torch.sigmoid(torch.addmm(self.bz, x[:, t], self.Wz.T) + h.mm(self.Uz.T))
            r = torch.sigmoid(torch.addmm(self.br, x[:, t], self.Wr.T) + h.mm(self.Ur.T))
            n = torch.tanh(torch.addmm(self.bn, x[:, t], self.Wn.T) + (r * h).mm(self.Un.T))
            h = z * h + (1 - z) * n
        return h


class StackedOwnCells(nn.Module):
    """layers of hand-written cells, run layer by layer over the sequence"""

    def __init__(self, sizes=(3, 8, 6)):
        super().__init__()
        self.weights = nn.ParameterDict()
        self.sizes = sizes
        for k, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            self.weights[f"w{k}"] = nn.Parameter(torch.randn(a + b, 4 * b) * 0.3)
            self.weights[f"b{k}"] = nn.Parameter(torch.zeros(4 * b))

    def forward(self, x):
        for k, n in enumerate(self.sizes[1:]):
            h = c = x.new_zeros(x.size(0), n)
            out = []
            for x_t in x.unbind(1):
                gates = torch.cat((x_t, h), 1) @ self.weights[f"w{k}"] + self.weights[f"b{k}"]
                g, o, f, i = gates.split(n, dim=1)
                c = c * torch.sigmoid(f) + torch.tanh(g) * torch.sigmoid(i)
                h = torch.tanh(c) * torch.sigmoid(o)
                out.append(h)
            x = torch.stack(out, 1)
        return x


class SelfAttentive(nn.Module):
    """additive attention over time, masked with nothing, and the last state beside the context"""

    def __init__(self, n=3, hidden=8):
        super().__init__()
        self.lstm = nn.LSTM(n, hidden, batch_first=True)
        self.attention = nn.Sequential(nn.Linear(hidden, 6), nn.Tanh(), nn.Linear(6, 1))
        self.fc = nn.Linear(2 * hidden, 2)

    def forward(self, x):
        out, (h, _) = self.lstm(x)
        weights = F.softmax(self.attention(out), dim=1)
        context = (weights * out).sum(dim=1)
        return self.fc(torch.cat([context, h[-1]], dim=1))


ENTRIES = {
    "projected": Entry(
        ProjectedLSTM,
        waves(4),
        lambda m, x: m(x.transpose(0, 1)).transpose(0, 1),
        "X -> Y; X is (time, batch, ...)",
        roads=road("general"),  # ONNX's LSTM has no projection
        gain=2.5,
    ),
    "encoder-decoder": Entry(EncoderDecoder, waves(3), whole, roads=road("gru", "lstm")),
    "bidirectional": Entry(BiClassifier, waves(3), last, refused="`bilstm` is bidirectional"),
    "bidirectional-windowed": Entry(
        BiClassifier, waves(3), windows(10), window=10, roads=road("general")
    ),
    "char-gru": Entry(CharModel, tokens(20), lambda m, x: m(x)[0], roads=road("gru")),
    "normed-layers": Entry(NormedLayers, waves(3), whole, roads=road("lstm", "gru", "rnn")),
    "looped-cells": Entry(LoopedCells, waves(1), whole),
    "smallest": Entry(SmallestLSTM, waves(1), last),
    "many-outputs": Entry(
        ManyOutputs, waves(2), lambda m, x: m(x.transpose(0, 1))[0].transpose(0, 1)
    ),
    "packed-list": Entry(PackedList, waves(3), whole, roads=road("gru")),
    "hand-gru": Entry(HandLoopGRU, waves(3), last, roads=road("gru")),
    "own-stack": Entry(StackedOwnCells, waves(3), whole),
    "self-attentive": Entry(SelfAttentive, waves(3), last, roads=road("lstm", "general")),
}
