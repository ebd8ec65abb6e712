"""Policies and controllers: episodes end, and objects keep their state."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.export.authors.entry import Entry, beside, flags, road, waves


class RecurrentPolicy(nn.Module):
    """masks is 0 where the episode has just begun; actor and critic"""

    def __init__(self, obs=4, hidden=12, actions=3):
        super().__init__()
        self.base = nn.Sequential(nn.Linear(obs, hidden), nn.Tanh())
        self.gru = nn.GRU(hidden, hidden)
        self.critic_linear = nn.Linear(hidden, 1)
        self.dist = nn.Linear(hidden, actions)

    def forward(self, inputs, rnn_hxs, masks):
        x = self.base(inputs)
        x, hxs = self.gru(x.unsqueeze(0), (rnn_hxs * masks).unsqueeze(0))
        x, hxs = x.squeeze(0), hxs.squeeze(0)
        return self.critic_linear(x), F.softmax(self.dist(x), dim=-1), hxs


def run_policy(net, x):
    hxs = torch.zeros(len(x), 12)
    out = []
    for t in range(x.size(1)):
        value, probs, hxs = net(x[:, t, :4], hxs, x[:, t, 4:])
        out.append(torch.cat([value, probs], 1))
    return torch.stack(out, 1)


class DuelingRecurrentQ(nn.Module):
    """observation, last action and reward; time first; done resets inside the loop"""

    def __init__(self, obs=4, actions=3, hidden=12):
        super().__init__()
        self.lstm = nn.LSTM(obs + actions + 1, hidden)
        self.advantage, self.value = nn.Linear(hidden, actions), nn.Linear(hidden, 1)

    def forward(self, x, lstm_state, done):
        # x: T, B, .. ; done: T, B
        new_hidden = []
        for xt, d in zip(x, done, strict=True):
            keep = (1.0 - d).view(1, -1, 1)
            h, lstm_state = self.lstm(xt.unsqueeze(0), (keep * lstm_state[0], keep * lstm_state[1]))
            new_hidden += [h]
        z = torch.cat(new_hidden)
        adv = self.advantage(z)
        return self.value(z) + adv - adv.mean(-1, keepdim=True), lstm_state


def run_dueling(net, x):
    zeros = torch.zeros(1, len(x), 12)
    x = x.transpose(0, 1)
    q, _ = net(x[..., :8], (zeros, zeros), x[..., 8])
    return q.transpose(0, 1)


# --- objects with a memory ---


@dataclass
class ControllerConfig:
    inputs: int = 3
    hidden: int = 12
    outputs: int = 2
    verbose: bool = False


class StatefulController(nn.Module):
    def __init__(self, config=None):
        super().__init__()
        self.config = config or ControllerConfig()
        self.cell = nn.GRUCell(self.config.inputs, self.config.hidden)
        self.out = nn.Linear(self.config.hidden, self.config.outputs)
        self.hidden = None

    def reset(self):
        self.hidden = None

    def forward(self, x):
        self.hidden = self.cell(x, None if self.hidden is None else self.hidden.detach())
        if self.config.verbose:
            print("hidden", self.hidden.shape)
        return torch.tanh(self.out(self.hidden))


def run_controller(net, x):
    net.reset()
    return torch.stack([net(x[:, t]) for t in range(x.size(1))], 1)


def episodes(steps: int, seed: int) -> np.ndarray:
    return flags(0.03)(steps, seed)


ENTRIES = {
    "policy": Entry(
        RecurrentPolicy,
        beside(waves(4), lambda n, s: 1 - episodes(n, s)),
        run_policy,
        "x, h, s:1 -> y, y, h",
        roads=road("general"),  # no node resets its own state
    ),
    "dueling": Entry(
        DuelingRecurrentQ,
        beside(waves(8), episodes),
        run_dueling,
        "X, (h, c), s:1 -> Y, (h, c)",
        roads=road("general"),  # no node resets its own state
    ),
    "controller": Entry(
        StatefulController,
        waves(3),
        run_controller,
        roads=road("gru"),
    ),
}
