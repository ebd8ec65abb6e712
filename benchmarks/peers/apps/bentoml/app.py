"""BentoML and a dict of states, as BentoML's documentation has a service (Create online API
Services; Custom Models)."""

import os

import bentoml
import numpy as np
import onnxruntime as ort

HIDDEN = int(os.environ["PEERS_HIDDEN"])


@bentoml.service
class Lstm:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.model = ort.InferenceSession(os.environ["PEERS_MODEL"], options)
        self.states = {}

    @bentoml.api
    def predict(self, session_id: str, x: list[list[float]]) -> dict:
        h, c = self.states.get(session_id) or (np.zeros((1, 1, HIDDEN), np.float32),) * 2
        rows = np.array([x], dtype=np.float32)
        y, h, c = self.model.run(None, {"x": rows, "h": h, "c": c})
        self.states[session_id] = (h, c)
        return {"session_id": session_id, "y": y[0].tolist()}
