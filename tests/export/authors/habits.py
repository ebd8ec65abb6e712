"""Habits of calling: where the state goes in, how it comes out, and what is kept in between."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from tests.export.authors.entry import Entry, beside, flags, road, waves


def stepped(module, x, state, call):
    """y of each step, by `call(module, x_t, state) -> y, state`: (B, T, n)."""
    ys = []
    for t in range(x.size(1)):
        y, state = call(module, x[:, t], state)
        ys.append(y)
    return torch.stack(ys, 1)


def zeros(x, *shape):
    return torch.zeros(shape).to(x.dtype)


class StateBeforeInput(nn.Module):
    """a scan function: carry first, gates o g i f, no bias on the way from x"""

    def __init__(self, features, inputs):
        super().__init__()
        self.hi = nn.Linear(inputs, 4 * features, bias=False)
        self.hh = nn.Linear(features, 4 * features)

    def forward(self, carry, inputs):
        c, h = carry
        o, g, i, f = torch.chunk(self.hi(inputs) + self.hh(h), 4, -1)
        new_c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        new_h = torch.sigmoid(o) * torch.tanh(new_c)
        return (new_c, new_h), new_h


class KeywordState(nn.Module):
    """the state as a keyword that has no default; the weights transposed for F.linear"""

    def __init__(self, n_in, n_hid):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4 * n_hid, n_in + n_hid) * 0.3)
        self.b = nn.Parameter(torch.zeros(4 * n_hid))

    def forward(self, x, *, hx):
        h, c = hx
        gates = nn.functional.linear(torch.cat([h, x], dim=1), self.w, self.b)
        f, g, i, o = gates.view(-1, 4, h.size(1)).transpose(0, 1)
        c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
        h = o.sigmoid() * c.tanh()
        return h, c


@dataclass
class Step:
    output: Tensor
    state: tuple[Tensor, Tensor]
    confidence: Tensor


class DataclassOut(nn.Module):
    def __init__(self, n_in=3, n=10):
        super().__init__()
        self.n = n
        self.rnn = nn.LSTM(n_in, n, batch_first=True)
        self.head = nn.Linear(n, 2)

    def forward(self, x, state=None):
        out, state = self.rnn(x, state)
        y = self.head(out)
        return Step(output=y, state=state, confidence=y.softmax(-1).amax(-1))


class Carry(NamedTuple):
    hidden: Tensor
    cell: Tensor


class NamedCarry(nn.Module):
    """a named tuple in and out; forget bias added in code; hidden size equal to the input's"""

    def __init__(self, n=6, forget_bias=1.0):
        super().__init__()
        self.x2g, self.h2g = nn.Linear(n, 4 * n), nn.Linear(n, 4 * n)
        self.forget_bias = forget_bias

    def forward(self, x: Tensor, carry: Carry) -> Carry:
        i, f, g, o = (self.x2g(x) + self.h2g(carry[0])).chunk(4, 1)
        cell = torch.sigmoid(f + self.forget_bias) * carry[1]
        cell = cell + torch.sigmoid(i) * torch.tanh(g)
        return Carry(hidden=torch.sigmoid(o) * torch.tanh(cell), cell=cell)


class ListOut(nn.Module):
    """time first; the outputs as a list of one tensor a step"""

    def __init__(self, n_in=3, n=8):
        super().__init__()
        self.cell, self.n = nn.GRUCell(n_in, n), n

    def forward(self, xs, h=None):
        if h is None:
            h = torch.zeros(xs.shape[1], self.n)
        outputs = []
        for x in xs:
            h = self.cell(x, h)
            outputs.append(h)
        return outputs, h


class LayeredCell(nn.Module):
    """one step, but states as nn.LSTM has them: (1, batch, hidden)"""

    def __init__(self, n_in=3, n=9):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(n_in, n), nn.Linear(n, 1)

    @torch.no_grad()
    def forward(self, x, h, c):
        out, (h, c) = self.lstm(x[None], (h, c))
        return self.fc(out[0]), h, c


class LastAxisState(nn.Module):
    """h and c side by side on a last axis: (batch, hidden, 2)"""

    def __init__(self, n_in=3, n=7):
        super().__init__()
        self.a = nn.Linear(n_in, 4 * n)
        self.b = nn.Linear(n, 4 * n, bias=False)

    def forward(self, x, state):
        h, c = state[..., 0], state[..., 1]
        i, g, f, o = (self.a(x) + self.b(h)).chunk(4, dim=-1)
        c = c * f.sigmoid() + g.tanh() * i.sigmoid()
        h = c.tanh() * o.sigmoid()
        return torch.stack((h, c), dim=-1)


