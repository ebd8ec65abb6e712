"""One LSTM step behind the ways in which different people let it be called."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

INPUT, HIDDEN = 3, 6
Pair = tuple[Tensor, Tensor]


class Base(nn.Module):
    """The mathematics that most of them share."""

    gates: nn.Linear

    def __init__(self, width: int = INPUT) -> None:
        super().__init__()
        self.gates = nn.Linear(width + HIDDEN, 4 * HIDDEN)

    def cell(self, x: Tensor, h: Tensor, c: Tensor) -> Pair:
        i, f, g, o = self.gates(torch.cat([x, h], dim=-1)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class Nested(Base):
    """One nested tuple."""

    def forward(self, inputs: tuple[Tensor, Pair]) -> Pair:
        x, (h, c) = inputs
        return self.cell(x, h, c)


class StateFirst(Base):
    """The state before x."""

    def forward(self, state: Pair, x: Tensor) -> tuple[Tensor, Pair]:
        h, c = self.cell(x, *state)
        return h, (h, c)


class Keywords(Base):
    """The state by keyword alone."""

    def forward(self, x: Tensor, *, hx: Pair) -> Pair:
        return self.cell(x, *hx)


class DictOut(Base):
    """A dict of output and state."""

    def forward(self, x: Tensor, hx: Pair) -> dict[str, object]:
        h, c = self.cell(x, *hx)
        return {"output": h, "state": (h, c), "gate": None}


class DictIn(Base):
    """A dict of states in and out."""

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        h, c = self.cell(x, state["h"], state["c"])
        return {"h": h, "c": c}


@dataclass
class Output:
    """As libraries of large models return it."""

    logits: Tensor
    hidden: Pair | None = None


class Attributes(Base):
    """An object with attributes."""

    def forward(self, x: Tensor, hidden: Pair) -> Output:
        h, c = self.cell(x, *hidden)
        return Output(2 * h, (h, c))


class Result(NamedTuple):
    """A named tuple."""

    y: Tensor
    hidden: Pair


class Named(Base):
    """A named tuple, by its names or in its order."""

    def forward(self, x: Tensor, hidden: Pair) -> Result:
        h, c = self.cell(x, *hidden)
        return Result(h, (h, c))


class Concatenated(Base):
    """h and c side by side in one tensor (B, 2H)."""

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, c = self.cell(x, *state.chunk(2, dim=-1))
        return h, torch.cat([h, c], dim=-1)


class StackedFirst(Base):
    """h and c stacked in front: (2, B, H)."""

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, c = self.cell(x, state[0], state[1])
        return h, torch.stack([h, c])


class StackedSecond(Base):
    """h and c stacked behind the batch: (B, 2, H)."""

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, c = self.cell(x, state[:, 0], state[:, 1])
        return h, torch.stack([h, c], dim=1)


class StackedLast(Base):
    """h and c stacked on a last axis: (B, H, 2)."""

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, c = self.cell(x, state[..., 0], state[..., 1])
        return h, torch.stack([h, c], dim=-1)


class LayeredPacked(Base):
    """(L, B, 2H), one layer."""

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, c = self.cell(x, *state[0].chunk(2, dim=-1))
        return h, torch.cat([h, c], dim=-1).unsqueeze(0)


class OneElement(Base):
    """A container of one."""

    def forward(self, x: Tensor, state: tuple[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
        (packed,) = state
        h, c = self.cell(x, *packed.chunk(2, dim=-1))
        return h, (torch.cat([h, c], dim=-1),)


class FourStates(nn.Module):
    """Two cells, four flat states."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Base(), Base(HIDDEN)

    def forward(
        self, x: Tensor, h1: Tensor, c1: Tensor, h2: Tensor, c2: Tensor
    ) -> tuple[Tensor, ...]:
        h1, c1 = self.one.cell(x, h1, c1)
        h2, c2 = self.two.cell(h1, h2, c2)
        return h2, h1, c1, h2, c2


