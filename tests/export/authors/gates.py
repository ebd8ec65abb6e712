"""Gated cells of papers that are another function than an LSTM: the general road."""

import math

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.export.authors.entry import Entry, beside, first, road, waves

GENERAL = road("general")


def loop_pair(cell, x, hidden):
    h, c = torch.zeros(len(x), hidden), torch.zeros(len(x), hidden)
    out = []
    for t in range(x.size(1)):
        h, c = cell(x[:, t], (h, c))
        out.append(h)
    return torch.stack(out, 1)


class LayerNormLSTMCell(nn.Module):
    """Ba et al. 2016: both products and the cell state are normalised"""

    def __init__(self, n_inp, n_hid):
        super().__init__()
        self.wx = nn.Linear(n_inp, 4 * n_hid, bias=False)
        self.wh = nn.Linear(n_hid, 4 * n_hid, bias=False)
        self.ln_x, self.ln_h = nn.LayerNorm(4 * n_hid), nn.LayerNorm(4 * n_hid)
        self.ln_c = nn.LayerNorm(n_hid)

    def forward(self, x, hidden):
        h, c = hidden
        i, f, g, o = (self.ln_x(self.wx(x)) + self.ln_h(self.wh(h))).chunk(4, dim=-1)
        c = (f + 1.0).sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * self.ln_c(c).tanh(), c


class GateNormLSTM(nn.Module):
    """each gate has its own norm, written out with mean and std and without nn.LayerNorm"""

    def __init__(self, d_in, d):
        super().__init__()
        self.d = d
        self.fc = nn.Linear(d_in + d, 4 * d)
        self.gain = nn.Parameter(torch.ones(4, d))
        self.shift = nn.Parameter(torch.zeros(4, d))

    def norm(self, v):
        mean = v.mean(-1, keepdim=True)
        std = v.std(-1, keepdim=True)
        return (v - mean) / (std + 1e-5)

    def forward(self, X, state=None):
        B, T, _ = X.shape
        h, c = state if state is not None else (X.new_zeros(B, self.d), X.new_zeros(B, self.d))
        outs = []
        for t in range(T):
            z = self.fc(torch.cat((X[:, t], h), -1)).view(B, 4, self.d)
            z = self.gain * self.norm(z) + self.shift
            i, f, o = torch.sigmoid(z[:, :3]).unbind(1)
            c = f * c + i * torch.tanh(z[:, 3])
            h = o * torch.tanh(c)
            outs.append(h)
        return torch.stack(outs, 1), (h, c)


class ZoneoutLSTMCell(nn.Module):
    """Krueger et al. 2016: in eval mode the old and the new state are mixed"""

    def __init__(self, input_size, hidden_size, zoneout=(0.5, 0.1)):
        super().__init__()
        self.cell = nn.LSTMCell(input_size, hidden_size)
        self.zc, self.zh = zoneout

    def mix(self, old, new, p):
        if self.training:
            keep = torch.bernoulli(torch.full_like(old, p))
            return keep * old + (1 - keep) * new
        return p * old + (1 - p) * new

    def forward(self, x, hidden):
        new_h, new_c = self.cell(x, hidden)
        h, c = hidden
        return self.mix(h, new_h, self.zh), self.mix(c, new_c, self.zc)


