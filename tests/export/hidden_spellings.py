"""Networks that hide the states of loops of their own, as different people write them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.export.spellings import HIDDEN, INPUT, Chunked, FourMatrices

H, IDS = HIDDEN, 9


class OwnCell(nn.Module):
    """A cell of its own, outputs gathered in a list and stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = FourMatrices()
        self.fc = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), H)
        c = torch.zeros(x.size(0), H)
        outputs = []
        for t in range(x.size(1)):
            h, c = self.cell(x[:, t, :], (h, c))
            outputs.append(h)
        y: Tensor = self.fc(torch.stack(outputs, dim=1))
        return y


class InlineChunk(nn.Module):
    """Gates chunked inline, outputs written into memory set aside by index."""

    def __init__(self) -> None:
        super().__init__()
        self.i2h = nn.Linear(INPUT, 4 * H)
        self.h2h = nn.Linear(H, 4 * H)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        h, c = x.new_zeros(batch, H), x.new_zeros(batch, H)
        out = torch.empty(batch, steps, H)
        for t in range(steps):
            i, f, g, o = (self.i2h(x[:, t]) + self.h2h(h)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            out[:, t] = h
        return out


class FourLinear(nn.Module):
    """Four layers over cat(x, h); the last output alone."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.i, self.g, self.o = (nn.Linear(INPUT + H, H) for _ in range(4))
        self.head = nn.Sequential(nn.Linear(H, 5), nn.ReLU(), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], H, device=x.device)
        c = torch.zeros_like(h)
        for step in x.unbind(1):
            hx = torch.cat((step, h), dim=-1)
            c = self.f(hx).sigmoid() * c + self.i(hx).sigmoid() * self.g(hx).tanh()
            h = self.o(hx).sigmoid() * c.tanh()
        y: Tensor = self.head(h)
        return y


class InlineGRU(nn.Module):
    """A GRU inline, the state (1, B, H) as torch has it, outputs joined by cat."""

    def __init__(self) -> None:
        super().__init__()
        self.rz = nn.Linear(INPUT + H, 2 * H)
        self.n = nn.Linear(INPUT + H, H)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(1, x.size(0), H)
        out = []
        for t in range(x.size(1)):
            step = x[:, t].unsqueeze(0)
            r, z = torch.sigmoid(self.rz(torch.cat([step, h], 2))).chunk(2, dim=2)
            h = (1 - z) * h + z * torch.tanh(self.n(torch.cat([step, r * h], 2)))
            out.append(h)
        return torch.cat(out, dim=0).permute(1, 0, 2)


class Stacked(nn.Module):
    """Two cells of its own, step by step through both, a residual between."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(INPUT, INPUT)
        self.cells = nn.ModuleList([Chunked(), Chunked()])
        self.down = nn.Linear(H, INPUT)

    def forward(self, x: Tensor) -> Tensor:
        state = [(x.new_zeros(len(x), H), x.new_zeros(len(x), H)) for _ in self.cells]
        out = []
        for t in range(x.size(1)):
            value = self.inp(x[:, t])
            for k, cell in enumerate(self.cells):
                state[k] = cell(value, state[k])
                value = value + self.down(state[k][0])
            out.append(value)
        return torch.stack(out, 1)


class LayerByLayer(nn.Module):
    """The whole sequence through one cell, a LayerNorm, then through the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Chunked(), nn.GRUCell(H, 4)
        self.norm = nn.LayerNorm(H)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.size(0), H)
        seq = []
        for t in range(x.size(1)):
            h, c = self.first(x[:, t], (h, c))
            seq.append(h)
        normed = self.norm(torch.stack(seq, 1))
        g = torch.zeros(x.size(0), 4)
        out = []
        for t in range(x.size(1)):
            g = self.second(normed[:, t], g)
            out.append(g)
        return torch.stack(out, 1)


class Precomputed(nn.Module):
    """All steps' projections of x in one product, then the loop; a learned start."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Linear(INPUT, 4 * H)
        self.U = nn.Parameter(torch.randn(H, 4 * H) * 0.3)
        self.h0 = nn.Parameter(torch.randn(1, H))
        self.c0 = nn.Parameter(torch.randn(H))

    def forward(self, x: Tensor) -> Tensor:
        projected = self.W(x)
        h, c = self.h0.expand(x.size(0), -1), self.c0.repeat(x.size(0), 1)
        out = []
        for t in range(x.size(1)):
            z = projected[:, t] + h @ self.U
            i, f, g, o = z[:, :H], z[:, H : 2 * H], z[:, 2 * H : 3 * H], z[:, 3 * H :]
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h.unsqueeze(1))
        return torch.cat(out, 1)


