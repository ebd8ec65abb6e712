"""Forecasters of series, and other networks over sensors."""

from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils import parametrizations

from tests.export.authors.entry import Entry, beside, constants, first, last, road, waves, whole

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class StockLSTM(nn.Module):
    def __init__(self, input_dim=5, hidden_dim=12, num_layers=2, output_dim=1):
        super(StockLSTM, self).__init__()
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.lstm = nn.LSTM(input_dim, hidden_dim, num_layers, batch_first=True, dropout=0.2)
        self.fc = nn.Linear(hidden_dim, output_dim)

    def forward(self, x):
        h0 = torch.zeros(self.num_layers, x.size(0), self.hidden_dim).requires_grad_().to(device)
        c0 = torch.zeros(self.num_layers, x.size(0), self.hidden_dim).requires_grad_().to(device)
        out, (hn, cn) = self.lstm(x, (h0.detach(), c0.detach()))
        out = self.fc(out[:, -1, :])
        return out


class SensorForecaster(nn.Module):
    """scales its own input, forecasts the change and adds the last reading"""

    def __init__(self, n=3, hidden=12):
        super().__init__()
        self.register_buffer("mean", torch.linspace(-0.5, 0.5, n))
        self.register_buffer("std", torch.linspace(0.8, 1.4, n))
        self.rnn = nn.GRU(n, hidden, batch_first=True)
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, n))

    def forward(self, x, h=None):
        z = ((x - self.mean) / self.std).clamp(-4, 4)
        feats, h = self.rnn(z, h)
        return x + self.std * self.head(self.norm(feats)), h


class DeepAR(nn.Module):
    """one step at a time, time first; the hidden state is permuted into features"""

    def __init__(self, params):
        super().__init__()
        self.params = params
        self.lstm = nn.LSTM(params.cov_dim, params.hidden, params.layers)
        self.relu = nn.ReLU()
        self.distribution_mu = nn.Linear(params.hidden * params.layers, 1)
        self.distribution_presigma = nn.Linear(params.hidden * params.layers, 1)
        self.distribution_sigma = nn.Softplus()

    def init_hidden(self, n):
        return torch.zeros(self.params.layers, n, self.params.hidden)

    def forward(self, x, hidden, cell):
        output, (hidden, cell) = self.lstm(x.unsqueeze(0), (hidden, cell))
        flat = hidden.permute(1, 2, 0).contiguous().view(hidden.shape[1], -1)
        mu = self.distribution_mu(flat)
        sigma = self.distribution_sigma(self.distribution_presigma(flat))
        return torch.squeeze(mu), torch.squeeze(sigma), hidden, cell


def run_deepar(net, x):
    h = c = net.init_hidden(len(x))
    out = []
    for t in range(x.size(1)):
        mu, sigma, h, c = net(x[:, t], h, c)
        out.append(torch.stack([mu, sigma], -1))
    return torch.stack(out, 1)


class QuantileForecaster(nn.Module):
    def __init__(self, inputs=3, hidden=12, horizon=4, quantiles=(0.1, 0.5, 0.9)):
        super().__init__()
        self.encoder = nn.LSTM(inputs, hidden, batch_first=True)
        self.heads = nn.ModuleList([nn.Linear(hidden, horizon) for _ in quantiles])

    def forward(self, x):
        z, _ = self.encoder(x)
        return torch.stack([head(z) for head in self.heads], dim=-1)  # B, T, horizon, quantiles


class MixtureLSTM(nn.Module):
    """handwriting after Graves: pi, mu, sigma"""

    def __init__(self, n_in=2, hidden=12, k=3):
        super().__init__()
        self.k = k
        self.lstm = nn.LSTM(n_in, hidden, batch_first=True)
        self.z_pi, self.z_mu, self.z_sigma = (nn.Linear(hidden, k) for _ in range(3))

    def forward(self, x, state=None):
        out, state = self.lstm(x, state)
        pi = F.softmax(self.z_pi(out), dim=-1)
        mu = self.z_mu(out)
        sigma = torch.exp(self.z_sigma(out))
        return pi, mu, sigma, state


def run_mixture(net, x):
    return torch.cat(net(x)[:3], dim=-1)


class StaticLSTM(nn.Module):
    """hydrology: catchment attributes do not change with the time"""

    def __init__(self, dyn=3, stat=2, hidden=12):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(stat, 4), nn.Tanh())
        self.lstm = nn.LSTM(dyn + 4, hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x_d, x_s):
        # x_d: time, batch, dyn;  x_s: batch, stat
        s = self.embed(x_s).unsqueeze(0).repeat(x_d.shape[0], 1, 1)
        out, _ = self.lstm(torch.cat([x_d, s], dim=-1))
        return self.head(out)


def run_static(net, x):
    return net(x[:, :, :3].transpose(0, 1), x[:, 0, 3:]).transpose(0, 1)


class ResidualStack(nn.Module):
    """layers with skips, a norm before each, dropout after"""

    def __init__(self, n_in=4, width=12, depth=3):
        super().__init__()
        self.inp = nn.Linear(n_in, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(width),
                    "lstm": nn.LSTM(width, width, batch_first=True),
                    "drop": nn.Dropout(0.1),
                }
            )
            for _ in range(depth)
        )
        self.out = nn.Linear(width * (depth + 1), 2)

    def forward(self, x):
        x = self.inp(x)
        skips = [x]
        for block in self.blocks:
            y, _ = block["lstm"](block["norm"](x))
            x = x + block["drop"](y)
            skips.append(x)
        return self.out(torch.cat(skips, dim=-1))


