"""Cells of many operations, each a small one: the general road must be able to take them all."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN = 16


class LayerNormLSTM(nn.Module):
    """Layer norm over the gates and over c (Ba et al., 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(1, 4 * HIDDEN, bias=False)
        self.h = nn.Linear(HIDDEN, 4 * HIDDEN)
        self.norm = nn.LayerNorm(4 * HIDDEN)
        self.norm_c = nn.LayerNorm(HIDDEN)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = self.norm(self.x(x) + self.h(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.norm_c(c)), c


class ExponentialGates(nn.Module):
    """sLSTM: exponential gates with a stabiliser m and a normaliser n (Beck et al., 2024)."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Linear(1 + HIDDEN, 4 * HIDDEN)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        h, c, n, m = state
        i, f, z, o = self.gates(torch.cat([x, h], dim=1)).chunk(4, 1)
        m_new = torch.maximum(F.logsigmoid(f) + m, i)
        i, f = torch.exp(i - m_new), torch.exp(F.logsigmoid(f) + m - m_new)
        c = f * c + i * torch.tanh(z)
        n = f * n + i
        h = torch.sigmoid(o) * c / n.clamp(min=1e-6)
        return h, (h, c, n, m_new)


class Mogrifier(nn.Module):
    """x and h gate each other before the cell (Melis et al., 2020), with a square to part roads."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(1, HIDDEN)
        self.q = nn.Parameter(torch.randn(HIDDEN, 1) * 0.3)
        self.r = nn.Parameter(torch.randn(1, HIDDEN) * 0.3)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        x = 2 * torch.sigmoid(h @ self.q) * x
        h = 2 * torch.sigmoid(x @ self.r) * h
        h, c = self.cell(x / (1 + x.abs()), (h, c))
        return h, c


class ConvLSTM(nn.Module):
    """Maps of 1 x 4 x 4; states of 3 x 4 x 4 (Shi et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1 + 3, 12, 3, padding=1)
        self.out = nn.Conv2d(3, 1, 1)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if state is None:
            zeros = x.new_zeros(x.size(0), 3, 4, 4)
            state = (zeros, zeros)
        h, c = state
        ys = []
        for t in range(x.size(1)):
            i, f, g, o = self.conv(torch.cat([x[:, t], h], dim=1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            ys.append(self.out(h))
        return torch.stack(ys, 1), (h, c)


class Elu(nn.Module):
    """A GRU-like mean of h and a candidate that is no tanh; h has no bound."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Linear(1 + HIDDEN, HIDDEN)
        self.n = nn.Linear(1 + HIDDEN, HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        hx = torch.cat([h, x], dim=1)
        z = torch.sigmoid(self.z(hx))
        return z * h + (1 - z) * F.elu(self.n(hx))


class MultiplicativeLSTM(nn.Module):
    """h enters by way of (x W) * (h U) (Krause et al., 2016), and zoneout keeps a share of it."""

    def __init__(self) -> None:
        super().__init__()
        self.wm = nn.Linear(1, HIDDEN, bias=False)
        self.um = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.wx = nn.Linear(1, 4 * HIDDEN)
        self.wh = nn.Parameter(torch.randn(4 * HIDDEN, HIDDEN) * 0.2)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        m = self.wm(x) * self.um(h)
        i, f, o, g = torch.split(self.wx(x) + torch.einsum("bh,oh->bo", m, self.wh), HIDDEN, 1)
        new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        new_h = o.sigmoid() * new_c.tanh()
        return 0.1 * h + 0.9 * new_h, 0.05 * c + 0.95 * new_c


class SRU(nn.Module):
    """No product of h at all (Lei et al., 2018), over a chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(1, 4 * HIDDEN)
        self.v = nn.Parameter(torch.randn(2, HIDDEN) * 0.3)

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u = self.w(x)
        state = x.new_zeros(x.shape[0], HIDDEN) if c is None else c
        ys = []
        for t in range(x.shape[1]):
            z, f, r, skip = u[:, t].chunk(4, dim=-1)
            f = torch.sigmoid(f + self.v[0] * state)
            r = torch.sigmoid(r + self.v[1] * state)
            state = f * state + (1 - f) * z
            ys.append(r * state + (1 - r) * skip)
        return torch.stack(ys, dim=1), state


class Picking(nn.Module):
    """Where, gather, sort and comparison: the greatest two of h drive a switched update."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(1 + 2, HIDDEN)
        self.u = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        order = torch.argsort(h, dim=1, descending=True)[:, :2]
        top = torch.gather(h, 1, order)
        new = torch.tanh(self.w(torch.cat([x, top], 1)) + self.u(h))
        return torch.where(x > 0, new, h)


class FastWeights(nn.Module):
    """h as a matrix, multiplied by another that is computed: rows within it meet bilinearly."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Linear(1 + HIDDEN, 2 * HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a, o = self.z(torch.cat([x, h], dim=1)).chunk(2, 1)
        turned = torch.bmm(torch.tanh(a).view(-1, 4, 4), h.view(-1, 4, 4)).flatten(1)
        return torch.sigmoid(o) * torch.tanh(turned + a)
