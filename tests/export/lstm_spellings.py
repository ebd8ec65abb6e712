"""LSTM cells beyond the plain one, as different people write them, and some that only look so."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUT, HIDDEN = 3, 6
State = tuple[Tensor, Tensor]


class Peepholes(nn.Module):
    """Peepholes in one matrix of three rows, gates chunked."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Linear(INPUT + HIDDEN, 4 * HIDDEN)
        self.p = nn.Parameter(torch.randn(3, HIDDEN) * 0.3)

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = self.z(torch.cat([x, h], dim=1)).chunk(4, 1)
        new = torch.sigmoid(f + self.p[0] * c) * c + torch.sigmoid(i + self.p[1] * c) * g.tanh()
        return torch.sigmoid(o + self.p[2] * new) * new.tanh(), new


class PeepholeMatrices(nn.Module):
    """Diagonal matrices for peepholes, a matrix for each gate, h first."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.ParameterList(torch.randn(HIDDEN, HIDDEN + INPUT) * 0.4 for _ in range(4))
        self.p = nn.ParameterList(torch.randn(HIDDEN) * 0.3 for _ in range(3))

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        hx = torch.cat([h, x], 1)
        i = torch.sigmoid(hx @ self.W[0].t() + c @ torch.diag(self.p[0]))
        f = torch.sigmoid(hx @ self.W[1].t() + c @ torch.diag(self.p[1]) + 1.0)
        c = f * c + i * torch.tanh(hx @ self.W[2].t())
        o = torch.sigmoid(hx @ self.W[3].t() + c @ torch.diag(self.p[2]))
        return o * torch.tanh(c), c


class PartialPeephole(nn.Module):
    """Only the output gate has one."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(INPUT, 4 * HIDDEN)
        self.h = nn.Linear(HIDDEN, 4 * HIDDEN, bias=False)
        self.p = nn.Parameter(torch.randn(1, HIDDEN) * 0.3)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> State:
        g, o, i, f = torch.split(self.x(x) + self.h(h), HIDDEN, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o + c * self.p) * torch.tanh(c), c


class CoupledPeephole(nn.Module):
    """i = 1 - f, c corrected towards the candidate, peepholes of f and o."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Linear(INPUT + HIDDEN, 3 * HIDDEN)
        self.p = nn.Parameter(torch.randn(2, HIDDEN) * 0.3)

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        i, g, o = self.z(torch.cat([x, h], dim=1)).chunk(3, 1)
        c = c + torch.sigmoid(i + self.p[0] * c) * (g.tanh() - c)
        return torch.sigmoid(o + self.p[1] * c) * c.tanh(), c


class Coupled(nn.Module):
    """i = 1 - f (Greff et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Linear(INPUT + HIDDEN, 3 * HIDDEN)

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        f, g, o = self.z(torch.cat([x, h], dim=1)).chunk(3, 1)
        f = f.sigmoid()
        c = f * c + (1 - f) * g.tanh()
        return o.sigmoid() * c.tanh(), c


class CoupledLerp(nn.Module):
    """f = 1 - i, by torch.lerp."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(INPUT, 3 * HIDDEN)
        self.h = nn.Linear(HIDDEN, 3 * HIDDEN)

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        i, o, g = (self.x(x) + self.h(h)).chunk(3, 1)
        c = torch.lerp(c, torch.tanh(g), torch.sigmoid(i))
        return torch.sigmoid(o) * torch.tanh(c), c


class CoupledHard(nn.Module):
    """Coupled, with hard sigmoids."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Linear(INPUT + HIDDEN, 3 * HIDDEN)

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        f, g, o = self.z(torch.cat([x, h], dim=1)).chunk(3, 1)
        f = F.hardsigmoid(f)
        c = f * c + (1 - f) * g.tanh()
        return F.hardsigmoid(o) * c.tanh(), c


class Activated(nn.Module):
    """The plain cell with functions of one's own: of the gates, the candidate, the output."""

    def __init__(self, gate: str = "sigmoid", g: str = "tanh", h: str = "tanh") -> None:
        super().__init__()
        self.z = nn.Linear(INPUT + HIDDEN, 4 * HIDDEN)
        self.fns = [FUNCTIONS[name] for name in (gate, g, h)]

    def forward(self, x: Tensor, state: State) -> State:
        gate, candidate, output = self.fns
        h, c = state
        i, f, g, o = self.z(torch.cat([h, x], dim=1)).chunk(4, 1)
        c = gate(f) * c + gate(i) * candidate(g)
        return gate(o) * output(c), c


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "half tanh": lambda z: 0.5 * (torch.tanh(0.5 * z) + 1),
    "hardsigmoid": F.hardsigmoid,
    "keras": lambda z: torch.clamp(0.2 * z + 0.5, 0.0, 1.0),
    "relu6": lambda z: F.relu6(z + 3) / 6,
    "hardtanh": lambda z: (F.hardtanh(z) + 1) / 2,
    "tanh": torch.tanh,
    "softsign": F.softsign,
    "relu": torch.relu,
    "linear": lambda z: z,
    "scaled": lambda z: 1.5 * torch.tanh(z),
}