class TimeFirst(nn.Module):
    """(T, B, I) in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = FourMatrices()

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.size(1), H)
        out = []
        for step in x:
            h, c = self.cell(step, (h, c))
            out.append(h)
        return torch.stack(out)


class Mixed(nn.Module):
    """nn.LSTMCell before a cell of its own; the hooks see the first alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.LSTMCell(INPUT, 5)
        self.b = nn.Linear(5 + H, H)

    def forward(self, x: Tensor) -> Tensor:
        h, c = x.new_zeros(x.size(0), 5), x.new_zeros(x.size(0), 5)
        s = x.new_zeros(x.size(0), H)
        out = []
        for t in range(x.size(1)):
            h, c = self.a(x[:, t], (h, c))
            s = torch.tanh(self.b(torch.cat([h, s], 1)))
            out.append(s)
        return torch.stack(out, 1)


class PackedThenOwn(nn.Module):
    """A packed nn.LSTM, then a loop of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(INPUT, 5, batch_first=True)
        self.b = nn.Linear(5 + H, H)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.full((x.size(0),), x.size(1))
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        s = x.new_zeros(x.size(0), H)
        for t in range(x.size(1)):
            s = torch.tanh(self.b(torch.cat([out[:, t], s], 1)))
        return s


class Embedded(nn.Module):
    """Token ids in; scores of the next out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(IDS, INPUT)
        self.cell = Chunked()
        self.head = nn.Linear(H, IDS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        h = c = torch.zeros(ids.shape[0], H)
        out = []
        for t in range(ids.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            out.append(self.head(h))
        return torch.stack(out, 1)


class ReadsItsBuffer(nn.Module):
    """An Elman network that reads its last state where it wrote it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(INPUT, H)
        self.u = nn.Linear(H, H, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hs = torch.zeros(x.size(0), x.size(1) + 1, H)
        for t in range(x.size(1)):
            hs[:, t + 1] = torch.tanh(self.w(x[:, t]) + self.u(hs[:, t].clone()))
        return hs[:, 1:]


class Transposed(nn.Module):
    """The state as a column, (H, B), as in a textbook's formulas."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(H, INPUT) * 0.4)
        self.U = nn.Parameter(torch.randn(H, H) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(H, x.size(0))
        out = []
        for t in range(x.size(1)):
            h = torch.tanh(self.W @ x[:, t].t() + self.U @ h)
            out.append(h.t())
        return torch.stack(out, 1)


class Rectified(nn.Module):
    """Units at zero for half of all inputs hide what they depend on there."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Linear(INPUT, H), nn.Linear(H, H)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], H)
        out = []
        for step in x.split(1, dim=1):  # type: ignore[no-untyped-call]
            h = torch.relu(self.w(step.squeeze(1)) + torch.tanh(self.u(h)))
            out.append(h)
        return torch.stack(out, 1)


class MatrixMemory(nn.Module):
    """A matrix for a state, as in linear attention, read by a query of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.v, self.q = (nn.Linear(INPUT, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        memory = torch.zeros(x.size(0), 4, 4)
        out = []
        for t in range(x.size(1)):
            k, v, q = self.k(x[:, t]), self.v(x[:, t]), self.q(x[:, t])
            memory = 0.9 * memory + k.unsqueeze(2) * v.unsqueeze(1)
            out.append(torch.einsum("bk,bkv->bv", q, memory))
        return torch.stack(out, 1)


@dataclass(frozen=True)
class Spelling:
    """A network, what it is called like, and the states that it must come out with."""

    module: type[nn.Module]
    call: str
    states: Mapping[str, tuple[int, ...]]


LSTM_STATES: Mapping[str, tuple[int, ...]] = {"h": (H,), "c": (H,)}
SPELLINGS = (
    Spelling(OwnCell, "X -> Y", LSTM_STATES),
    Spelling(InlineChunk, "X -> Y", LSTM_STATES),
    Spelling(FourLinear, "X -> y", LSTM_STATES),
    Spelling(InlineGRU, "X -> Y", {"h": (H,)}),
    Spelling(Stacked, "X -> Y", {"h1": (H,), "c1": (H,), "h2": (H,), "c2": (H,)}),
    Spelling(LayerByLayer, "X -> Y", {"h1": (H,), "c1": (H,), "h2": (4,)}),
    Spelling(Precomputed, "X -> Y", LSTM_STATES),
    Spelling(TimeFirst, "X -> Y", LSTM_STATES),
    Spelling(Mixed, "X -> Y", {"h1": (5,), "c1": (5,), "h2": (H,)}),
    Spelling(PackedThenOwn, "X -> y", {"h1": (5,), "c1": (5,), "h2": (H,)}),
    Spelling(Embedded, "X -> Y", LSTM_STATES),
    Spelling(ReadsItsBuffer, "X -> Y", {"h": (H,)}),
    Spelling(Transposed, "X -> Y", {"h": (H,)}),
    Spelling(Rectified, "X -> Y", {"h": (H,)}),
    Spelling(MatrixMemory, "X -> Y", {"h": (4, 4)}),
)
