"""What is easily mistaken: axes of equal sizes, other types, weights that are not where they are
looked for, gates that look like others.
"""

import math

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.export.authors.entry import Entry, beside, constants, road, waves, whole
from tests.export.authors.habits import run_pair, stepped, zeros


class TwoByTwo(nn.Module):
    """two inputs, two units, two layers, in one tensor whose first axis is the layer"""

    def __init__(self, n=2):
        super().__init__()
        self.gru = nn.GRU(n, n, num_layers=2)

    def forward(self, x, h):
        out, h = self.gru(x.unsqueeze(0), h)
        return out.squeeze(0), h


class ThreeThree(nn.Module):
    """as many units as inputs and as rows of a probe: h @ x would fit as well"""

    def __init__(self, n=3):
        super().__init__()
        self.W, self.U = nn.Parameter(torch.randn(n, 4 * n)), nn.Parameter(torch.randn(n, 4 * n))
        self.b = nn.Parameter(torch.zeros(4 * n))

    def forward(self, x, h, c):
        z = torch.einsum("bi,ij->bj", x, self.W) + torch.einsum("bh,hj->bj", h, self.U) + self.b
        i, f, g, o = torch.split(z, z.shape[1] // 4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class DoubleInside(nn.Module):
    """computes in float64 whatever it is given, and answers in float32"""

    def __init__(self, n_in=3, n=8):
        super().__init__()
        self.lstm = nn.LSTM(n_in, n, batch_first=True).double()
        self.fc = nn.Linear(n, 1).double()

    def forward(self, x):
        out, _ = self.lstm(x.double())
        return self.fc(out).float()


class ColumnState(nn.Module):
    """everything has the batch last: x (I, B), h and c (H, B)"""

    def __init__(self, n_in=3, n=8):
        super().__init__()
        self.W = nn.Parameter(torch.randn(4 * n, n_in + n) * 0.3)
        self.b = nn.Parameter(torch.zeros(4 * n, 1))

    def forward(self, x, hc):
        h, c = hc
        i, f, o, g = (self.W @ torch.cat([x, h], 0) + self.b).chunk(4, 0)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, c


class TiedAutoencoder(nn.Module):
    """the way out is the transpose of the way in; a frozen norm and a buffer that counts"""

    def __init__(self, n=5, hidden=8):
        super().__init__()
        self.emb = nn.Linear(n, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden, affine=False)
        self.rnn = nn.LSTM(hidden, hidden, batch_first=True)
        self.bias = nn.Parameter(torch.zeros(n))
        self.register_buffer("steps_trained", torch.tensor(4200))

    def forward(self, x):
        z = self.emb(x)
        z = self.norm(z.flatten(0, 1)).view_as(z)
        return F.linear(self.rnn(z)[0], self.emb.weight.t(), self.bias)


class SoftplusGate(nn.Module):
    """near an LSTM: the candidate is softsign, the output gate looks at the new c by a matrix"""

    def __init__(self, n_in=3, n=8):
        super().__init__()
        self.x2g, self.h2g = nn.Linear(n_in, 4 * n), nn.Linear(n, 4 * n)
        self.peep = nn.Linear(n, n, bias=False)

    def forward(self, x, state):
        h, c = state
        i, f, g, o = (self.x2g(x) + self.h2g(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * F.softsign(g)
        h = torch.sigmoid(o + self.peep(c)) * torch.tanh(c)
        return h, (h, c)


class HandSigmoid(nn.Module):
    """1 / (1 + exp(-x)) written out, tanh from two exponentials, gates one by one"""

    def __init__(self, n_in=3, n=8):
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(n_in + n, n) for _ in range(4))

    @staticmethod
    def sigmoid(z):
        return 1 / (1 + torch.exp(-z))

    def forward(self, x, h, c):
        v = torch.hstack([x, h])
        f, i, o = (self.sigmoid(gate(v)) for gate in self.gates[:3])
        c = f * c + i * torch.tanh(self.gates[3](v))
        return o * torch.tanh(c), c


class MinimalRNN(nn.Module):
    """residual: h + tanh(...), with a decay that is not learned; math.sqrt and item() inside"""

    def __init__(self, n_in=3, n=8, decay=0.8):
        super().__init__()
        self.inp, self.rec = nn.Linear(n_in, n), nn.Linear(n, n, bias=False)
        self.decay = torch.tensor(decay)

    def forward(self, x, h):
        scale = 1.0 / math.sqrt(h.shape[-1])
        return self.decay.item() * h + torch.tanh(self.inp(x) + scale * self.rec(h))


class Conditioned(nn.Module):
    """FiLM: what is known of the session scales and shifts the input of every step"""

    def __init__(self, n_in=3, known=2, n=8):
        super().__init__()
        self.film = nn.Linear(known, 2 * n_in)
        self.lstm = nn.LSTM(n_in, n, batch_first=True)
        self.fc = nn.Linear(n, 1)

    def forward(self, x, condition, state=None):
        gamma, beta = self.film(condition).unsqueeze(1).chunk(2, -1)
        out, state = self.lstm(x * (1 + gamma) + beta, state)
        return self.fc(out), state


class OneTensorLayers(nn.Module):
    """(layers, batch, 2 * hidden): h and c of a layer side by side"""

    def __init__(self, n_in=3, n=6):
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(n_in, n), nn.LSTMCell(n, n)])

    def forward(self, x, memory):
        after = []
        for cell, both in zip(self.cells, memory, strict=True):
            h, c = cell(x, both.chunk(2, -1))
            after.append(torch.cat([h, c], -1))
            x = h
        return x, torch.stack(after)