LSTMS = [
    (Peepholes, "lstm (peepholes)"),
    (PeepholeMatrices, "lstm (peepholes)"),
    (PartialPeephole, "lstm (peepholes)"),
    (CoupledPeephole, "lstm (peepholes; coupled i = 1 - f)"),
    (Coupled, "lstm (coupled i = 1 - f)"),
    (CoupledLerp, "lstm (coupled i = 1 - f)"),
    (CoupledHard, "lstm (coupled i = 1 - f; f hard sigmoid, g tanh, h tanh)"),
    (lambda: Activated("hardsigmoid"), "lstm (f hard sigmoid, g tanh, h tanh)"),
    (lambda: Activated("keras"), "lstm (f hard sigmoid, g tanh, h tanh)"),
    (lambda: Activated("relu6"), "lstm (f hard sigmoid, g tanh, h tanh)"),
    (lambda: Activated("hardtanh"), "lstm (f hard sigmoid, g tanh, h tanh)"),
    (lambda: Activated("half tanh"), "lstm"),
    (lambda: Activated(g="softsign", h="softsign"), "lstm (f sigmoid, g softsign, h softsign)"),
    (lambda: Activated(g="relu"), "lstm (f sigmoid, g relu, h tanh)"),
    (lambda: Activated(g="linear"), "lstm (f sigmoid, g linear, h tanh)"),
    (lambda: Activated(h="linear"), "lstm (f sigmoid, g tanh, h linear)"),
    (lambda: Activated(g="sigmoid", h="scaled"), "lstm (f sigmoid, g sigmoid, h 1.5 tanh)"),
]


class NearLSTM(nn.Module):
    """LSTMs with one thing changed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.z = nn.Linear(INPUT + HIDDEN, 4 * HIDDEN)
        self.p = nn.Parameter(torch.randn(HIDDEN, HIDDEN) * 0.3)
        self.kind = kind

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        z_i, z_f, g, z_o = self.z(torch.cat([x, h], dim=1)).chunk(4, 1)
        if self.kind == "old c":
            z_o = z_o + self.p[0] * c
        if self.kind == "matrix":
            z_f = z_f + c @ self.p
        i, f, o = torch.sigmoid(z_i), torch.sigmoid(z_f), torch.sigmoid(z_o)
        if self.kind == "no forget gate":
            f = torch.ones_like(f)
        if self.kind == "mixed gates":
            i = F.hardsigmoid(z_i)
        new = f * c + i * torch.tanh(g)
        if self.kind == "other c":  # the state keeps another c than h is made of
            return o * torch.tanh(new), 0.9 * new
        if self.kind == "squared":
            out = o * torch.tanh(new)
            return out * out, new
        if self.kind == "hardtanh":
            return o * F.hardtanh(new), new
        return o * torch.tanh(new), new


NEAR_LSTMS = [
    (lambda: NearLSTM("old c"), "o looks at the old c"),
    (lambda: NearLSTM("matrix"), "through a whole matrix"),
    (lambda: NearLSTM("no forget gate"), "as it is, by no gate"),
    (lambda: NearLSTM("mixed gates"), "gates of different functions"),
    (lambda: NearLSTM("other c"), "does not come back"),
    (lambda: NearLSTM("squared"), "no LSTM, GRU or RNN"),
    (lambda: NearLSTM("hardtanh"), "a function that no operator takes"),
]