class BooleanReset(nn.Module):
    """done is a vector of booleans"""

    def __init__(self, n_in=3, n=8):
        super().__init__()
        self.cell, self.q = nn.GRUCell(n_in, n), nn.Linear(n, 2)

    def forward(self, obs, h, done):
        assert done.dtype == torch.bool
        h = torch.where(done[:, None], torch.zeros_like(h), h)
        h = self.cell(obs, h)
        return self.q(h), h


class TimeIndexed(nn.Module):
    """the number of the step as a feature"""

    def __init__(self, n_in=3, n=8):
        super().__init__()
        self.cell = nn.LSTMCell(n_in + 2, n)

    def forward(self, x, state, t):
        phase = 2 * torch.pi * t / 24.0
        clock = torch.stack([torch.sin(phase), torch.cos(phase)], -1)
        h, c = self.cell(torch.cat([x, clock], -1), state)
        return h, (h, c)


def run_timed(module, x):
    h = c = torch.zeros(len(x), 8)
    ys = []
    for t in range(x.size(1)):
        y, (h, c) = module(x[:, t], (h, c), torch.full((len(x),), float(t)))
        ys.append(y)
    return torch.stack(ys, 1)


class OneElementList(nn.Module):
    """what a framework of cells with any number of states hands around: [h]"""

    def __init__(self, n_in=3, n=9):
        super().__init__()
        self.i2h, self.h2h = nn.Linear(n_in, n), nn.Linear(n, n)

    def forward(self, inputs, states):
        output = torch.tanh(self.i2h(inputs) + self.h2h(states[0]))
        return output, [output]


class NestedInput(nn.Module):
    """everything in one argument: ((x,), ((h, c),))"""

    def __init__(self, n_in=3, n=8):
        super().__init__()
        self.cell = nn.LSTMCell(n_in, n)

    def forward(self, args):
        (x,), ((h, c),) = args
        h, c = self.cell(x, (h, c))
        return (h,), ((h, c),)


class LearnedBeginning(nn.Module):
    """h0 and c0 are trained and expanded at the first step; squeezes what it answers"""

    def __init__(self, n_in=3, n=8):
        super().__init__()
        self.h0 = nn.Parameter(torch.randn(n) * 0.5)
        self.c0 = nn.Parameter(torch.randn(n) * 0.5)
        self.cell, self.out = nn.LSTMCell(n_in, n), nn.Linear(n, 1)

    def forward(self, x, state=None):
        if state is None:
            state = (self.h0.expand(x.size(0), -1), self.c0.expand(x.size(0), -1))
        h, c = self.cell(x, state)
        return self.out(h).squeeze(), (h, c)


