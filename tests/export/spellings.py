"""One LSTM cell as different people write it; each is built with the same mathematics inside."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUT, HIDDEN = 3, 6


class FourMatrices(nn.Module):
    """Four matrices over cat(h, x)."""

    def __init__(self) -> None:
        super().__init__()
        self.W_f = nn.Parameter(torch.randn(HIDDEN, HIDDEN + INPUT) * 0.4)
        self.W_i = nn.Parameter(torch.randn(HIDDEN, HIDDEN + INPUT) * 0.4)
        self.W_c = nn.Parameter(torch.randn(HIDDEN, HIDDEN + INPUT) * 0.4)
        self.W_o = nn.Parameter(torch.randn(HIDDEN, HIDDEN + INPUT) * 0.4)
        self.b_f = nn.Parameter(torch.randn(HIDDEN) * 0.3)
        self.b_i = nn.Parameter(torch.randn(HIDDEN) * 0.3)
        self.b_c = nn.Parameter(torch.randn(HIDDEN) * 0.3)
        self.b_o = nn.Parameter(torch.randn(HIDDEN) * 0.3)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        hx = torch.cat((h, x), dim=1)
        f = torch.sigmoid(hx @ self.W_f.t() + self.b_f)
        i = torch.sigmoid(hx @ self.W_i.t() + self.b_i)
        candidate = torch.tanh(hx @ self.W_c.t() + self.b_c)
        o = torch.sigmoid(hx @ self.W_o.t() + self.b_o)
        c = f * c + i * candidate
        return o * torch.tanh(c), c


class Chunked(nn.Module):
    """One transposed 4H matrix each for x and h, gates in the order o, g, f, i, two biases."""

    def __init__(self) -> None:
        super().__init__()
        self.U = nn.Parameter(torch.randn(INPUT, 4 * HIDDEN) * 0.4)
        self.V = nn.Parameter(torch.randn(HIDDEN, 4 * HIDDEN) * 0.4)
        self.b1 = nn.Parameter(torch.randn(4 * HIDDEN) * 0.3)
        self.b2 = nn.Parameter(torch.randn(4 * HIDDEN) * 0.3)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        o, g, f, i = (x @ self.U + self.b1 + h @ self.V + self.b2).chunk(4, 1)
        c = g.tanh() * i.sigmoid() + c * f.sigmoid()
        return c.tanh() * o.sigmoid(), c


class LinearPairs(nn.Module):
    """A pair of nn.Linear a gate, and a forget-bias offset added in code."""

    def __init__(self) -> None:
        super().__init__()
        self.xs = nn.ModuleList(nn.Linear(INPUT, HIDDEN) for _ in range(4))
        self.hs = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(4))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, o, g = (a(x) + b(h) for a, b in zip(self.xs, self.hs, strict=True))
        new = torch.sigmoid(f + 1.0) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(new), new


class OneSigmoid(nn.Module):
    """One sigmoid over three gates at once, an einsum, weights (4, H, I)."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(4, HIDDEN, INPUT) * 0.4)
        self.R = nn.Parameter(torch.randn(4, HIDDEN, HIDDEN) * 0.4)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        z = torch.einsum("bi,ghi->bgh", x, self.W) + torch.einsum("bk,ghk->bgh", h, self.R)
        gates = torch.sigmoid(z[:, :3])
        c = gates[:, 0] * c + gates[:, 1] * torch.tanh(z[:, 3])
        return gates[:, 2] * torch.tanh(c), c


class Functional(nn.Module):
    """F.linear, addcmul and in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4 * HIDDEN, INPUT + HIDDEN) * 0.4)
        self.bias = nn.Parameter(torch.randn(4 * HIDDEN) * 0.3)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        z = F.linear(torch.cat([x, h], -1), self.weight, self.bias)
        i, f, g, o = torch.split(z, HIDDEN, dim=1)
        i.sigmoid_()
        f.sigmoid_()
        c = c * f
        c += i * g.tanh()
        return o.sigmoid() * c.tanh(), c


ALL = (FourMatrices, Chunked, LinearPairs, OneSigmoid, Functional)


class CatGRU(nn.Module):
    """The GRU of the paper (Cho et al. 2014): the reset gate before the matrix product."""

    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.r = nn.Linear(INPUT + hidden, hidden)
        self.z = nn.Linear(INPUT + hidden, hidden)
        self.n = nn.Linear(INPUT + hidden, hidden)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        hx = torch.cat([h, x], dim=1)
        r, z = torch.sigmoid(self.r(hx)), torch.sigmoid(self.z(hx))
        candidate = torch.tanh(self.n(torch.cat([r * h, x], dim=1)))
        return (1 - z) * h + z * candidate


class Peephole(nn.Module):
    """An LSTM whose gates also look at c (Gers & Schmidhuber 2000)."""

    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.z = nn.Linear(INPUT + hidden, 4 * hidden)
        self.p = nn.Parameter(torch.randn(3, hidden) * 0.3)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = self.z(torch.cat([x, h], dim=1)).chunk(4, 1)
        new = torch.sigmoid(f + self.p[0] * c) * c + torch.sigmoid(i + self.p[1] * c) * g.tanh()
        return torch.sigmoid(o + self.p[2] * new) * new.tanh(), new


class Coupled(nn.Module):
    """An LSTM whose input gate is 1 - f (Greff et al. 2015)."""

    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.z = nn.Linear(INPUT + hidden, 3 * hidden)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        f, g, o = self.z(torch.cat([x, h], dim=1)).chunk(3, 1)
        f = f.sigmoid()
        c = f * c + (1 - f) * g.tanh()
        return o.sigmoid() * c.tanh(), c


class MinimalGated(nn.Module):
    """Another function: one gate (Zhou et al. 2016). No LSTM operator computes it."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(INPUT + HIDDEN, HIDDEN)
        self.g = nn.Linear(INPUT + HIDDEN, HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        f = torch.sigmoid(self.f(torch.cat([x, h], 1)))
        candidate = torch.tanh(self.g(torch.cat([x, f * h], 1)))
        return (1 - f) * h + f * candidate


class AlmostLSTM(nn.Module):
    """An LSTM whose output gate is squared: it must not be taken for one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = FourMatrices()

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = self.inner(x, state)
        return h * h, c


OTHERS = (CatGRU, Peephole, Coupled, MinimalGated, AlmostLSTM)