class Mogrifier(nn.Module):
    """Melis et al. 2019: x and h gate each other some times before the LSTM sees them"""

    def __init__(self, x_dim, h_dim, rounds=5):
        super().__init__()
        self.q = nn.ModuleList(nn.Linear(h_dim, x_dim) for _ in range((rounds + 1) // 2))
        self.r = nn.ModuleList(nn.Linear(x_dim, h_dim) for _ in range(rounds // 2))
        self.lstm = nn.LSTMCell(x_dim, h_dim)
        self.rounds = rounds

    def forward(self, x, h, c):
        for k in range(self.rounds):
            if k % 2:
                h = 2 * torch.sigmoid(self.r[k // 2](x)) * h
            else:
                x = 2 * torch.sigmoid(self.q[k // 2](h)) * x
        return self.lstm(x, (h, c))


def run_mogrifier(cell, x):
    h = c = torch.zeros(len(x), 12)
    out = []
    for t in range(x.size(1)):
        h, c = cell(x[:, t], h, c)
        out.append(h)
    return torch.stack(out, 1)


class MultiplicativeLSTM(nn.Module):
    """Krause et al. 2016: m = (Wx) * (Wh) takes the place of h"""

    def __init__(self, data_size, rnn_size):
        super().__init__()
        self.wx = nn.Linear(data_size, 4 * rnn_size, bias=False)
        self.wh = nn.Linear(rnn_size, 4 * rnn_size, bias=True)
        self.wmx = nn.Linear(data_size, rnn_size, bias=False)
        self.wmh = nn.Linear(rnn_size, rnn_size, bias=False)
        self.rnn_size = rnn_size
        self.out = nn.Linear(rnn_size, 2)

    def forward(self, data, last_hidden):
        hx, cx = last_hidden
        m = self.wmx(data) * self.wmh(hx)
        gates = self.wx(data) + self.wh(m)
        i, f, o, u = gates.chunk(4, 1)
        i, f, u, o = F.sigmoid(i), F.sigmoid(f), F.tanh(u), F.sigmoid(o)
        cy = f * cx + i * u
        hy = o * F.tanh(cy)
        return self.out(hy), (hy, cy)


def run_multiplicative(cell, x):
    hidden = (torch.zeros(len(x), 12), torch.zeros(len(x), 12))
    ys = []
    for t in range(x.size(1)):
        y, hidden = cell(x[:, t], hidden)
        ys.append(y)
    return torch.stack(ys, 1)


class sLSTMCell(nn.Module):
    """Beck et al. 2024: exponential gates with a normaliser n and a stabiliser m"""

    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        self.W = nn.Linear(input_dim, 4 * hidden_dim)
        self.R = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.hidden_dim = hidden_dim

    def init_state(self, batch):
        return tuple(torch.zeros(batch, self.hidden_dim) for _ in range(4))

    def forward(self, x, states):
        h, c, n, m = states
        z, i_tilde, f_tilde, o = (self.W(x) + self.R(h)).chunk(4, dim=1)
        log_f = F.logsigmoid(f_tilde)
        m_new = torch.maximum(log_f + m, i_tilde)
        i = torch.exp(i_tilde - m_new)
        f = torch.exp(log_f + m - m_new)
        c = f * c + i * torch.tanh(z)
        n = f * n + i
        h = torch.sigmoid(o) * c / n
        return h, (h, c, n, m_new)


def run_slstm(cell, x):
    states = cell.init_state(len(x))
    out = []
    for t in range(x.size(1)):
        h, states = cell(x[:, t], states)
        out.append(h)
    return torch.stack(out, 1)


class mLSTMCell(nn.Module):
    """Beck et al. 2024: a matrix for a memory, read by a query"""

    def __init__(self, d_in, d):
        super().__init__()
        self.qkv = nn.Linear(d_in, 3 * d)
        self.if_gate = nn.Linear(d_in, 2)
        self.o_gate = nn.Linear(d_in, d)
        self.d = d

    def forward(self, x, C, n, m):
        q, k, v = self.qkv(x).chunk(3, -1)
        k = k / math.sqrt(self.d)
        log_i, f = self.if_gate(x).unbind(-1)
        log_f = F.logsigmoid(f)
        m_new = torch.max(log_f + m, log_i)
        i_act = torch.exp(log_i - m_new).unsqueeze(-1)
        f_act = torch.exp(log_f + m - m_new).unsqueeze(-1)
        C = f_act.unsqueeze(-1) * C + i_act.unsqueeze(-1) * torch.einsum("bi,bj->bij", v, k)
        n = f_act * n + i_act * k
        den = torch.clamp((n * q).sum(-1, keepdim=True).abs(), min=1.0)
        h = torch.sigmoid(self.o_gate(x)) * (C @ q.unsqueeze(-1)).squeeze(-1) / den
        return h, C, n, m_new


def run_mlstm(cell, x):
    B = len(x)
    C, n, m = torch.zeros(B, cell.d, cell.d), torch.zeros(B, cell.d), torch.zeros(B)
    out = []
    for t in range(x.size(1)):
        h, C, n, m = cell(x[:, t], C, n, m)
        out.append(h)
    return torch.stack(out, 1)


class MGUCell(nn.RNNCellBase):
    """Zhou et al. 2016, on torch's own base class"""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size, bias=True, num_chunks=2)

    def forward(self, input, hx=None):
        if hx is None:
            hx = torch.zeros(input.size(0), self.hidden_size, dtype=input.dtype)
        x_f, x_n = F.linear(input, self.weight_ih, self.bias_ih).split(self.hidden_size, 1)
        W_f, W_n = self.weight_hh.split(self.hidden_size, 0)
        b_f, b_n = self.bias_hh.split(self.hidden_size, 0)
        f = torch.sigmoid(x_f + F.linear(hx, W_f, b_f))
        n = torch.tanh(x_n + F.linear(f * hx, W_n, b_n))
        return torch.lerp(hx, n, f)


def run_mgu(cell, x):
    h, out = None, []
    for t in range(x.size(1)):
        h = cell(x[:, t], h)
        out.append(h)
    return torch.stack(out, 1)


class PhasedLSTM(nn.Module):
    """Neil et al. 2016: a gate that opens with the time; dt comes beside x"""

    def __init__(self, n_in, n):
        super().__init__()
        self.cell = nn.LSTMCell(n_in, n)
        self.tau = nn.Parameter(torch.rand(n) * 6 + 2)
        self.shift = nn.Parameter(torch.rand(n) * 3)
        self.r_on, self.leak = 0.4, 0.01

    def forward(self, x, time, state):
        h, c = state
        phase = torch.fmod(time - self.shift + 100 * self.tau, self.tau) / self.tau
        up = 2 * phase / self.r_on
        k = torch.where(phase < 0.5 * self.r_on, up, 2 - up)
        k = torch.where(phase < self.r_on, k, self.leak * phase)
        h_new, c_new = self.cell(x, (h, c))
        return k * h_new + (1 - k) * h, k * c_new + (1 - k) * c


def clock(steps, seed):
    gaps = np.random.default_rng(seed).uniform(0.2, 1.8, (steps, 1))
    return (gaps.cumsum(0) % 60).astype(np.float32)


def run_phased(net, x):
    h = c = torch.zeros(len(x), 12)
    out = []
    for t in range(x.size(1)):
        h, c = net(x[:, t, :3], x[:, t, 3:], (h, c))
        out.append(h)
    return torch.stack(out, 1)


class CfC(nn.Module):
    """Hasani et al. 2022: closed-form continuous time, lecun tanh, fixed time span"""

    def __init__(self, n_in, n, backbone=24):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(n_in + n, backbone), nn.SiLU())
        self.ff1, self.ff2 = nn.Linear(backbone, n), nn.Linear(backbone, n)
        self.time_a, self.time_b = nn.Linear(backbone, n), nn.Linear(backbone, n)
        self.n = n
        self.fc = nn.Linear(n, 1)

    def forward(self, x, hx=None, ts=1.0):
        h = torch.zeros(x.size(0), self.n) if hx is None else hx
        seq = []
        for t in range(x.size(1)):
            z = self.backbone(torch.cat([x[:, t], h], 1))
            gate = torch.sigmoid(self.time_a(z) * ts + self.time_b(z))
            h = 1.7159 * torch.tanh(0.666 * self.ff1(z)) * (1.0 - gate) + gate * self.ff2(z)
            seq.append(self.fc(h))
        return torch.stack(seq, 1), h


ENTRIES = {
    "layer-norm": Entry(
        lambda: LayerNormLSTMCell(3, 12),
        waves(3),
        lambda m, x: loop_pair(m, x, 12),
        roads=GENERAL,
        int8=False,
    ),
    "gate-norm": Entry(
        lambda: GateNormLSTM(3, 12),
        waves(3),
        first,
        int8=False,
    ),
    "zoneout": Entry(
        lambda: ZoneoutLSTMCell(3, 12), waves(3), lambda m, x: loop_pair(m, x, 12), roads=GENERAL
    ),
    "mogrifier": Entry(lambda: Mogrifier(4, 12), waves(4), run_mogrifier),
    "multiplicative": Entry(lambda: MultiplicativeLSTM(3, 12), waves(3), run_multiplicative),
    "slstm": Entry(
        lambda: sLSTMCell(3, 12),
        waves(3),
        run_slstm,
        "x, (h, c, n, m) -> y, (h, c, n, m)",
        roads=GENERAL,
    ),
    "mlstm": Entry(
        lambda: mLSTMCell(3, 6),
        waves(3),
        run_mlstm,
        "x, C, n, m -> y, C, n, m",
        roads=GENERAL,
    ),
    "mgu": Entry(
        lambda: MGUCell(3, 12),
        waves(3),
        run_mgu,
        roads=GENERAL,
    ),
    "phased": Entry(
        lambda: PhasedLSTM(3, 12),
        beside(waves(3), clock),
        run_phased,
        "x, s:1, (h, c) -> h, c",
        roads=GENERAL,
    ),
    "cfc": Entry(
        lambda: CfC(3, 12),
        waves(3),
        first,
        roads=GENERAL,
    ),
}