class EchoState(nn.Module):
    """a reservoir that is never trained, in a buffer; leaky; only the way out is learned"""

    def __init__(self, n_in=3, n=16, leak=0.3):
        super().__init__()
        rng = np.random.default_rng(5)
        self.register_buffer("W_in", torch.from_numpy(rng.uniform(-1, 1, (n, n_in))).float())
        W = rng.standard_normal((n, n)) * (rng.random((n, n)) < 0.3)
        W *= 0.9 / np.abs(np.linalg.eigvals(W)).max()
        self.register_buffer("W", torch.from_numpy(W).float(), persistent=False)
        self.out, self.leak = nn.Linear(n + n_in, 1), leak

    def forward(self, u):
        state = torch.zeros(u.size(0), self.W.size(0))
        ys = []
        for u_t in u.unbind(1):
            new = torch.tanh(u_t @ self.W_in.T + state @ self.W.T)
            state = (1 - self.leak) * state + self.leak * new
            ys.append(self.out(torch.cat([state, u_t], 1)))
        return torch.stack(ys, 1)


def run_columns(m, x):
    h = c = torch.zeros(8, len(x))
    ys = []
    for t in range(x.size(1)):
        h, c = m(x[:, t].T, (h, c))
        ys.append(h.T)
    return torch.stack(ys, 1)


ENTRIES = {
    "two-by-two": Entry(
        TwoByTwo,
        waves(2),
        lambda m, x: stepped(m, x, zeros(x, 2, len(x), 2), lambda m, x, h: m(x, h)),
        roads=road("gru"),
    ),
    "three-three": Entry(
        ThreeThree, waves(3), run_pair(lambda m, x, s: (m(x, *s)[0], m(x, *s)), 3)
    ),
    "double-inside": Entry(DoubleInside, waves(3), whole),
    "batch-last": Entry(ColumnState, waves(3), run_columns),
    "tied": Entry(TiedAutoencoder, waves(5), whole),
    "matrix-peephole": Entry(
        SoftplusGate, waves(3), run_pair(lambda m, x, s: m(x, s), 8), roads=road("general")
    ),
    "hand-sigmoid": Entry(
        HandSigmoid, waves(3), run_pair(lambda m, x, s: (m(x, *s)[0], m(x, *s)), 8)
    ),
    "residual-rnn": Entry(
        MinimalRNN,
        waves(3),
        lambda m, x: stepped(m, x, zeros(x, len(x), 8), lambda m, x, h: (m(x, h),) * 2),
        roads=road("general"),
    ),
    "conditioned": Entry(
        Conditioned,
        beside(waves(3), constants(2)),
        lambda m, x: m(x[..., :3], x[:, 0, 3:])[0],
        "X, s:2, (h, c)=None -> Y, (h, c)",
    ),
    "one-tensor-layers": Entry(
        OneTensorLayers,
        waves(3),
        lambda m, x: stepped(m, x, zeros(x, 2, len(x), 12), lambda m, x, s: m(x, s)),
    ),
    "echo-state": Entry(EchoState, waves(3), whole, roads=road("general")),
}
