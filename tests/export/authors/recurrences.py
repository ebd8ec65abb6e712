"""Recurrences of papers with little or no gating, over frames, or with a clock."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.export.authors.entry import Entry, road, waves, whole

GENERAL = road("general")


class SRU(nn.Module):
    """Lei et al. 2018: all products before the loop, the loop is elementwise; time first"""

    def __init__(self, n):
        super().__init__()
        self.n = n
        self.weight = nn.Parameter(torch.randn(n, 3 * n) / math.sqrt(n))
        self.v = nn.Parameter(torch.randn(2, n) * 0.3)
        self.bias = nn.Parameter(torch.zeros(2, n))

    def forward(self, x, c0=None):
        length, batch, d = x.shape
        u = (x.reshape(-1, d) @ self.weight).view(length, batch, 3, self.n)
        c = x.new_zeros(batch, self.n) if c0 is None else c0
        h = []
        for t in range(length):
            f = torch.sigmoid(u[t, :, 1] + self.v[0] * c + self.bias[0])
            r = torch.sigmoid(u[t, :, 2] + self.v[1] * c + self.bias[1])
            c = f * c + (1 - f) * u[t, :, 0]
            h.append(r * c + (1 - r) * x[t])
        return torch.stack(h), c


class QRNN(nn.Module):
    """Bradbury et al. 2017: the step before, side by side with this one; nothing is exposed"""

    def __init__(self, n_in, n_hid):
        super().__init__()
        self.linear = nn.Linear(2 * n_in, 3 * n_hid)

    def forward(self, X):
        before = torch.cat([torch.zeros_like(X[:, :1]), X[:, :-1]], dim=1)
        Z, Fg, O = self.linear(torch.cat([before, X], dim=2)).chunk(3, dim=2)
        Z, Fg, O = Z.tanh(), Fg.sigmoid(), O.sigmoid()
        c = torch.zeros_like(Z[:, 0])
        out = []
        for z, f, o in zip(Z.unbind(1), Fg.unbind(1), O.unbind(1), strict=True):
            c = f * c + (1 - f) * z
            out.append(o * c)
        return torch.stack(out, dim=1)


class IndRNN(nn.Module):
    """Li et al. 2018: a weight a unit, relu, batch norm between the two layers"""

    def __init__(self, n_in, n_hid):
        super().__init__()
        self.inp = nn.ModuleList([nn.Linear(n_in, n_hid), nn.Linear(n_hid, n_hid)])
        self.u = nn.ParameterList([nn.Parameter(torch.rand(n_hid) * 0.8) for _ in range(2)])
        self.bn = nn.ModuleList([nn.BatchNorm1d(n_hid), nn.BatchNorm1d(n_hid)])

    def forward(self, x, hx):
        # hx: layers x batch x hidden
        new = []
        for lin, u, bn, h in zip(self.inp, self.u, self.bn, hx, strict=True):
            h = torch.relu(lin(x) + u.clamp(-0.95, 0.95) * h)
            new.append(h)
            x = bn(h)
        return x, torch.stack(new, 0)


def run_indrnn(net, x):
    hx = torch.zeros(2, len(x), 12)
    out = []
    for t in range(x.size(1)):
        y, hx = net(x[:, t], hx)
        out.append(y)
    return torch.stack(out, 1)


class LRU(nn.Module):
    """Orvieto et al. 2023: a diagonal complex recurrence, kept as two real states"""

    def __init__(self, d, n):
        super().__init__()
        self.nu = nn.Parameter(torch.log(torch.rand(n) * 0.4 + 0.05))
        self.theta = nn.Parameter(torch.rand(n) * 3)
        self.B = nn.Parameter(torch.randn(2, n, d) / math.sqrt(2 * d))
        self.C = nn.Parameter(torch.randn(2, d, n) / math.sqrt(n))
        self.D = nn.Parameter(torch.randn(d))

    def forward(self, u, re, im):
        size = torch.exp(-torch.exp(self.nu))
        a, b = size * torch.cos(self.theta), size * torch.sin(self.theta)
        gamma = torch.sqrt(1 - size**2)
        bu = torch.einsum("znd,bd->zbn", self.B, u) * gamma
        re, im = a * re - b * im + bu[0], a * im + b * re + bu[1]
        y = re @ self.C[0].T - im @ self.C[1].T + self.D * u
        return F.gelu(y), re, im


def run_lru(net, x):
    re = im = torch.zeros(len(x), 12)
    out = []
    for t in range(x.size(1)):
        y, re, im = net(x[:, t], re, im)
        out.append(y)
    return torch.stack(out, 1)


class ConvLSTM(nn.Module):
    """Shi et al. 2015, a predictor of the next frame; X is (batch, time, channel, h, w)"""

    def __init__(self, channels, hidden, kernel=3):
        super().__init__()
        self.hidden = hidden
        self.conv = nn.Conv2d(channels + hidden, 4 * hidden, kernel, padding=kernel // 2)
        self.decode = nn.Conv2d(hidden, channels, 1)

    def forward(self, frames):
        b, t, _, height, width = frames.size()
        h = torch.zeros(b, self.hidden, height, width)
        c = torch.zeros(b, self.hidden, height, width)
        predicted = []
        for k in range(t):
            gates = self.conv(torch.cat([frames[:, k], h], dim=1))
            i, f, o, g = torch.split(gates, self.hidden, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            predicted.append(torch.sigmoid(self.decode(h)))
        return torch.stack(predicted, dim=1)


class ClockworkRNN(nn.Module):
    """Koutnik et al. 2014: which units move depends on the number of the step"""

    def __init__(self, n_in, modules=4, size=4):
        super().__init__()
        self.size, self.periods = size, [2**k for k in range(modules)]
        n = size * modules
        self.wx, self.wh = nn.Linear(n_in, n), nn.Linear(n, n, bias=False)
        self.n = n

    def forward(self, x):
        h = x.new_zeros(x.size(0), self.n)
        out = []
        for t in range(x.size(1)):
            active = sum(t % p == 0 for p in self.periods) * self.size
            new = torch.tanh(self.wx(x[:, t]) + self.wh(h))
            h = torch.cat([new[:, :active], h[:, active:]], 1)
            out.append(h)
        return torch.stack(out, 1)


class ParallelMinGRU(nn.Module):
    """Feng et al. 2024: h over the whole sequence at once, by sums of logarithms"""

    def __init__(self, d_in, d):
        super().__init__()
        self.to_z, self.to_h = nn.Linear(d_in, d), nn.Linear(d_in, d)

    @staticmethod
    def log_g(x):
        return torch.where(x >= 0, (F.relu(x) + 0.5).log(), -F.softplus(-x))

    def forward(self, x):
        k = self.to_z(x)
        log_keep, log_z = -F.softplus(k), -F.softplus(-k)
        values = log_z + self.log_g(self.to_h(x))
        a = torch.cumsum(log_keep, dim=1)
        return torch.exp(a + torch.logcumsumexp(values - a, dim=1))


ENTRIES = {
    "sru": Entry(
        lambda: SRU(12),
        waves(12),
        lambda m, x: m(x.transpose(0, 1))[0].transpose(0, 1),
        roads=GENERAL,
        int8=False,
    ),
    "qrnn": Entry(
        lambda: QRNN(3, 12),
        waves(3),
        whole,
        roads=GENERAL,
    ),
    "indrnn": Entry(
        lambda: IndRNN(3, 12),
        waves(3),
        run_indrnn,
        roads=road("rnn"),
        gain=1.0,
    ),
    "lru": Entry(
        lambda: LRU(4, 12),
        waves(4),
        run_lru,
        "x, re, im -> y, re, im",
        roads=GENERAL,
        gain=1.0,
    ),
    "conv-lstm": Entry(
        lambda: ConvLSTM(1, 4),
        waves(1, 5, 4),
        whole,
    ),
    "clockwork": Entry(
        lambda: ClockworkRNN(3),
        waves(3),
        whole,
        refused="cannot run step by step",
    ),
    "parallel-min-gru": Entry(
        lambda: ParallelMinGRU(3, 12),
        waves(3),
        whole,
        refused="cumsum",
    ),
}
