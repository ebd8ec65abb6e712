"""Ray Serve and a dict of states, as its documentation has a deployment (Getting Started).

python app.py PORT
"""

import os
import sys
import time

import numpy as np
import onnxruntime as ort
from ray import serve
from starlette.requests import Request

HIDDEN = int(os.environ["PEERS_HIDDEN"])


@serve.deployment
class Lstm:
    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.model = ort.InferenceSession(os.environ["PEERS_MODEL"], options)
        self.states = {}

    async def __call__(self, http_request: Request) -> dict:
        request = await http_request.json()
        session_id = request["session_id"]
        h, c = self.states.get(session_id) or (np.zeros((1, 1, HIDDEN), np.float32),) * 2
        x = np.array([request["x"]], dtype=np.float32)
        y, h, c = self.model.run(None, {"x": x, "h": h, "c": c})
        self.states[session_id] = (h, c)
        return {"session_id": session_id, "y": y[0].tolist()}


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Lstm.bind(), route_prefix="/predict")
    while True:
        time.sleep(3600)