class LayerList(nn.Module):
    """A list of (h, c) per layer, started by itself; Y is a list of one tensor a step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Base(), Base(HIDDEN)])

    def forward(
        self, x: Tensor, states: list[Pair] | None = None
    ) -> tuple[list[Tensor], list[Pair]]:
        if states is None:
            zeros = x.new_zeros(x.size(0), HIDDEN)
            states = [(zeros, zeros) for _ in self.layers]
        states = list(states)
        outputs = []
        for step in x.unbind(1):
            for k, layer in enumerate(self.layers):
                assert isinstance(layer, Base)
                states[k] = layer.cell(step, *states[k])
                step = states[k][0]
            outputs.append(step)
        return outputs, states


class Extra(Base):
    """mu, sigma and attention beside the state."""

    def forward(self, x: Tensor, hx: Pair) -> tuple[Tensor, Tensor, Pair, Tensor]:
        h, c = self.cell(x, *hx)
        return h[:, :2], torch.sigmoid(c[:, 0]), (h, c), torch.ones(7)


class Masked(Base):
    """A mask that keeps the state of rows that are not there."""

    def forward(self, x: Tensor, mask: Tensor, hx: Pair) -> Pair:
        h, c = self.cell(x, *hx)
        return mask * h + (1 - mask) * hx[0], mask * c + (1 - mask) * hx[1]


class ResetMask(Base):
    """A flag (B,) bool that begins a session anew."""

    def forward(self, x: Tensor, state: Pair, done: Tensor) -> tuple[Tensor, Pair]:
        if done.dtype is not torch.bool or done.ndim != 1:
            raise TypeError("done is a bool a row")
        keep = (~done).to(x.dtype).unsqueeze(-1)
        h, c = self.cell(x, state[0] * keep, state[1] * keep)
        return h, (h, c)


class Timed(Base):
    """Told the index of the step."""

    def forward(self, x: Tensor, hx: Pair, t: Tensor) -> Pair:
        h, c = self.cell(x, *hx)
        return h + 0.01 * t.to(x.dtype).reshape(-1, 1), c


class KeptLazily(Base):
    """h and c as attributes that a first call makes."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Pair | None = None
        self.attention = torch.zeros(1)
        self.calls = 0

    def reset_state(self) -> None:
        self.hidden = None

    def forward(self, x: Tensor) -> Tensor:
        if self.hidden is None:
            zeros = x.new_zeros(x.size(0), HIDDEN)
            self.hidden = (zeros, zeros)
        self.hidden = self.cell(x, *self.hidden)
        self.attention = self.hidden[0].softmax(-1)
        self.calls += 1
        return 2 * self.hidden[0]


