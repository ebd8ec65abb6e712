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