class RememberingStack(nn.Module):
    """the states of all layers are a list on the object; weights that state_dict does not have"""

    def __init__(self, sizes=(3, 8, 6)):
        super().__init__()
        self.layers = [nn.LSTMCell(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        self.scale = torch.linspace(0.5, 1.5, sizes[-1])
        self.states = []

    def reset_state(self):
        self.states = [None] * len(self.layers)

    def forward(self, x):
        if not self.states:
            self.reset_state()
        for k, layer in enumerate(self.layers):
            before = self.states[k]
            h, c = layer(x, before if before is None else tuple(s.detach() for s in before))
            self.states[k] = (h, c)
            x = h
        return x * self.scale


def run_remembering(module, x):
    module.reset_state()
    return torch.stack([module(x[:, t]) for t in range(x.size(1))], 1)


class RequiredPairs(nn.Module):
    """a list of (h, c) that must be there; nothing on the module says how many or how wide"""

    def __init__(self, n_in=3, n=8, depth=2):
        super().__init__()
        self.cells = nn.ModuleList(nn.LSTMCell(n if k else n_in, n) for k in range(depth))

    def forward(self, x, hidden):
        assert isinstance(hidden, list) and len(hidden) == len(self.cells)
        after = []
        for cell, pair in zip(self.cells, hidden, strict=True):
            x, c = cell(x, pair)
            after.append((x, c))
        return x, after


class Traced(nn.Module):
    """three flat states: h, c and a slow trace of h that gates it"""

    def __init__(self, n_in=3, n=8):
        super().__init__()
        self.cell, self.gate = nn.LSTMCell(n_in, n), nn.Linear(n, n)

    def forward(self, x, h, c, trace):
        h, c = self.cell(x, (h * torch.sigmoid(self.gate(trace)), c))
        return h, c, 0.9 * trace + 0.1 * h


class Chatty(nn.Module):
    """prints, asserts, asks .item(); three layers without a bias, a buffer that nothing reads"""

    def __init__(self, n_in=3, n=8):
        super().__init__()
        self.register_buffer("unused", torch.arange(5))
        self.register_buffer("clip", torch.tensor(3.0))
        self.lstm = nn.LSTM(n_in, n, num_layers=3, batch_first=True, bias=False, dropout=0.3)
        self.fc = nn.Linear(n, n_in)

    def forward(self, x):
        print("input", tuple(x.shape))
        assert x.dim() == 3, x.shape
        limit = self.clip.item()
        out, _ = self.lstm(x.clamp(-limit, limit))
        return self.fc(out)


def run_pair(call, n):
    return lambda m, x: stepped(m, x, (zeros(x, len(x), n), zeros(x, len(x), n)), call)


ENTRIES = {
    "state-first": Entry(
        lambda: StateBeforeInput(10, 3),
        waves(3),
        run_pair(lambda m, x, s: m(s, x)[::-1], 10),
        "(c, h), x -> (c, h), y",
    ),
    "keyword-hx": Entry(
        lambda: KeywordState(3, 10),
        waves(3),
        run_pair(lambda m, x, s: (m(x, hx=s)[0], m(x, hx=s)), 10),
        "x, hx=(h, c) -> h, c",
    ),
    "dataclass-out": Entry(
        DataclassOut,
        waves(3),
        lambda m, x: m(x).output,
        "X, state=(h, c)=None -> {output: Y, state: (h, c)}",
    ),
    "named-carry": Entry(
        NamedCarry,
        waves(6),
        run_pair(lambda m, x, s: (m(x, s)[0], m(x, Carry(*s))), 6),
    ),
    "list-out": Entry(
        ListOut,
        waves(3),
        lambda m, x: torch.stack(m(x.transpose(0, 1))[0], 1),
        roads=road("gru"),
    ),
    "layered-cell": Entry(
        LayeredCell,
        waves(3),
        lambda m, x: stepped(
            m,
            x,
            (zeros(x, 1, len(x), 9), zeros(x, 1, len(x), 9)),
            lambda m, x, s: (lambda y, h, c: (y, (h, c)))(*m(x, *s)),
        ),
    ),
    "last-axis-state": Entry(
        LastAxisState,
        waves(3),
        lambda m, x: stepped(
            m, x, zeros(x, len(x), 7, 2), lambda m, x, s: (m(x, s).flatten(1), m(x, s))
        ),
        roads=road("general"),  # h and c lie alternately
    ),
    "boolean-reset": Entry(
        BooleanReset,
        beside(waves(3), flags(0.03)),
        lambda m, x: stepped(
            m, x, zeros(x, len(x), 8), lambda m, x, h: m(x[:, :3], h, x[:, 3] > 0)
        ),
        "x, h, done:1 -> y, h",
        roads=road("general"),  # no node resets its own state
    ),
    "time-index": Entry(
        TimeIndexed, waves(3), run_timed, "x, (h, c), t -> y, (h, c)", roads=road("general")
    ),
    "one-element-list": Entry(
        OneElementList,
        waves(3),
        lambda m, x: stepped(m, x, [zeros(x, len(x), 9)], lambda m, x, s: m(x, s)),
        roads=road("rnn"),
    ),
    "nested-input": Entry(
        NestedInput,
        waves(3),
        run_pair(lambda m, x, s: (lambda y, s: (y[0], s[0]))(*m(((x,), (s,)))), 8),
        "((x,), ((h, c),)) -> (y,), ((h, c),)",
    ),
    "learned-beginning": Entry(
        LearnedBeginning,
        waves(3),
        lambda m, x: stepped(
            m, x, None, lambda m, x, s: (lambda y, s: (y.reshape(len(x), 1), s))(*m(x, s))
        ),
    ),
    "remembering-stack": Entry(RememberingStack, waves(3), run_remembering),
    "required-pairs": Entry(
        RequiredPairs,
        waves(3),
        lambda m, x: stepped(m, x, [(zeros(x, len(x), 8),) * 2] * 2, lambda m, x, s: m(x, s)),
        "x, [(h1, c1), (h2, c2)] -> y, [(h1, c1), (h2, c2)]",
    ),
    "three-flat": Entry(
        Traced,
        waves(3),
        lambda m, x: stepped(
            m, x, (zeros(x, len(x), 8),) * 3, lambda m, x, s: (m(x, *s)[0], m(x, *s))
        ),
        roads=road("lstm", "general"),
    ),
    "chatty": Entry(Chatty, waves(3), lambda m, x: m(x)),
}
