"""MLServer and a dict of states: a custom inference runtime, as its documentation has one.

The session is the request's parameter `sequence_id`, as in Triton's sequence extension.
"""

import os

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

HIDDEN = int(os.environ["PEERS_HIDDEN"])


class Lstm(MLModel):
    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._model = ort.InferenceSession(os.environ["PEERS_MODEL"], options)
        self._states = {}
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        session_id = payload.parameters.sequence_id
        x = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        h, c = self._states.get(session_id) or (np.zeros((1, 1, HIDDEN), np.float32),) * 2
        y, h, c = self._model.run(None, {"x": x, "h": h, "c": c})
        self._states[session_id] = (h, c)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])
