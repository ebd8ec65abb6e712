"""Near relatives of the LSTM, GRUs and plain RNNs by hand: what ONNX has operators for."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn import Parameter

from tests.export.authors.entry import Entry, beside, constants, road, waves, whole

# --- peepholes, coupled gates, hard sigmoid ---


class PeepholeLSTM(nn.Module):
    """Gers et al.; the peephole weights are diagonal"""

    def __init__(self, ninp, nhid):
        super().__init__()
        self.nhid = nhid
        self.i2h = nn.Linear(ninp, 4 * nhid)
        self.h2h = nn.Linear(nhid, 4 * nhid, bias=False)
        self.w_ci, self.w_cf, self.w_co = (Parameter(torch.randn(nhid) * 0.3) for _ in range(3))

    def step(self, x, h, c):
        pre = self.i2h(x) + self.h2h(h)
        i = torch.sigmoid(pre[:, : self.nhid] + self.w_ci * c)
        f = torch.sigmoid(pre[:, self.nhid : 2 * self.nhid] + self.w_cf * c)
        c = f * c + i * torch.tanh(pre[:, 2 * self.nhid : 3 * self.nhid])
        o = torch.sigmoid(pre[:, 3 * self.nhid :] + self.w_co * c)
        return o * torch.tanh(c), c

    def forward(self, xs, hc=None):
        # xs: T x B x D
        T, B = xs.shape[:2]
        h, c = hc if hc is not None else (xs.new_zeros(B, self.nhid), xs.new_zeros(B, self.nhid))
        hs = []
        for t in range(T):
            h, c = self.step(xs[t], h, c)
            hs += [h]
        return torch.stack(hs), (h, c)


class CoupledLSTM(nn.Module):
    def __init__(self, d, n):
        super().__init__()
        self.Wf, self.Wo, self.Wz = (nn.Linear(d + n, n) for _ in range(3))

    def forward(self, x_t, hidden):
        h, c = hidden
        v = torch.cat([x_t, h], dim=1)
        f = self.Wf(v).sigmoid()
        c = torch.lerp(self.Wz(v).tanh(), c, f)
        return self.Wo(v).sigmoid() * c.tanh(), c


class KerasLikeLSTM(nn.Module):
    """recurrent_activation='hard_sigmoid', unit_forget_bias=True"""

    def __init__(self, input_dim, units):
        super().__init__()
        self.kernel = Parameter(nn.init.xavier_uniform_(torch.empty(input_dim, units * 4)))
        self.recurrent_kernel = Parameter(nn.init.orthogonal_(torch.empty(units, units * 4)))
        self.bias = Parameter(
            torch.cat([torch.zeros(units), torch.ones(units), torch.zeros(2 * units)])
        )
        self.units = units

    @staticmethod
    def hard_sigmoid(x):
        return torch.clamp(0.2 * x + 0.5, 0.0, 1.0)

    def forward(self, x, states):
        h_tm1, c_tm1 = states[0], states[1]
        z = x @ self.kernel
        z = z + h_tm1 @ self.recurrent_kernel
        z = z + self.bias
        z0, z1, z2, z3 = (z[:, k * self.units : (k + 1) * self.units] for k in range(4))
        i, f = self.hard_sigmoid(z0), self.hard_sigmoid(z1)
        c = f * c_tm1 + i * torch.tanh(z2)
        o = self.hard_sigmoid(z3)
        h = o * torch.tanh(c)
        return h, [h, c]


def step_pair(cell, x):
    """`h, c = cell(x, (h, c))`"""
    h = c = torch.zeros(x.shape[0], 12)
    hs = []
    for t in range(x.shape[1]):
        h, c = cell(x[:, t], (h, c))
        hs.append(h)
    return torch.stack(hs, dim=1)


def run_keras(cell, x):
    states = [torch.zeros(x.shape[0], cell.units)] * 2
    hs = []
    for t in range(x.shape[1]):
        h, states = cell(x[:, t], states)
        hs.append(h)
    return torch.stack(hs, dim=1)


def time_first(module, x):
    return module(x.transpose(0, 1))[0].transpose(0, 1)


# --- GRUs ---


class PaperGRU(nn.Module):
    """Cho et al. 2014: reset before the product; hidden state started inside"""

    def __init__(self, input_size, hidden_size, output_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.W_z = nn.Linear(input_size + hidden_size, hidden_size)
        self.W_r = nn.Linear(input_size + hidden_size, hidden_size)
        self.W_h = nn.Linear(input_size + hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, output_size)

    def init_hidden(self, batch):
        return torch.zeros(batch, self.hidden_size)

    def forward(self, x):
        h = self.init_hidden(x.size(0))
        y = torch.zeros(x.size(0), x.size(1), self.out.out_features)
        for t in range(x.size(1)):
            xh = torch.cat([x[:, t], h], 1)
            z = torch.sigmoid(self.W_z(xh))
            r = torch.sigmoid(self.W_r(xh))
            h_tilde = torch.tanh(self.W_h(torch.cat([x[:, t], r * h], 1)))
            h = (1 - z) * h + z * h_tilde
            y[:, t] = self.out(h)
        return y


class FusedGRUCell(nn.Module):
    """the cuDNN form: reset after the product, newgate + z * (h - newgate)"""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.w_ih = Parameter(torch.randn(3 * hidden_size, input_size) * 0.3)
        self.w_hh = Parameter(torch.randn(3 * hidden_size, hidden_size) * 0.3)
        self.b_ih = Parameter(torch.zeros(3 * hidden_size))
        self.b_hh = Parameter(torch.zeros(3 * hidden_size))

    def forward(self, input, hidden):
        gi = F.linear(input, self.w_ih, self.b_ih)
        gh = F.linear(hidden, self.w_hh, self.b_hh)
        i_r, i_i, i_n = gi.chunk(3, 1)
        h_r, h_i, h_n = gh.chunk(3, 1)
        resetgate = torch.sigmoid(i_r + h_r)
        inputgate = torch.sigmoid(i_i + h_i)
        newgate = torch.tanh(i_n + resetgate * h_n)
        return newgate + inputgate * (hidden - newgate)


def run_fused(cell, x):
    h = torch.zeros(x.size(0), 16)
    hs = []
    for t in range(x.size(1)):
        h = cell(x[:, t], h)
        hs.append(h)
    return torch.stack(hs, dim=1)


# --- the names tutorial ---


class NameRNN(nn.Module):
    def __init__(self, input_size, hidden_size, output_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.i2h = nn.Linear(input_size + hidden_size, hidden_size)
        self.h2o = nn.Linear(hidden_size, output_size)
        self.softmax = nn.LogSoftmax(dim=1)

    def forward(self, line, hidden):
        combined = torch.cat((line, hidden), 1)
        hidden = torch.tanh(self.i2h(combined))
        return self.softmax(self.h2o(hidden)), hidden

    def initHidden(self):
        return torch.zeros(1, self.hidden_size)


def run_names(rnn, x):
    rows = []
    for line in x:  # the tutorial knows no batch
        hidden = rnn.initHidden()
        ys = []
        for letter in line:
            y, hidden = rnn(letter[None], hidden)
            ys.append(y[0])
        rows.append(torch.stack(ys))
    return torch.stack(rows)


class EAStep(nn.Module):
    """entity-aware: the input gate sees the static features only (Kratzert et al. 2019)"""

    def __init__(self, dyn=3, stat=2, n=12):
        super().__init__()
        self.n = n
        self.static_gate = nn.Linear(stat, n)
        self.wx = nn.Linear(dyn, 3 * n, bias=True)
        self.wh = nn.Linear(n, 3 * n, bias=False)

    def forward(self, x, h, c, s):
        i = torch.sigmoid(self.static_gate(s))
        f, o, g = (self.wx(x) + self.wh(h)).chunk(3, 1)
        c = torch.sigmoid(f) * c + i * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


def run_entity_aware(net, x):
    h = c = torch.zeros(len(x), net.n)
    out = []
    for t in range(x.size(1)):
        h, c = net(x[:, t, :3], h, c, x[:, t, 3:])
        out.append(h)
    return torch.stack(out, 1)


ENTRIES = {
    "peephole": Entry(
        lambda: PeepholeLSTM(3, 12),
        waves(3),
        time_first,
    ),
    "coupled": Entry(lambda: CoupledLSTM(3, 12), waves(3), step_pair),
    "keras-like": Entry(
        lambda: KerasLikeLSTM(3, 12),
        waves(3),
        run_keras,
    ),
    "entity-aware": Entry(
        EAStep,
        beside(waves(3), constants(2)),
        run_entity_aware,
        "x, h, c, s:2 -> h, c",
    ),
    "paper-gru": Entry(
        lambda: PaperGRU(3, 16, 2),
        waves(3),
        whole,
        roads=road("gru"),
    ),
    "fused-gru": Entry(
        lambda: FusedGRUCell(3, 16),
        waves(3),
        run_fused,
        roads=road("gru"),
    ),
    "names": Entry(
        lambda: NameRNN(5, 16, 4),
        waves(5),
        run_names,
        roads=road("rnn"),
    ),
}