class WeatherLSTM(nn.Module):
    """begins from a learned state"""

    def __init__(self, n=3, hidden=12, layers=2):
        super().__init__()
        self.h0 = nn.Parameter(torch.randn(layers, 1, hidden) * 0.5)
        self.c0 = nn.Parameter(torch.randn(layers, 1, hidden) * 0.5)
        self.lstm = nn.LSTM(n, hidden, layers, batch_first=True)
        self.fc = nn.Linear(hidden, n)

    def forward(self, x):
        b = x.shape[0]
        start = self.h0.expand(-1, b, -1).contiguous(), self.c0.repeat(1, b, 1)
        return self.fc(self.lstm(x, start)[0])


class WeightNormed(nn.Module):
    """parametrizations: weight norm on the recurrence, spectral norm on the head"""

    def __init__(self, n=3, hidden=12):
        super().__init__()
        self.lstm = nn.LSTM(n, hidden, batch_first=True)
        for name in ("weight_ih_l0", "weight_hh_l0"):
            parametrizations.weight_norm(self.lstm, name)
        self.fc = parametrizations.spectral_norm(nn.Linear(hidden, 2))

    def forward(self, x):
        return self.fc(self.lstm(x)[0])


class WeightDrop(nn.Module):
    """Merity et al. 2018: the hidden-to-hidden weight is set anew at each call"""

    def __init__(self, module, weights, dropout):
        super().__init__()
        self.module, self.weights, self.dropout = module, weights, dropout
        for name in weights:
            raw = getattr(module, name)
            del module._parameters[name]
            module.register_parameter(name + "_raw", nn.Parameter(raw.data))
        self._setweights()

    def _setweights(self):
        for name in self.weights:
            raw = getattr(self.module, name + "_raw")
            setattr(self.module, name, F.dropout(raw, p=self.dropout, training=self.training))

    def forward(self, *args):
        self._setweights()
        return self.module(*args)


class AWDForecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = WeightDrop(nn.LSTM(3, 12, batch_first=True), ["weight_hh_l0"], dropout=0.4)
        self.decoder = nn.Linear(12, 1)

    def forward(self, x, hidden=None):
        out, hidden = self.rnn(x, hidden)
        return self.decoder(out), hidden


class Seq2SeqForecaster(nn.Module):
    """the decoder feeds its own forecast back for `horizon` steps"""

    def __init__(self, n=2, hidden=12, horizon=4):
        super().__init__()
        self.horizon = horizon
        self.encoder = nn.LSTM(n, hidden, batch_first=True)
        self.decoder = nn.LSTMCell(n, hidden)
        self.out = nn.Linear(hidden, n)

    def forward(self, src):
        _, (h, c) = self.encoder(src)
        h, c = h[-1], c[-1]
        inp = src[:, -1]
        future = []
        for _ in range(self.horizon):
            h, c = self.decoder(inp, (h, c))
            inp = self.out(h)
            future.append(inp)
        return torch.stack(future, dim=1)


class SmoothedCell(nn.Module):
    """an LSTM beside a running mean and a count of its steps"""

    def __init__(self, n=3, hidden=12):
        super().__init__()
        self.cell = nn.LSTMCell(2 * n, hidden)
        self.fc = nn.Linear(hidden, 1)
        self.hidden = hidden

    def forward(self, x, state=None):
        if state is None:
            h = c = x.new_zeros(x.size(0), self.hidden)
            mean, steps = torch.zeros_like(x), x.new_zeros(x.size(0), 1)
        else:
            h, c, mean, steps = state
        steps = steps + 1
        mean = mean + (x - mean) / torch.clamp(steps, max=50.0)
        h, c = self.cell(torch.cat([x, x - mean], 1), (h, c))
        return self.fc(h), (h, c, mean, steps)


def run_smoothed(net, x):
    state, out = None, []
    for t in range(x.size(1)):
        y, state = net(x[:, t], state)
        out.append(y)
    return torch.stack(out, 1)


ENTRIES = {
    "stock": Entry(StockLSTM, waves(5), last),
    "sensor": Entry(
        SensorForecaster,
        waves(3),
        first,
        roads=road("gru"),
        gain=1.0,  # else its closed loop is one that int8 loses
    ),
    "deepar": Entry(
        lambda: DeepAR(SimpleNamespace(cov_dim=4, hidden=8, layers=2)),
        waves(4),
        run_deepar,
        "x, h, c -> y, y, h, c",
        roads=road("lstm"),
    ),
    "quantiles": Entry(QuantileForecaster, waves(3), whole),
    "mixture": Entry(
        MixtureLSTM,
        waves(2),
        run_mixture,
        "X, (h, c)=None -> Y, Y, Y, (h, c)",
    ),
    "static": Entry(
        StaticLSTM,
        beside(waves(3), constants(2)),
        run_static,
        "X, s:2 -> Y",
    ),
    "residual-stack": Entry(
        ResidualStack,
        waves(4),
        whole,
        roads=road("lstm"),
    ),
    "learned-start": Entry(WeatherLSTM, waves(3), whole),
    "weight-norm": Entry(WeightNormed, waves(3), whole),
    "weight-drop": Entry(AWDForecaster, waves(3), first),
    "seq2seq-forecast": Entry(Seq2SeqForecaster, waves(2), last),
    "smoothed": Entry(
        SmoothedCell,
        waves(3),
        run_smoothed,
        "x, (h, c, mean, steps)=None -> y, (h, c, mean, steps)",
        roads=road("lstm", "general"),
    ),
}
