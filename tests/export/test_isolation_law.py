"""The law of rowwise int8, over random models: a row's bits are its own.

Each model is lowered, its graphs are opened, and a session is run alone, a step a call; then in
batches of 7 and of 256, in chunks of every size, at any place, beside neighbours that send 1e4,
1e30 and denormals.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.draft import ports_of
from export.finding import find_reference
from export.graphs.session import start_session
from export.lowering import lower_reference
from export.precision import ALL_ROWWISE
from service.manifest import Ports
from tests.export.one_step import run_one_step

Array = np.ndarray
STEPS = 6
BATCHES = (2, 7, 256)
HOSTILE = (1.0, 1e4, 1e30, 1e-40)
STATES = (1.0, 1e-40)  # of bounded states, nothing greater comes
ROUNDS = 60  # of three batches each: 180 for every model, over two thousand in all

MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "lstm": lambda i, h: nn.LSTM(i, h, batch_first=True),
    "lstm, layers": lambda i, h: nn.LSTM(i, h, num_layers=3, batch_first=True),
    "lstm, projection": lambda i, h: nn.LSTM(i, h, 2, proj_size=h // 2, batch_first=True),
    "gru": lambda i, h: nn.GRU(i, h, num_layers=2, batch_first=True),
    "rnn": lambda i, h: nn.RNN(i, h, batch_first=True),
}
SIZES = ((3, 33), (20, 256))  # the gates of one activation together, and each a product of its own


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("input_size", "hidden"), SIZES)
def test_a_session_is_bit_identical_in_any_company(name: str, input_size: int, hidden: int) -> None:
    """Alone, in batches, in chunks, at any place, with any neighbours: the same bits."""
    torch.manual_seed(input_size + hidden)
    module = MODELS[name](input_size, hidden)
    check_law(module, torch.randn(1, 40, input_size))


class Peepholes(nn.Module):
    """An LSTM cell whose gates look at c."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Linear(3 + 40, 4 * 40)
        self.peep = nn.Parameter(torch.randn(3, 40))

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        i, f, g, o = self.z(torch.cat([x, h], dim=1)).chunk(4, 1)
        i, f = torch.sigmoid(i + self.peep[0] * c), torch.sigmoid(f + self.peep[1] * c)
        c = f * c + i * torch.tanh(g)
        h = torch.sigmoid(o + self.peep[2] * c) * torch.tanh(c)
        return h, (h, c)


class Divided(nn.Module):
    """A division and a maximum: it goes the general road."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Linear(3 + 40, 40)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        z = self.z(torch.cat([x, h], dim=1)) / (1 + h.abs().amax(1, keepdim=True))
        h = torch.tanh(z)
        return h, h


@pytest.mark.parametrize("kind", [Peepholes, Divided])
def test_other_steps_keep_the_law(kind: type[nn.Module]) -> None:
    """Peepholes, and a step that is written operator by operator."""
    torch.manual_seed(0)
    check_law(kind(), torch.randn(1, 40, 3))


def check_law(module: nn.Module, x: torch.Tensor) -> None:
    reference = find_reference(module.eval(), x)
    lowered, ports = lower_reference(reference, x), ports_of(reference, x.numpy())
    chunk, step = (start_session(m) for m in lowered.rowwise_graphs(ports, ALL_ROWWISE))
    rng = np.random.default_rng(0)
    names = ["y", *(s.output for s in ports.states)]

    def run(x: Array, state: list[Array], lengths: Array | None = None) -> list[Array]:
        feed = {"x": x, **{s.input: v for s, v in zip(ports.states, state, strict=True)}}
        if lengths is None:
            found = run_one_step(step, names, feed)
        else:
            found = chunk.run(names, {**feed, "lengths": lengths})
        return [value + 0 for value in found]  # as the runtime does: one zero

    for _ in range(ROUNDS):
        row = hostile(rng, (1, STEPS, *x.shape[2:]))
        state = states(rng, ports, 1)
        ys, now = [], state
        for t in range(STEPS):
            y, *now = run(np.ascontiguousarray(row[:, t : t + 1]), now)
            ys.append(y)
        alone = [np.concatenate(ys, axis=1), *now]
        for batch in BATCHES:
            place = int(rng.integers(batch))
            crowd = hostile(rng, (batch, STEPS, *x.shape[2:]))
            crowd[place] = row[0]
            now = states(rng, ports, batch)
            for value, own in zip(now, state, strict=True):
                value[place] = own[0]
            ys, start = [], 0
            while start < STEPS:
                stop = start + int(rng.integers(1, STEPS - start + 1))
                piece = np.ascontiguousarray(crowd[:, start:stop])
                size = stop - start
                full = np.full(batch, size, np.int64)
                lengths = np.where(np.arange(batch) == place, size, rng.integers(1, size + 1))
                y, *now = run(piece, now, None if size == 1 else np.minimum(full, lengths))
                ys.append(y[place : place + 1])
                start = stop
            found = [np.concatenate(ys, axis=1), *(v[place : place + 1] for v in now)]
            for ours, theirs in zip(alone, found, strict=True):
                assert ours.tobytes() == theirs.tobytes()


def hostile(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    scale = rng.choice(HOSTILE, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return np.asarray(rng.standard_normal(shape) * scale, np.float32)


def states(rng: np.random.Generator, ports: Ports, batch: int) -> list[Array]:
    found = []
    for s in ports.states:
        scale = rng.choice(STATES, batch).reshape(-1, *[1] * (len(s.shape) - 1))
        value = rng.uniform(-1, 1, (batch, *(int(d) for d in s.shape[1:]))) * scale
        found.append(value.astype(np.float32))
    return found
