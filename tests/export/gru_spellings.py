"""GRU and RNN cells as different people write them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUT, HIDDEN = 3, 6


class CatReset(nn.Module):
    """The paper's, as tutorials have it: cat(r * h, x); z is the share of the new."""

    def __init__(self) -> None:
        super().__init__()
        self.r = nn.Linear(INPUT + HIDDEN, HIDDEN)
        self.z = nn.Linear(INPUT + HIDDEN, HIDDEN)
        self.n = nn.Linear(INPUT + HIDDEN, HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        hx = torch.cat([h, x], dim=1)
        r, z = torch.sigmoid(self.r(hx)), torch.sigmoid(self.z(hx))
        candidate = torch.tanh(self.n(torch.cat([r * h, x], dim=1)))
        return (1 - z) * h + z * candidate


class SixMatrices(nn.Module):
    """Six matrices and three biases, z the share of the old (Dive into Deep Learning)."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.ParameterList(torch.randn(INPUT, HIDDEN) * 0.4 for _ in range(3))
        self.U = nn.ParameterList(torch.randn(HIDDEN, HIDDEN) * 0.4 for _ in range(3))
        self.b = nn.ParameterList(torch.randn(HIDDEN) * 0.3 for _ in range(3))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z = torch.sigmoid((x @ self.W[0]) + (h @ self.U[0]) + self.b[0])
        r = torch.sigmoid((x @ self.W[1]) + (h @ self.U[1]) + self.b[1])
        new = torch.tanh((x @ self.W[2]) + ((r * h) @ self.U[2]) + self.b[2])
        return z * h + (1 - z) * new


class Lerped(nn.Module):
    """torch.lerp, one sigmoid over both gates, an einsum for the candidate."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Linear(INPUT + HIDDEN, 2 * HIDDEN)
        self.W = nn.Parameter(torch.randn(HIDDEN, INPUT) * 0.4)
        self.R = nn.Parameter(torch.randn(HIDDEN, HIDDEN) * 0.4)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        r, z = self.gates(torch.cat([x, h], 1)).sigmoid().chunk(2, 1)
        inner = torch.einsum("bi,hi->bh", x, self.W) + torch.einsum("bk,hk->bh", h * r, self.R)
        return torch.lerp(h, inner.tanh(), z)


class HandSigmoid(nn.Module):
    """Sigmoids by exp, and h corrected towards the candidate."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(INPUT, 3 * HIDDEN)
        self.h = nn.Linear(HIDDEN, 2 * HIDDEN, bias=False)
        self.u = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        x_z, x_r, x_n = self.x(x).split(HIDDEN, dim=1)
        h_z, h_r = self.h(h).split(HIDDEN, dim=1)
        z = 1 / (1 + torch.exp(-(x_z + h_z)))
        r = 1 / (1 + torch.exp(-(x_r + h_r)))
        new: Tensor = h - z * (h - torch.tanh(x_n + self.u(r * h)))
        return new


class ChunkedAfter(nn.Module):
    """torch's own convention, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.ih = nn.Linear(INPUT, 3 * HIDDEN)
        self.hh = nn.Linear(HIDDEN, 3 * HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        x_r, x_z, x_n = self.ih(x).chunk(3, 1)
        h_r, h_z, h_n = self.hh(h).chunk(3, 1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        return n + z * (h - n)


class SeparateAfter(nn.Module):
    """Reset after, six layers, z the share of the new, a bias added in code."""

    def __init__(self) -> None:
        super().__init__()
        self.xs = nn.ModuleList(nn.Linear(INPUT, HIDDEN) for _ in range(3))
        self.hs = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(3))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        r = torch.sigmoid(self.xs[0](x) + self.hs[0](h))
        z = torch.sigmoid(self.xs[1](x) + self.hs[1](h) - 1.0)
        n = torch.tanh(self.hs[2](h) * r + self.xs[2](x))
        return z * n + (1 - z) * h


class HardAfter(nn.Module):
    """Reset after, gates by a clamp, as Keras has had them."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(INPUT, 3 * HIDDEN) * 0.4)
        self.R = nn.Parameter(torch.randn(HIDDEN, 3 * HIDDEN) * 0.4)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        xs, hs = torch.split(x @ self.W, HIDDEN, 1), torch.split(h @ self.R, HIDDEN, 1)
        z = torch.clamp(0.2 * (xs[0] + hs[0]) + 0.5, 0, 1)
        r = torch.clamp(0.2 * (xs[1] + hs[1]) + 0.5, 0, 1)
        return torch.addcmul(z * h, 1 - z, torch.tanh(xs[2] + r * hs[2]))


class InputGatesOnly(nn.Module):
    """z and r look at x alone; the candidate at r * h."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Linear(INPUT, 2 * HIDDEN)
        self.n = nn.Linear(INPUT + HIDDEN, HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z, r = self.gates(x).sigmoid().chunk(2, 1)
        new: Tensor = z * h + (1 - z) * self.n(torch.cat([x, r * h], 1)).tanh()
        return new


BEFORE = "gru (reset before the product)"
AFTER = "gru (reset after the product)"
GRUS = [
    (CatReset, BEFORE),
    (SixMatrices, BEFORE),
    (Lerped, BEFORE),
    (HandSigmoid, BEFORE),
    (InputGatesOnly, BEFORE),
    (ChunkedAfter, AFTER),
    (SeparateAfter, AFTER),
    (lambda: nn.GRUCell(INPUT, HIDDEN), AFTER),
    (lambda: nn.GRU(INPUT, HIDDEN, batch_first=True), AFTER),
    (HardAfter, "gru (reset after the product; f hard sigmoid, g tanh)"),
]


class CatRNN(nn.Module):
    """One layer over cat(x, h)."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(INPUT + HIDDEN, HIDDEN)
        self.activation = activation or nn.Tanh()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new: Tensor = self.activation(self.layer(torch.cat((x, h), 1)))
        return new


class HandRNN(nn.Module):
    """Transposed matrices, addmm, h first, and the tanh as a sigmoid of twice the value."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(INPUT, HIDDEN) * 0.4)
        self.R = nn.Parameter(torch.randn(HIDDEN, HIDDEN) * 0.4)
        self.b = nn.Parameter(torch.randn(HIDDEN) * 0.3)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z = torch.addmm(self.b, h, self.R) + torch.mm(x, self.W)
        return 2 * torch.sigmoid(2 * z) - 1


class ScaledRNN(nn.Module):
    """LeCun's tanh: 1.7159 tanh(2/3 z)."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(INPUT, HIDDEN)
        self.h = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z: Tensor = 2 / 3 * (self.x(x) + self.h(h))
        return 1.7159 * torch.tanh(z)


RNNS = [
    (CatRNN, "rnn (tanh)"),
    (HandRNN, "rnn (tanh)"),
    (lambda: nn.RNNCell(INPUT, HIDDEN), "rnn (tanh)"),
    (lambda: nn.RNN(INPUT, HIDDEN, batch_first=True), "rnn (tanh)"),
    (lambda: nn.RNN(INPUT, HIDDEN, nonlinearity="relu", batch_first=True), "rnn (relu)"),
    (lambda: CatRNN(nn.ReLU()), "rnn (relu)"),
    (lambda: CatRNN(nn.Hardtanh(0.0, float("inf"))), "rnn (relu)"),
    (lambda: CatRNN(nn.Hardsigmoid()), "rnn (hard sigmoid)"),
    (lambda: CatRNN(nn.Softsign()), "rnn (softsign)"),
    (lambda: CatRNN(nn.LeakyReLU(0.1)), "rnn (leaky relu 0.1)"),
    (lambda: CatRNN(nn.ELU()), "rnn (elu 1)"),
    (lambda: CatRNN(nn.Threshold(0.2, 0.0)), "rnn (thresholded relu 0.2)"),
    (lambda: CatRNN(nn.Softplus()), "rnn (softplus)"),
    (ScaledRNN, "rnn (1.7159 tanh)"),
]


class MinimalGated(nn.Module):
    """One gate for reset and update (Zhou et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(INPUT + HIDDEN, HIDDEN)
        self.g = nn.Linear(INPUT + HIDDEN, HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        f = torch.sigmoid(self.f(torch.cat([x, h], 1)))
        candidate = torch.tanh(self.g(torch.cat([x, f * h], 1)))
        return (1 - f) * h + f * candidate


class NearGRU(nn.Module):
    """GRUs with one thing changed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.gates = nn.Linear(INPUT + HIDDEN, 2 * HIDDEN)
        self.W = nn.Linear(INPUT, HIDDEN)
        self.R = nn.Linear(HIDDEN, HIDDEN)
        self.kind = kind

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z_z, z_r = self.gates(torch.cat([x, h], 1)).chunk(2, 1)
        z, r = torch.sigmoid(z_z), torch.sigmoid(z_r)
        if self.kind == "shares of their own":  # both gates times z: they do not add up to 1
            return z * torch.tanh(self.W(x) + self.R(r * h)) + z * h
        if self.kind == "part of h":
            half = torch.cat([r[:, :3] * h[:, :3], h[:, 3:]], 1)
            return (1 - z) * torch.tanh(self.W(x) + self.R(half)) + z * h
        if self.kind == "beside":
            inner = self.R(r * h) + h @ self.R.weight
            return (1 - z) * torch.tanh(self.W(x) + inner) + z * h
        if self.kind == "x too":
            return (1 - z) * torch.tanh(r * (self.W(x) + self.R(h))) + z * h
        if self.kind == "no reset":
            return (1 - z) * torch.tanh(self.W(x) + self.R(h)) + z * h
        if self.kind == "two functions":
            return (1 - z) * torch.tanh(self.W(x) + self.R(F.hardsigmoid(z_r) * h)) + z * h
        return (1 - z) * F.hardtanh(self.W(x) + self.R(r * h)) + z * h  # no operator takes it


NEAR_GRUS = [
    (MinimalGated, "minimal gated unit"),
    (lambda: NearGRU("shares of their own"), "do not add up to 1"),
    (lambda: NearGRU("part of h"), "a part of h"),
    (lambda: NearGRU("beside"), "beside the reset gate too"),
    (lambda: NearGRU("x too"), "reaches `x` too"),
    (lambda: NearGRU("no reset"), "through no reset gate"),
    (lambda: NearGRU("two functions"), "r and z are gates of different functions"),
    (lambda: NearGRU("hardtanh"), "no gate times an activation that the operators take"),
]
