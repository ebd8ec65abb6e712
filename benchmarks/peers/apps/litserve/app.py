"""LitServe and a dict of states, as its documentation has an API (LitAPI; Batching).

python app.py PORT [MAX_BATCH_SIZE]
"""

import os
import sys

import litserve as ls
import numpy as np
import onnxruntime as ort

HIDDEN = int(os.environ["PEERS_HIDDEN"])


class LstmAPI(ls.LitAPI):
    def setup(self, device):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.model = ort.InferenceSession(os.environ["PEERS_MODEL"], options)
        self.states = {}

    def decode_request(self, request):
        return request["session_id"], np.array([request["x"]], dtype=np.float32)

    def predict(self, inputs):
        session_id, x = inputs
        h, c = self.states.get(session_id) or (np.zeros((1, 1, HIDDEN), np.float32),) * 2
        y, h, c = self.model.run(None, {"x": x, "h": h, "c": c})
        self.states[session_id] = (h, c)
        return y[0]

    def encode_response(self, output):
        return {"y": output.tolist()}


class BatchedLstmAPI(LstmAPI):
    """One run for all requests that came within the batch timeout."""

    def batch(self, inputs):
        return [session_id for session_id, _ in inputs], np.concatenate([x for _, x in inputs])

    def predict(self, inputs):
        session_ids, x = inputs
        zeros = np.zeros((1, 1, HIDDEN), np.float32)
        found = [self.states.get(session_id) or (zeros, zeros) for session_id in session_ids]
        h, c = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        y, h, c = self.model.run(None, {"x": x, "h": h, "c": c})
        for i, session_id in enumerate(session_ids):
            self.states[session_id] = (h[:, i : i + 1], c[:, i : i + 1])
        return y

    def unbatch(self, output):
        return list(output)


if __name__ == "__main__":
    port, max_batch_size = int(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 1
    if max_batch_size > 1:
        api = BatchedLstmAPI(max_batch_size=max_batch_size, batch_timeout=0.002)
    else:
        api = LstmAPI()
    server = ls.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=port, generate_client_file=False)