class KeptInBuffers(Base):
    """h and c as buffers that the user begins for a batch, and that start from a learned value."""

    def __init__(self) -> None:
        super().__init__()
        self.h0 = nn.Parameter(torch.randn(HIDDEN))
        self.register_buffer("h", torch.zeros(1, HIDDEN))
        self.register_buffer("c", torch.zeros(1, HIDDEN))

    def reset(self, batch_size: int) -> None:
        self.h = self.h0.expand(batch_size, -1)
        self.c = torch.zeros(batch_size, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        self.h, self.c = self.cell(x, self.h, self.c)
        return self.h


class KeptLayer(nn.Module):
    """`self.hidden = model.init_hidden(batch)` before each sequence, as in many scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(INPUT, HIDDEN)
        self.fc = nn.Linear(HIDDEN, 2)
        self.hidden = self.init_hidden(1)

    def init_hidden(self, batch_size: int) -> Pair:
        return torch.zeros(1, batch_size, HIDDEN), torch.zeros(1, batch_size, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        out, self.hidden = self.lstm(x, self.hidden)
        y: Tensor = self.fc(out)
        return y


class BatchOfOne(nn.Module):
    """The classic tutorial's: one sentence, `view(len(x), 1, -1)`, the state on the module."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(INPUT, HIDDEN)
        self.fc = nn.Linear(HIDDEN, 2)
        self.hidden = (torch.zeros(1, 1, HIDDEN), torch.zeros(1, 1, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        out, self.hidden = self.lstm(x.view(len(x), 1, -1), self.hidden)
        y: Tensor = self.fc(out.view(len(x), -1))
        return y


class Vectors(nn.Module):
    """No batch at all: x (I,), h (H,)."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(HIDDEN, INPUT))
        self.U = nn.Parameter(torch.randn(HIDDEN, HIDDEN))
        self.b = nn.Parameter(torch.randn(HIDDEN))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.W.mv(x) + self.U.mv(h) + self.b)


class Columns(nn.Module):
    """Column vectors: x (I, B), h (H, B)."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(HIDDEN, INPUT))
        self.U = nn.Parameter(torch.randn(HIDDEN, HIDDEN))
        self.b = nn.Parameter(torch.randn(HIDDEN, 1))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.W @ x + self.U @ h + self.b)


class LearnedStart(Base):
    """h starts from a parameter, c from ones, where None is given."""

    def __init__(self) -> None:
        super().__init__()
        self.h0 = nn.Parameter(torch.randn(1, HIDDEN))

    def forward(self, x: Tensor, state: Pair | None = None) -> tuple[Tensor, Pair]:
        if state is None:
            state = (self.h0.expand(x.size(0), -1), torch.ones(x.size(0), HIDDEN))
        outputs = []
        for step in x.unbind(1):
            state = self.cell(step, *state)
            outputs.append(state[0])
        return torch.stack(outputs, dim=1), state


class InitialMethod(Base):
    """The states that `init_hidden(batch)` makes are not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(2, HIDDEN))

    def init_hidden(self, batch: int) -> Pair:
        h, c = (row.expand(batch, -1) for row in self.start.tanh())
        return h, c

    def forward(self, x: Tensor, hidden: Pair) -> tuple[Tensor, Pair]:
        h, c = self.cell(x, *hidden)
        return h, (h, c)


class ComputedStart(LearnedStart):
    """Its start depends on x."""

    def forward(self, x: Tensor, state: Pair | None = None) -> tuple[Tensor, Pair]:
        if state is None:
            first = x[:, 0].mean(-1, keepdim=True)
            state = (first * self.h0, first - self.h0)
        return super().forward(x, state)


class RandomStart(LearnedStart):
    """Its start is random."""

    def forward(self, x: Tensor, state: Pair | None = None) -> tuple[Tensor, Pair]:
        if state is None:
            state = (torch.randn(x.size(0), HIDDEN), torch.randn(x.size(0), HIDDEN))
        return super().forward(x, state)


class Squeezing(Base):
    """Squeezes, so that a batch of one breaks it."""

    def forward(self, x: Tensor, hx: Pair) -> tuple[Tensor, Pair]:
        h, c = self.cell(x.squeeze(), *(s.squeeze() for s in hx))
        return h[:, :2], (h, c)


class MixedAxes(nn.Module):
    """Takes batch first, gives time first."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(INPUT, HIDDEN, batch_first=True)

    def forward(self, x: Tensor, hx: Pair | None = None) -> tuple[Tensor, Pair]:
        out, state = self.lstm(x, hx)
        return out.transpose(0, 1), state


class PackedLengths(nn.Module):
    """pack_padded_sequence inside, the states hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(INPUT, HIDDEN, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, (h, _) = self.lstm(packed)
        y, _ = pad_packed_sequence(out, batch_first=True)
        return y, h


class Counting(Base):
    """Counts its calls in a Python number that the answer depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def forward(self, x: Tensor, hx: Pair) -> Pair:
        self.n += 1
        h, c = self.cell(x, *hx)
        return h / self.n, c


class EitherAxis(Base):
    """Looks at no axis by name: time or batch first both run."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(x, 0) + torch.cumsum(x, 1)
