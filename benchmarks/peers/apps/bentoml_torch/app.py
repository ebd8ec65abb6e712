"""BentoML, torch and a dict of states: the module as it was trained, behind `@bentoml.api`."""

import os

import bentoml
import torch
from torch import nn

HIDDEN = int(os.environ["PEERS_HIDDEN"])


class Forecaster(nn.Module):
    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(size, hidden, batch_first=True)
        self.head = nn.Linear(hidden, size)

    def forward(self, x, state=None):
        y, state = self.lstm(x, state)
        return self.head(y), state


@bentoml.service
class Lstm:
    def __init__(self) -> None:
        weights = torch.load(os.environ["PEERS_WEIGHTS"], weights_only=True)
        self.model = Forecaster(weights["head.weight"].shape[0], HIDDEN)
        self.model.load_state_dict(weights)
        self.model.eval()
        self.states = {}

    @bentoml.api
    def predict(self, session_id: str, x: list[list[float]]) -> dict:
        with torch.inference_mode():
            y, state = self.model(torch.tensor([x]), self.states.get(session_id))
        self.states[session_id] = state
        return {"session_id": session_id, "y": y[0].tolist()}
